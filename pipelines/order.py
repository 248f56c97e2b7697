"""The one order: events and labels of all partitions, merged by arrival into one reproducible sequence.

Records are sorted by (effective time, labels before events, partition, offset). The effective time of an event is its
arrival: the running maximum of the record timestamps of its partition. That of a label is its arrival plus `label_lag`.

What may be released is decided by *marks* alone: a time T and the end offset of every source. All records before these
offsets and below T are released, whatever else has been read. All replicas of a stream read the same marks in the same
sequence (from the clock topic), so they fold in the same order, even if a record comes later than a mark expected.
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
    """A step of the order: what lies before `ends` and below `below_ms` is released.

    Its writer `by` expects that no record after the ends has an effective time below `below_ms`. `next_offset` is the
    offset after it in the clock topic.
    """

    below_ms: float
    ends: Frontier
    next_offset: int = 0
    by: str = ""


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
    """Merges sources into the one order, by marks. `proposal` makes the next mark from the bounds of the sources.

    The clock is never read here: time is an argument (`asked_ms`, `now_ms`).

    Args:
        frontier: the sources, with the next offset of each.
        label_lag_ms: delay from a label's arrival to its effect, ms.
        arrivals: running maximum of the record timestamps per source so far, ms; for a restore.
        last: the last place already folded; for a restore.
        places: where out-of-turn records were folded before.
        folded_first: a frontier; all records before it are released before any record beyond it, without a mark.
        clock_offset: where the marks begin in the clock topic; those before it are done.
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
        clock_offset: int = 0,
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
        self._order_wait_ms = order_wait_ms
        self._order_stall_ms = order_stall_ms
        self._is_restoring = bool(folded_first)
        self._marks: deque[Mark] = deque([Mark(_FOREVER, folded_first, clock_offset)] if folded_first else [])
        self.clock_offset = clock_offset  # of the first mark that is not done
        self._ticked_ms: float | None = None
        self.n_out_of_turn = 0

    @property
    def n_waiting(self) -> int:
        """Number of buffered records that are not released yet."""
        return sum(len(q.items) for q in self._queues.values())

    def waiting(self, source: Source) -> tuple[int, int | None]:
        """Number of buffered records of a source, and the arrival of the oldest one, ms."""
        items = self._queues[source].items
        return len(items), items[0].arrival_ms if items else None

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
        """Add the next mark."""
        self._marks.append(mark)

    def proposal(self) -> Mark | None:
        """The mark that would release all records that no later record can precede; None if there are none.

        Only what has been read counts: of a source that others no longer wait for, the records in hand.
        """
        if self._marks or not self.is_behind:
            return None
        return Mark(self._least(), {s: q.position for s, q in self._queues.items()})

    @property
    def is_behind(self) -> bool:
        """Whether there are marks to follow, or records that a mark should release."""
        least = self._least()
        return bool(self._marks) or any(q.items and q.items[0].key.effective_ms < least for q in self._queues.values())

    def tick(self, now_ms: float) -> None:
        """Count how long sources keep the others waiting. A step counts at most 1 s, in case of a pause."""
        step = 0.0 if self._ticked_ms is None else min(max(now_ms - self._ticked_ms, 0.0), 1_000.0)
        self._ticked_ms = now_ms
        if self._is_restoring or not self.n_waiting:
            return
        least = self._least()
        for queue in self._queues.values():
            bound = queue.effective_bound_ms
            if bound > least or bound != queue.held_back_ms:
                queue.held_back_ms, queue.waited_ms, queue.waived = bound, 0.0, False
                continue
            queue.waited_ms += step
            queue.waived = queue.waited_ms > self._order_stall_ms

    def hoards(self, limit: int, *, follows: bool = False) -> set[Source]:
        """Sources with more than `limit` buffered bytes that wait for other sources. Do not read these further.

        With `follows`, other replicas write the marks: then a source that the next mark does not need waits too.
        """
        full = {s for s, q in self._queues.items() if q.n_bytes > limit}
        if not full:
            return full
        if not self._marks:
            least = self._least()
            return full if follows else {s for s in full if self._queues[s].effective_bound_ms > least}
        mark = self._marks[0]
        least = self._bound(mark)
        queues = self._queues
        return {s for s in full if self._has_reached(s, mark) or queues[s].arrival_ms + queues[s].lag_ms > least}

    def release(self) -> list[Item]:
        """All records that the marks release, in the one order."""
        items: list[Item] = []
        while self._marks:
            mark = self._marks[0]
            bound = self._bound(mark)
            items += self._take(min(bound, mark.below_ms), mark.ends)
            if bound < _FOREVER:
                break
            self._marks.popleft()
            self.clock_offset = max(self.clock_offset, mark.next_offset)
            self._is_restoring = False
        return items

    def _has_reached(self, source: Source, mark: Mark) -> bool:
        return self._queues[source].position >= mark.ends.get(source, 0)

    def _bound(self, mark: Mark) -> float:
        """The effective time below which no record before the ends of a mark is still to be read.

        Only arrivals count, which never decrease: what is released does not depend on how far each source was read.
        """
        unread = (q.arrival_ms + q.lag_ms for s, q in self._queues.items() if not self._has_reached(s, mark))
        return min(unread, default=_FOREVER)

    def _least(self) -> float:
        """The effective time below which no record is expected any more."""
        return min((q.effective_bound_ms for q in self._queues.values() if not q.waived), default=_FOREVER)

    def _take(self, below_ms: float, ends: Frontier) -> list[Item]:
        taken: list[Item] = []
        for source, queue in self._queues.items():
            items, end = queue.items, ends.get(source, 0)
            while items and items[0].key.effective_ms < below_ms and items[0].record.offset < end:
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
