"""Orders that depend on those before them: each is decided from what is wanted at its place in the control topic."""

from collections.abc import Callable

import msgspec

from pipelines.contracts.stream import Stream
from pipelines.kafka.connection import Connection
from pipelines.live.control import Order, append_order
from pipelines.live.wanted import Wanted


def give(
    connection: Connection,
    stream: Stream,
    decide: Callable[[Wanted], Order | None],
    *,
    before_commit: Callable[[], None] = lambda: None,
) -> Order | None:
    """Send the order that is called for; it names the model that was wanted before. Returns it.

    Args:
        decide: gives the order from what is wanted; None: there is none to give.
        before_commit: called before the order becomes visible; if it raises, the order is not sent.

    Raises:
        BrokerError: there is no control topic, or Kafka does not answer.
    """

    def next_order(past: list[Order]) -> Order | None:
        wanted = Wanted.by(past)
        order = decide(wanted)
        before = wanted.digest if order and wanted.digest != order.digest else None
        return order and msgspec.structs.replace(order, before=before or order.before)

    return append_order(connection, stream, next_order, before_commit=before_commit)
