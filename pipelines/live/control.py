"""The control topic: which model and threshold the scorers of a stream use. Its orders, read in their order, decide."""

import logging
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec

from pipelines.contracts.contract import UNDECODABLE
from pipelines.contracts.messages import decode, encode, rfc3339
from pipelines.contracts.stream import Stream
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message, Reader
from pipelines.record import Received

log = logging.getLogger(__name__)

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Kind = Literal["use", "follow", "rollback", "return", "threshold", "shadow"]


class Order(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message of `<stream>.control`.

    - `use`: use the model `digest`.
    - `follow`: the champion alias in the registry has moved to `digest`; use it.
    - `rollback`: go back to `digest`, which was used before.
    - `return`: `refused` did not pass its trial: never follow it again, and use `digest` instead.
    - `threshold`: decide the alerts of `digest` with `threshold`; without one, with the model's own. `alert_rate` is
      the share of events that is expected to raise an alert, `per_day` the budget that it was computed from.
    - `shadow`: let `digest` score in shadow; `challenger` means what this alias points to, an empty text nothing.
    """

    kind: Kind
    digest: str
    why: str
    by: str
    at: str
    refused: str | None = None
    threshold: Share | None = None
    alert_rate: Share | None = None
    per_day: float | None = None


def order_of(kind: Kind, digest: str, *, why: str, by: str, **more: Any) -> Order:
    """An order that is given now; `more` are its other fields."""
    return Order(kind=kind, digest=digest, why=why, by=by, at=rfc3339(round(time.time() * 1000)), **more)


def send_order(connection: Connection, stream: Stream, order: Order) -> None:
    """Send an order to all scorers of a stream; it is stored when this returns."""
    with connection.writer() as writer:
        writer.send(Message(stream.topic("control"), encode(order), None, 0))
        writer.flush()


class Orders:
    """Reads the orders of a stream: all past ones, then new ones as they come. Empty without a control topic."""

    def __init__(self, connection: Connection, stream: Stream) -> None:
        self._connection, self._topic = connection, stream.topic("control")
        self._reader: Reader | None = None

    @property
    def can_be_given(self) -> bool:
        """Whether there is a control topic; known after `past`."""
        return self._reader is not None

    def past(self) -> list[Order]:
        """The orders so far; the next call of `new` continues after them."""
        if self._topic not in topics.topic_names(self._connection):
            return []
        spans = topics.bounds(self._connection, [self._topic])
        found = [order for batch in topics.read_between(self._connection, spans) for order in _orders_in(batch)]
        self._reader = self._connection.reader({position: end for position, (_, end) in spans.items()})
        return found

    def new(self, *, wait_ms: int = 0) -> list[Order]:
        """Orders that have come since the last call; waits at most `wait_ms` for one."""
        return [] if self._reader is None else list(_orders_in(self._reader.poll(timeout_ms=wait_ms)))

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


def _orders_in(records: list[Received]) -> Iterator[Order]:
    for record in records:
        try:
            yield decode(record.value, Order)
        except UNDECODABLE as error:
            log.warning("%s, offset %d, is not an order of Unmask: %s; skipped", record.topic, record.offset, error)
