"""The control topic: which model the scorers of a stream use, where the model registry is not reachable or is wrong."""

import logging
import time
from collections.abc import Iterator
from typing import Literal

import msgspec

from pipelines.contracts.contract import UNDECODABLE
from pipelines.contracts.messages import decode, encode, rfc3339
from pipelines.contracts.stream import Stream
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message, Reader
from pipelines.record import Received

log = logging.getLogger(__name__)


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A message of `<stream>.control`: use the model `digest`; never `refused`, if that is set."""

    kind: Literal["use", "return"]
    digest: str
    why: str
    by: str
    at: str
    refused: str | None = None


def send_order(
    connection: Connection, stream: Stream, *, digest: str, why: str, by: str, refused: str | None = None
) -> None:
    """Tell all scorers of a stream which model to use; with `refused`, instead of a model that failed."""
    kind: Literal["use", "return"] = "return" if refused else "use"
    at = rfc3339(round(time.time() * 1000))
    order = Order(kind=kind, digest=digest, why=why, by=by, at=at, refused=refused)
    with connection.writer() as writer:
        writer.send(Message(stream.topic("control"), encode(order), None, 0))
        writer.flush()


class Orders:
    """Reads the orders of a stream: all past ones, then new ones as they come. Empty without a control topic."""

    def __init__(self, connection: Connection, stream: Stream) -> None:
        self._connection, self._topic = connection, stream.topic("control")
        self._reader: Reader | None = None

    def past(self) -> list[Order]:
        """The orders so far; the next call of `new` continues after them."""
        if self._topic not in topics.topic_names(self._connection):
            return []
        spans = topics.bounds(self._connection, [self._topic])
        found = [order for batch in topics.read_between(self._connection, spans) for order in _orders_in(batch)]
        self._reader = self._connection.reader({position: end for position, (_, end) in spans.items()})
        return found

    def new(self) -> list[Order]:
        """Orders that have come since the last call; does not wait."""
        return [] if self._reader is None else list(_orders_in(self._reader.poll(timeout_ms=0)))

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


def _orders_in(records: list[Received]) -> Iterator[Order]:
    for record in records:
        try:
            yield decode(record.value, Order)
        except UNDECODABLE as error:
            log.warning("%s, offset %d, is not an order of Unmask: %s; skipped", record.topic, record.offset, error)
