"""Which model was wanted when, from the chain of orders, and which one really scored, from the progress records."""

from collections.abc import Iterable
from datetime import timedelta
from typing import NamedTuple, Self

from pipelines.contracts.contract import UNDECODABLE
from pipelines.contracts.messages import Progress, decode
from pipelines.contracts.stream import Stream
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.live.chain import Chain, hash_of, records_of
from pipelines.live.control import Order, orders_in
from pipelines.live.wanted import Wanted
from pipelines.record import Received

MOVES = frozenset({"use", "follow", "promote", "rollback", "return", "threshold"})
AROUND = timedelta(minutes=15)


class Entry(NamedTuple):
    """An order in the history: when it was stored (ms since 1970), and what was wanted before and after it."""

    offset: int
    at_ms: int
    order: Order
    hash: str
    before: Wanted
    after: Wanted

    @property
    def is_move(self) -> bool:
        """Whether it is about the model or its threshold; an alias that has come to the model in use is none."""
        return self.order.kind in MOVES and (self.order.kind != "follow" or self.before.digest != self.after.digest)


class History(NamedTuple):
    """All orders of a stream, and the chain of the records that they are in."""

    entries: tuple[Entry, ...]
    chain: Chain
    hashes: frozenset[str]

    @classmethod
    def of(cls, records: Iterable[Received]) -> Self:
        """The history in the records of a control topic, in their order."""
        chain, wanted = Chain(), Wanted()
        entries, hashes = list[Entry](), set[str]()
        for record in records:
            chain.add(record)
            hashes.add(hash_of(record))
            for order in orders_in([record]):
                before, wanted = wanted, wanted.after(order)
                entries.append(Entry(record.offset, record.timestamp_ms, order, hash_of(record), before, wanted))
        return cls(tuple(entries), chain, frozenset(hashes))

    @property
    def moves(self) -> list[Entry]:
        """The orders about the model or its threshold."""
        return [entry for entry in self.entries if entry.is_move]

    def wanted_at(self, at_ms: int) -> tuple[Wanted, Entry | None]:
        """What was wanted at a time, and the last order about the model in use until then."""
        until = [entry for entry in self.entries if entry.at_ms <= at_ms]
        wanted = until[-1].after if until else Wanted()
        return wanted, next((e for e in reversed(until) if e.before.digest != e.after.digest), None)


def read_history(connection: Connection, stream: Stream) -> History:
    """The history of a stream.

    Raises:
        BrokerError: there is no control topic, or Kafka does not answer.
    """
    return History.of(records_of(connection, stream.topic("control")))


class Scored(NamedTuple):
    """A model that scored: the first and the last commit (ms since 1970), and the number of events."""

    model: str
    first_ms: int
    last_ms: int
    n: int


def scored_around(connection: Connection, stream: Stream, at_ms: int, *, around: timedelta = AROUND) -> list[Scored]:
    """The models that scored within `around` of a time, by their first commit; empty if none did or Kafka forgot it.

    The progress record of a transaction names the model of the scores in it.

    Raises:
        BrokerError: there is no progress topic, or Kafka does not answer.
    """
    span_ms = round(around.total_seconds() * 1000)
    topic = stream.topic("progress")
    spans = topics.bounds(connection, [topic])
    begin = topics.offsets_at(connection, spans, at_ms - span_ms)
    end = topics.offsets_at(connection, spans, at_ms + span_ms + 1)
    begin = {p: max(first, begin[p] - 2) for p, (first, _) in spans.items()}  # the record before, and its marker
    found: dict[str, Scored] = {}
    counted: dict[int, int] = {}
    for batch in topics.read_between(connection, {p: (begin[p], end[p]) for p in spans}):
        for record in batch:
            try:
                progress = decode(record.value, Progress)
            except UNDECODABLE:
                continue
            n = progress.n_scored - counted.get(record.partition, progress.n_scored)
            counted[record.partition] = progress.n_scored
            if n > 0:
                known = found.get(progress.model, Scored(progress.model, record.timestamp_ms, 0, 0))
                first_ms, last_ms = min(known.first_ms, record.timestamp_ms), max(known.last_ms, record.timestamp_ms)
                found[progress.model] = Scored(progress.model, first_ms, last_ms, known.n + n)
    return sorted(found.values(), key=lambda one: one.first_ms)


def scored_at(scored: Iterable[Scored], at_ms: int) -> set[str]:
    """The models that may have scored at a time: those whose commits lie around it, else the last one before it."""
    here = {one.model for one in scored if one.first_ms <= at_ms <= one.last_ms}
    before = [one for one in scored if one.last_ms <= at_ms]
    return here or {max(before, key=lambda one: one.last_ms).model} if here or before else set()
