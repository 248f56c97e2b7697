"""The one order: events and labels of all partitions, merged by arrival into one sequence that anybody can find again.

The order is (effective time, labels before events, partition, offset). Effective time is the arrival (a record's time,
kept from running backwards by a running maximum per partition), for a label plus `label_lag`.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.record import Received

LABEL, EVENT = 0, 1
KIND_NAMES = ("labels", "events")
_FOREVER = math.inf
_RECORD_BYTES = 460  # what a record in hand takes beside its key and its value


class Source(NamedTuple):
    """One partition of the labels (kind 0) or the events (kind 1)."""

    kind: int
    partition: int


class Key(NamedTuple):
    """A place in the one order. `seq` is 0 for what came in turn, n for the nth folded late behind this place."""

    effective_ms: int
    kind: int
    partition: int
    offset: int
    seq: int = 0


class Item(NamedTuple):
    """A record at its place; `out_of_turn` says that its natural place had already passed."""

    key: Key
    source: Source
    arrival_ms: int
    record: Received
    out_of_turn: bool = False

    @property
    def n_bytes(self) -> int:
        """Memory that it takes while it waits, roughly."""
        return _RECORD_BYTES + len(self.record.key or b"") + len(self.record.value or b"")


Frontier = Mapping[Source, int]  # next offset to fold, per source
Places = Mapping[tuple[int, int, int], Key]  # (kind, partition, offset) -> the place where it was folded


class Mark(NamedTuple):
    """A replay's clock: nothing stamped below `below_ms` comes after these end offsets."""

    below_ms: float
    ends: Frontier


class SourceClock:
    """The places of one source's records, which come in the order of their offsets.

    Args:
        source: where they come from.
        lag_ms: delay from a record's arrival to its effect, ms.
        arrival_ms: running maximum of record time so far, ms.

    Example:
        >>> clock = SourceClock(Source(EVENT, 0))
        >>> stamps = enumerate((100, 90, 101))
        >>> [clock.item(Received("events", 0, offset, ms, None, None)).arrival_ms for offset, ms in stamps]
        [100, 100, 101]
    """

    def __init__(self, source: Source, *, lag_ms: int = 0, arrival_ms: int = 0) -> None:
        self.source, self.lag_ms, self.arrival_ms = source, lag_ms, arrival_ms

    def item(self, record: Received) -> Item:
        """The record at its natural place; its arrival is its time, kept from running backwards."""
        if record.timestamp_ms > self.arrival_ms:
            self.arrival_ms = record.timestamp_ms
        kind, partition = self.source
        key = Key(self.arrival_ms + self.lag_ms, kind, partition, record.offset)
        return Item(key, self.source, self.arrival_ms, record)


class _Queue(SourceClock):
    """What one source has in hand, and how far its time is known."""

    def __init__(self, source: Source, *, lag_ms: int, arrival_ms: int, position: int) -> None:
        super().__init__(source, lag_ms=lag_ms, arrival_ms=arrival_ms)
        self.items: deque[Item] = deque()
        self.n_bytes = 0
        self.position = position
        self.bound_ms: float = -_FOREVER  # nothing stamped below this will still come
        self.held_back_ms: float = -_FOREVER  # the bound that the others have been waiting at
        self.waited_ms = 0.0
        self.waived = False

    @property
    def effective_bound_ms(self) -> float:
        return max(self.bound_ms, self.arrival_ms if self.items else -_FOREVER) + self.lag_ms


class Merge:
    """Merges sources into the one order, releasing what lies strictly below every source's bound.

    Time is an argument (`asked_ms`, `now_ms`): the caller's clock, never read here.

    Args:
        frontier: the sources, with the next offset of each.
        label_lag_ms: delay from a label's arrival to its effect, ms.
        arrivals: running maximum of record time per source so far, ms; for a restore.
        last: the last place already folded; for a restore.
        places: where records that came out of turn were folded before.
        folded_first: a frontier that is known to have been folded before everything beyond it.
        order_wait_ms: how far behind the moment of asking an idle partition's bound stays, ms.
        order_stall_ms: how long a partition that is behind or without a leader is waited for, ms.
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
        """Records in hand that are not released yet."""
        return sum(len(q.items) for q in self._queues.values())

    @property
    def n_bytes(self) -> int:
        """What those take in memory, roughly."""
        return sum(q.n_bytes for q in self._queues.values())

    @property
    def last(self) -> Key | None:
        """The last place released."""
        return self._last

    def add(self, source: Source, records: Iterable[Received]) -> None:
        """Take records of a source in hand, in the order of their offsets."""
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
        """The broker answered, to a question of `asked_ms`, that `source` ends at `end`; we have read to `position`.

        Only a live stream (record time = append time) bounds an idle partition by the moment of asking.
        """
        queue = self._queues[source]
        queue.position = max(queue.position, position)
        if queue.position >= end and live:
            queue.bound_ms = max(queue.bound_ms, asked_ms - self._order_wait_ms)

    def mark(self, mark: Mark) -> None:
        """Take a replay's clock mark; marks come in rising time."""
        self._marks.append(mark)

    def tick(self, now_ms: float) -> None:
        """Count the time that sources keep the others waiting; a step counts 1 s at most (we may have stood still)."""
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
        """Sources with more than `limit` bytes in hand that others hold back: reading on can wait, memory cannot."""
        full = {s for s, q in self._queues.items() if q.n_bytes > limit}
        if not full:
            return full
        self._reach_marks()
        least = self._least()
        return {s for s in full if self._queues[s].effective_bound_ms > least}

    def release(self) -> list[Item]:
        """Everything that can no longer be preceded, in the one order."""
        self._reach_marks()
        if self._prefix is not None:
            items = self._take(self._least(), self._prefix)
            if not self._prefix_done():
                return items
            self._prefix = None
            return items + self._take(self._least(), None)
        return self._take(self._least(), None)

    def _reach_marks(self) -> None:
        """A mark counts for a source once its end offset is in hand."""
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
        """Below this nothing can come any more; of a prefix: nothing that belongs to it."""
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
    """All sources of a stream: its event partitions and, where it has labels, its label partitions."""
    kinds: Sequence[int] = (LABEL, EVENT) if labels else (EVENT,)
    return [Source(kind, p) for kind in kinds for p in range(n_partitions)]


def by_kind(values: Mapping[Source, int], n_partitions: int) -> dict[str, list[int]]:
    """{"events": [..], "labels": [..]} of a mapping by source; JSON's form of a frontier.

    >>> by_kind({Source(EVENT, 0): 3, Source(EVENT, 1): 5}, 2)
    {'events': [3, 5]}
    """
    return {
        KIND_NAMES[kind]: [values[Source(kind, p)] for p in range(n_partitions)]
        for kind in (LABEL, EVENT)
        if Source(kind, 0) in values
    }


def from_kinds(frontier: Mapping[Any, Sequence[int]]) -> dict[Source, int]:
    """The frontier that `by_kind` wrote.

    >>> from_kinds({"events": [3]})
    {Source(kind=1, partition=0): 3}
    """
    return {Source(KIND_NAMES.index(kind), p): offset for kind, row in frontier.items() for p, offset in enumerate(row)}
