"""The one order: events and labels of all partitions, merged by arrival into one reproducible sequence.

Records are sorted by (effective time, labels before events, partition, offset). The effective time of an event is its
arrival: the running maximum of the record timestamps of its partition. That of a label is its arrival plus `label_lag`.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.record import Received

LABEL, EVENT = 0, 1
KIND_NAMES = ("labels", "events")
_FOREVER = math.inf
_RECORD_BYTES = 460  # memory of a buffered record, without its key and value


class Source(NamedTuple):
    """One partition of the labels (kind 0) or the events (kind 1)."""

    kind: int
    partition: int


class Key(NamedTuple):
    """A place in the one order. `seq` is 0 for a record in turn, n for the nth late record folded after this place."""

    effective_ms: int
    kind: int
    partition: int
    offset: int
    seq: int = 0


class Item(NamedTuple):
    """A record with its place. `out_of_turn`: it came after its natural place was passed, so it has a later one."""

    key: Key
    source: Source
    arrival_ms: int
    record: Received
    out_of_turn: bool = False

    @property
    def n_bytes(self) -> int:
        """Approximate memory of the item while it is buffered."""
        return _RECORD_BYTES + len(self.record.key or b"") + len(self.record.value or b"")


Frontier = Mapping[Source, int]  # how far the input has been folded: the next offset to fold, per source
Places = Mapping[tuple[int, int, int], Key]  # (kind, partition, offset) -> place where the record was folded


class Mark(NamedTuple):
    """The clock of a replay: no record after these end offsets has a timestamp below `below_ms`."""

    below_ms: float
    ends: Frontier


class SourceClock:
    """Assigns places to the records of one source, which must be given in the order of their offsets.

    Args:
        source: the source of the records.
        lag_ms: delay from a record's arrival to its effect, ms.
        arrival_ms: running maximum of the record timestamps so far, ms.

    Example:
        >>> clock = SourceClock(Source(EVENT, 0))
        >>> stamps = enumerate((100, 90, 101))
        >>> [clock.item(Received("events", 0, offset, ms, None, None)).arrival_ms for offset, ms in stamps]
        [100, 100, 101]
    """

    def __init__(self, source: Source, *, lag_ms: int = 0, arrival_ms: int = 0) -> None:
        self.source, self.lag_ms, self.arrival_ms = source, lag_ms, arrival_ms

    def item(self, record: Received) -> Item:
        """The record at its natural place. Its arrival is the running maximum of the timestamps."""
        if record.timestamp_ms > self.arrival_ms:
            self.arrival_ms = record.timestamp_ms
        kind, partition = self.source
        key = Key(self.arrival_ms + self.lag_ms, kind, partition, record.offset)
        return Item(key, self.source, self.arrival_ms, record)


class _Queue(SourceClock):
    """The buffered records of one source, and a lower bound for the timestamps still to come."""

    def __init__(self, source: Source, *, lag_ms: int, arrival_ms: int, position: int) -> None:
        super().__init__(source, lag_ms=lag_ms, arrival_ms=arrival_ms)
        self.items: deque[Item] = deque()
        self.n_bytes = 0
        self.position = position
        self.bound_ms: float = -_FOREVER  # no later record has a timestamp below this
        self.held_back_ms: float = -_FOREVER  # the bound at which the other sources have been waiting
        self.waited_ms = 0.0
        self.waived = False

    @property
    def effective_bound_ms(self) -> float:
        return max(self.bound_ms, self.arrival_ms if self.items else -_FOREVER) + self.lag_ms


class Merge:
    """Merges sources into the one order. Releases records that are strictly below the bound of every source.

    The clock is never read here: time is an argument (`asked_ms`, `now_ms`).

    Args:
        frontier: the sources, with the next offset of each.
        label_lag_ms: delay from a label's arrival to its effect, ms.
        arrivals: running maximum of the record timestamps per source so far, ms; for a restore.
        last: the last place already folded; for a restore.
        places: where out-of-turn records were folded before.
        folded_first: a frontier; all records before it are released before any record beyond it.
        order_wait_ms: how far the bound of an idle partition stays behind the time of the request, ms.
        order_stall_ms: how long to wait for a partition that is behind or has no leader, ms.
    """

    def __init__(
        self,
        frontier: Frontier,
        *,
        label_lag_ms: int,
        arrivals: Mapping[Source, int] | None = None,
        last: Key | None = None,
        places: Places | None = None,
        folded_first: Frontier | None = None,
        order_wait_ms: int = 50,
        order_stall_ms: int = 30_000,
    ) -> None:
        arrivals = arrivals or {}
        self._queues = {
            s: _Queue(s, lag_ms=label_lag_ms if s.kind == LABEL else 0, arrival_ms=arrivals.get(s, 0), position=offset)
            for s, offset in frontier.items()
        }
        self._last = last
        self._places = dict(places or {})
        self._prefix = dict(folded_first) if folded_first else None
        self._order_wait_ms = order_wait_ms
        self._order_stall_ms = order_stall_ms
        self._marks: deque[Mark] = deque()
        self._ticked_ms: float | None = None
        self.n_out_of_turn = 0

    @property
    def n_waiting(self) -> int:
        """Number of buffered records that are not released yet."""
        return sum(len(q.items) for q in self._queues.values())

    @property
    def n_bytes(self) -> int:
        """Approximate memory of the buffered records."""
        return sum(q.n_bytes for q in self._queues.values())

    @property
    def last(self) -> Key | None:
        """The last place released."""
        return self._last

    def add(self, source: Source, records: Iterable[Received]) -> None:
        """Buffer records of a source, in the order of their offsets."""
        queue = self._queues[source]
        for record in records:
            if record.offset < queue.position:
                continue  # read again after a seek
            queue.position = record.offset + 1
            item = queue.item(record)
            if self._places and (key := self._places.pop((*source, record.offset), None)) is not None:
                item = item._replace(key=key, out_of_turn=True)
            queue.items.append(item)
            queue.n_bytes += item.n_bytes

    def observe(self, source: Source, *, position: int, end: int, asked_ms: float, live: bool) -> None:
        """Record the broker's answer: asked at `asked_ms`, `source` ends at `end` and has been read up to `position`.

        Only in a live stream (record time = append time) is an idle partition bounded by the time of the request.
        """
        queue = self._queues[source]
        queue.position = max(queue.position, position)
        if queue.position >= end and live:
            queue.bound_ms = max(queue.bound_ms, asked_ms - self._order_wait_ms)

    def mark(self, mark: Mark) -> None:
        """Add a clock mark of a replay; marks must be in ascending time."""
        self._marks.append(mark)

    def tick(self, now_ms: float) -> None:
        """Count how long sources keep the others waiting. A step counts at most 1 s, in case of a pause."""
        step = 0.0 if self._ticked_ms is None else min(max(now_ms - self._ticked_ms, 0.0), 1_000.0)
        self._ticked_ms = now_ms
        if self._prefix is not None or not self.n_waiting:
            return
        least = self._least()
        for queue in self._queues.values():
            bound = queue.effective_bound_ms
            if bound > least or bound != queue.held_back_ms:
                queue.held_back_ms, queue.waited_ms, queue.waived = bound, 0.0, False
                continue
            queue.waited_ms += step
            queue.waived = queue.waited_ms > self._order_stall_ms

    def hoards(self, limit: int) -> set[Source]:
        """Sources with more than `limit` buffered bytes that wait for other sources. Do not read these further."""
        full = {s for s, q in self._queues.items() if q.n_bytes > limit}
        if not full:
            return full
        self._reach_marks()
        least = self._least()
        return {s for s in full if self._queues[s].effective_bound_ms > least}

    def release(self) -> list[Item]:
        """All records that no later record can precede, in the one order."""
        self._reach_marks()
        if self._prefix is not None:
            items = self._take(self._least(), self._prefix)
            if not self._prefix_done():
                return items
            self._prefix = None
            return items + self._take(self._least(), None)
        return self._take(self._least(), None)

    def _reach_marks(self) -> None:
        """Apply marks. A mark counts for a source once the source has been read up to the end offset of the mark."""
        while self._marks:
            mark = self._marks[0]
            reached = True
            for source, queue in self._queues.items():
                if queue.position >= mark.ends.get(source, 0):
                    queue.bound_ms = max(queue.bound_ms, mark.below_ms)
                else:
                    reached = False
            if not reached:
                return
            self._marks.popleft()

    def _least(self) -> float:
        """The time below which no record can come any more; with a prefix, no record of the prefix."""
        if self._prefix is None:
            awaited = [q for q in self._queues.values() if not q.waived]
        else:
            awaited = [q for s, q in self._queues.items() if q.position < self._prefix.get(s, 0)]
        return min((q.effective_bound_ms for q in awaited), default=_FOREVER)

    def _prefix_done(self) -> bool:
        assert self._prefix is not None
        return all(
            q.position >= self._prefix.get(s, 0) and (not q.items or q.items[0].record.offset >= self._prefix.get(s, 0))
            for s, q in self._queues.items()
        )

    def _take(self, below_ms: float, prefix: Frontier | None) -> list[Item]:
        taken: list[Item] = []
        for source, queue in self._queues.items():
            items = queue.items
            end = prefix.get(source, 0) if prefix is not None else None
            while items and items[0].key.effective_ms < below_ms and (end is None or items[0].record.offset < end):
                item = items.popleft()
                queue.n_bytes -= item.n_bytes
                taken.append(item)
        taken.sort()
        last = self._last
        for index, item in enumerate(taken):
            if last is not None and item.key < last:
                last = last._replace(seq=last.seq + 1)
                taken[index] = item._replace(key=last, out_of_turn=True)
                self.n_out_of_turn += 1
            else:
                last = item.key
        self._last = last
        return taken


def sources(n_partitions: int, *, labels: bool) -> list[Source]:
    """All sources of a stream: its event partitions and, if it has labels, its label partitions."""
    kinds: Sequence[int] = (LABEL, EVENT) if labels else (EVENT,)
    return [Source(kind, p) for kind in kinds for p in range(n_partitions)]


def by_kind(values: Mapping[Source, int], n_partitions: int) -> dict[str, list[int]]:
    """A mapping by source as {"events": [..], "labels": [..]}, the JSON form of a frontier.

    >>> by_kind({Source(EVENT, 0): 3, Source(EVENT, 1): 5}, 2)
    {'events': [3, 5]}
    """
    return {
        KIND_NAMES[kind]: [values[Source(kind, p)] for p in range(n_partitions)]
        for kind in (LABEL, EVENT)
        if Source(kind, 0) in values
    }


def from_kinds(frontier: Mapping[Any, Sequence[int]]) -> dict[Source, int]:
    """The frontier in the JSON form of `by_kind`.

    >>> from_kinds({"events": [3]})
    {Source(kind=1, partition=0): 3}
    """
    return {Source(KIND_NAMES.index(kind), p): offset for kind, row in frontier.items() for p, offset in enumerate(row)}
