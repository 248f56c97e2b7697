"""The control topic: which model and threshold the scorers of a stream use. Its orders, read in their order, decide."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from pipelines.contracts.contract import UNDECODABLE
from pipelines.contracts.messages import decode, encode, rfc3339
from pipelines.contracts.stream import Stream
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Reader
from pipelines.live.chain import Chain, append
from pipelines.record import Received

log = logging.getLogger(__name__)

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]
Kind = Literal["use", "follow", "promote", "rollback", "return", "threshold", "shadow", "suppress", "unsuppress"]


class Order(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename={"before": "from"}):
    """A message of `<stream>.control`.

    Each names the SHA-256 of the `previous` one (`pipelines.live.chain`), who gave it, when and why, and, as `from` in
    JSON, the model that was wanted before it. The kinds:

    - `use`: use the model `digest`.
    - `follow`: the champion alias in the registry has moved to `digest`; use it.
    - `promote`: `digest`, which is `version` in the registry, has become the champion there; use it. `evidence` is the
      SHA-256 of what the gate found, `run` its MLflow run; `forced`: although the gate was against it.
    - `rollback`: go back to `digest`, which was used before.
    - `return`: `refused` did not pass its trial: never follow it again, and use `digest` instead.
    - `threshold`: decide the alerts of `digest` with `threshold`; without one, with the model's own. `alert_rate` is
      the share of events that is expected to raise an alert, `per_day` the budget that it was computed from.
    - `shadow`: let `digest` score in shadow; `challenger` means what this alias points to, an empty text nothing.
    - `suppress`: publish no full alert of events of `entity` with this `id` that arrive before `until`.
    - `unsuppress`: publish alerts of it again. Neither concerns a model: their `digest` is empty.
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
    entity: str | None = None
    id: str | None = None
    until: Moment | None = None
    version: int | None = None
    evidence: Digest | None = None
    run: str | None = None
    forced: bool = False
    before: str | None = None
    previous: Digest | None = None


def order_of(kind: Kind, digest: str, *, why: str, by: str, **more: Any) -> Order:
    """An order that is given now; `more` are its other fields."""
    return Order(kind=kind, digest=digest, why=why, by=by, at=rfc3339(round(time.time() * 1000)), **more)


def send_order(connection: Connection, stream: Stream, order: Order) -> None:
    """Send an order to all scorers of a stream; it is stored when this returns. Raises as `append_order`."""
    append_order(connection, stream, lambda _: order)


def append_order(
    connection: Connection,
    stream: Stream,
    decide: Callable[[list[Order]], Order | None],
    *,
    before_commit: Callable[[], None] = lambda: None,
) -> Order | None:
    """Send the order that the orders so far call for, as the next link of the chain; returns it.

    Args:
        decide: gives the order from all orders so far; None: there is none to give.
        before_commit: called before the order becomes visible; if it raises, the order is not sent.

    Raises:
        BrokerError: there is no control topic, or Kafka does not answer.
    """
    made: list[Order] = []

    def make(past: list[Received], head: str) -> bytes | None:
        order = decide(list(orders_in(past)))
        made[:] = [] if order is None else [msgspec.structs.replace(order, previous=head)]
        return encode(made[0]) if made else None

    topic = stream.topic("control")
    append(connection, topic, f"unmask.{stream.topics}.control", make, before_commit=before_commit)
    return made[0] if made else None


class Orders:
    """Reads the orders of a stream: all past ones, then new ones as they come. Empty without a control topic.

    Where the chain of orders is broken, this is told once, and the orders hold all the same.
    """

    def __init__(self, connection: Connection, stream: Stream) -> None:
        self._connection, self._topic = connection, stream.topic("control")
        self._reader: Reader | None = None
        self._chain = Chain()

    @property
    def can_be_given(self) -> bool:
        """Whether there is a control topic; known after `past`."""
        return self._reader is not None

    def past(self) -> list[Order]:
        """The orders so far; the next call of `new` continues after them."""
        if self._topic not in topics.topic_names(self._connection):
            return []
        spans = topics.bounds(self._connection, [self._topic])
        found = [order for batch in topics.read_between(self._connection, spans) for order in self._read(batch)]
        self._reader = self._connection.reader({position: end for position, (_, end) in spans.items()})
        return found

    def new(self, *, wait_ms: int = 0) -> list[Order]:
        """Orders that have come since the last call; waits at most `wait_ms` for one."""
        return [] if self._reader is None else self._read(self._reader.poll(timeout_ms=wait_ms))

    def _read(self, records: list[Received]) -> list[Order]:
        was_whole = not self._chain.breaks
        for record in records:
            self._chain.add(record)
        if was_whole and self._chain.breaks:
            offset, wrong = self._chain.breaks[0]
            log.warning("%s, offset %d: %s; see `unmask history`", self._topic, offset, wrong)
        return list(orders_in(records))

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


def orders_in(records: Iterable[Received]) -> Iterator[Order]:
    """The orders in some records; what is none is told in the log and skipped."""
    for record in records:
        try:
            yield decode(record.value, Order)
        except UNDECODABLE as error:
            log.warning("%s, offset %d, is not an order of Unmask: %s; skipped", record.topic, record.offset, error)
