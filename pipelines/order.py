"""The one order: events and labels of all partitions, merged by arrival into one reproducible sequence.

Records are sorted by (effective time, labels before events, partition, offset). The effective time of an event is its
arrival: the running maximum of the record timestamps of its partition. That of a label is its arrival plus `label_lag`.

What may be released is decided by *marks* alone: a time T and the end offset of every source. All records before these
offsets and below T are released, whatever else has been read. All replicas of a stream read the same marks in the same
sequence (from the clock topic), so they fold in the same order, even if a record comes later than a mark expected.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.columns import Columns
from pipelines.record import Received

LABEL, EVENT = 0, 1
KIND_NAMES = ("labels", "events")
_FOREVER = math.inf
_RECORD_BYTES = 160  # measured memory of a buffered record, without its key and value


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Columns):
    """n records with their places, column by column: of one source by their offsets, or in the one order.

    Shapes: (n,). The natural place of a record is `Key(effective_ms, kind, partition, offset)`, and `place` is None.
    One that came after that was passed is out of turn: it has a later place. `n_bytes` is approximate memory.
    """

    kind: NDArray[np.int8]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    arrival_ms: NDArray[np.int64]
    effective_ms: NDArray[np.int64]  # of the place
    out_of_turn: NDArray[np.bool_]
    place: NDArray[np.object_]
    key: NDArray[np.object_]  # bytes or None, like the value
    value: NDArray[np.object_]
    unreadable: NDArray[np.object_]  # why the record cannot be read, or None
    n_bytes: NDArray[np.int64]

    def place_of(self, row: int) -> Key:
        """The place of one record."""
        natural = self.effective_ms[row], self.kind[row], self.partition[row], self.offset[row]
        return self.place[row] or Key(*map(int, natural))

    def placed(self, places: Mapping[int, Key]) -> Self:
        """A copy in which some rows have other places."""
        effective_ms, place, out_of_turn = self.effective_ms.copy(), self.place.copy(), self.out_of_turn.copy()
        for row, key in places.items():
            effective_ms[row], place[row], out_of_turn[row] = key.effective_ms, key, True
        return replace(self, effective_ms=effective_ms, place=place, out_of_turn=out_of_turn)

    def in_order(self) -> Self:
        """The rows by their places; those of each source ascend, and the sources too."""
        if self.out_of_turn.any():
            return self.take(np.array(sorted(range(len(self)), key=self.place_of), np.int64))
        if len(self) < 2 or (self.effective_ms[1:] >= self.effective_ms[:-1]).all():
            return self
        return self.take(np.argsort(self.effective_ms, kind="stable"))


# Not zip(*records): its iterators would trigger the garbage collector.
_offset_of = attrgetter("offset")
_CELLS = tuple(map(attrgetter, ("offset", "timestamp_ms", "key", "value", "unreadable")))


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
        >>> clock.run([Received("events", 0, offset, ms, None, None) for offset, ms in stamps]).arrival_ms.tolist()
        [100, 100, 101]
    """

    def __init__(self, source: Source, *, lag_ms: int = 0, arrival_ms: int = 0) -> None:
        self.source, self.lag_ms, self.arrival_ms = source, lag_ms, arrival_ms

    def run(self, records: Sequence[Received]) -> Run:
        """The records at their natural places. The arrival is the running maximum of the timestamps."""
        n = len(records)
        offsets, stamps, keys, values, unreadable = (list(map(cell_of, records)) for cell_of in _CELLS)
        arrival_ms = np.maximum.accumulate(np.maximum(np.array(stamps, np.int64), self.arrival_ms))
        if n:
            self.arrival_ms = int(arrival_ms[-1])
        return Run(
            kind=np.full(n, self.source.kind, np.int8),
            partition=np.full(n, self.source.partition, np.int32),
            offset=np.array(offsets, np.int64),
            arrival_ms=arrival_ms,
            effective_ms=arrival_ms + self.lag_ms,
            out_of_turn=np.zeros(n, np.bool_),
            place=np.full(n, None, np.object_),
            key=_objects(keys),
            value=_objects(values),
            unreadable=_objects(unreadable),
            n_bytes=_RECORD_BYTES + _sizes(keys) + _sizes(values),
        )


def _objects(cells: Sequence[object]) -> NDArray[np.object_]:
    column = np.empty(len(cells), np.object_)
    column[:] = cells
    return column


def _sizes(cells: Sequence[bytes | None]) -> NDArray[np.int64]:
    return np.fromiter((len(cell or b"") for cell in cells), np.int64, len(cells))


class _Queue(SourceClock):
    """The buffered records of one source, and a lower bound for the timestamps still to come."""

    def __init__(self, source: Source, *, lag_ms: int, arrival_ms: int, position: int) -> None:
        super().__init__(source, lag_ms=lag_ms, arrival_ms=arrival_ms)
        self._runs: deque[Run] = deque()
        self.n_waiting = self.n_bytes = 0
        self.position = position
        self.bound_ms: float = -_FOREVER  # no later record has a timestamp below this
        self.held_back_ms: float = -_FOREVER  # the bound at which the other sources have been waiting
        self.waited_ms = 0.0
        self.waived = False

    @property
    def effective_bound_ms(self) -> float:
        return max(self.bound_ms, self.arrival_ms if self.n_waiting else -_FOREVER) + self.lag_ms

    @property
    def first_ms(self) -> float:
        """Effective time of the first record."""
        return int(self._runs[0].effective_ms[0]) if self._runs else _FOREVER

    def waiting(self, offset: int) -> tuple[int, int | None]:
        """Number of records at or beyond an offset, and the arrival of the first one, ms."""
        runs = [run for run in self._runs if run.offset[-1] >= offset]
        if not runs:
            return 0, None
        n_before = int(np.searchsorted(runs[0].offset, offset))
        return sum(map(len, runs)) - n_before, int(runs[0].arrival_ms[n_before])

    def add(self, records: Sequence[Received], places: dict[tuple[int, int, int], Key]) -> None:
        """Append records, but not those that are read again after a seek; uses up the places of those added."""
        offsets = np.fromiter(map(_offset_of, records), np.int64, len(records))
        if (np.diff(offsets, prepend=self.position - 1) <= 0).any():
            records = [record for record in records if self._is_next(record)]
        if not records:
            return
        run = self.run(records)
        self.position = int(run.offset[-1]) + 1
        if places:
            told = ((row, places.pop((*self.source, offset), None)) for row, offset in enumerate(run.offset.tolist()))
            run = run.placed({row: place for row, place in told if place is not None})
        self._runs.append(run)
        self._count(run, 1)

    def _is_next(self, record: Received) -> bool:
        if record.offset < self.position:
            return False
        self.position = record.offset + 1
        return True

    def _count(self, run: Run, sign: int) -> None:
        self.n_waiting += sign * len(run)
        self.n_bytes += sign * int(run.n_bytes.sum())

    def take(self, below_ms: float, end: int) -> list[Run]:
        """Remove and return the first records, up to one at or beyond an effective time or an offset."""
        taken: list[Run] = []
        while self._runs:
            run = self._runs.popleft()
            inside = (run.effective_ms < below_ms) & (run.offset < end)
            if inside.all():
                taken.append(run)
                continue
            n = int(inside.argmin())
            self._runs.appendleft(run.take(slice(n, None)))
            if n:
                taken.append(run.take(slice(n)))
            break
        for run in taken:
            self._count(run, -1)
        return taken


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
            for s, offset in sorted(frontier.items())
        }
        self._last = last
        self._places = dict(places or {})
        self._order_wait_ms = order_wait_ms
        self._order_stall_ms = order_stall_ms
        self._is_restoring = bool(folded_first)
        self._marks: deque[Mark] = deque([Mark(_FOREVER, folded_first, clock_offset)] if folded_first else [])
        self.clock_offset = self._marked_until = clock_offset  # of the first mark that is not done, and to be added
        self._ticked_ms: float | None = None
        self.n_out_of_turn = 0

    @property
    def n_waiting(self) -> int:
        """Number of buffered records that are not released yet."""
        return sum(q.n_waiting for q in self._queues.values())

    def waiting(self, source: Source, *, offset: int) -> tuple[int, int | None]:
        """Number of buffered records of a source at or beyond an offset, and the arrival of the first one, ms."""
        return self._queues[source].waiting(offset)

    @property
    def n_bytes(self) -> int:
        """Approximate memory of the buffered records."""
        return sum(q.n_bytes for q in self._queues.values())

    @property
    def last(self) -> Key | None:
        """The last place released."""
        return self._last

    def add(self, source: Source, records: Sequence[Received]) -> None:
        """Buffer records of a source, in the order of their offsets."""
        self._queues[source].add(records, self._places)

    def observe(self, source: Source, *, position: int, end: int, asked_ms: float, live: bool) -> None:
        """Record the broker's answer: asked at `asked_ms`, `source` ends at `end` and has been read up to `position`.

        Only in a live stream (record time = append time) is an idle partition bounded by the time of the request.
        """
        queue = self._queues[source]
        queue.position = max(queue.position, position)
        if queue.position >= end and live:
            queue.bound_ms = max(queue.bound_ms, asked_ms - self._order_wait_ms)

    def mark(self, mark: Mark) -> None:
        """Add the next mark; one that is read again is ignored."""
        if mark.next_offset == 0 or mark.next_offset > self._marked_until:
            self._marks.append(mark)
            self._marked_until = max(self._marked_until, mark.next_offset)

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
        return bool(self._marks) or any(q.first_ms < least for q in self._queues.values())

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

    def release(self) -> Run:
        """All records that the marks release, in the one order."""
        runs: list[Run] = []
        while self._marks:
            mark = self._marks[0]
            bound = self._bound(mark)
            runs.append(self._take(min(bound, mark.below_ms), mark.ends))
            if bound < _FOREVER:
                break
            self._marks.popleft()
            self.clock_offset = max(self.clock_offset, mark.next_offset)
            self._is_restoring = False
        return Run.concat(runs or [NO_RECORDS])

    def release_alone(self) -> Run:
        """All records that no later record can precede, where nobody else folds these sources: without a mark.

        The records of the source with the lowest bound need to wait for the other sources only, because its own later
        records are behind them.
        """
        if self._marks:
            return NO_RECORDS
        ends = {s: q.position for s, q in self._queues.items()}
        least = self._least()
        runs = [self._take(least, ends)]
        slowest = [q for q in self._queues.values() if not q.waived and q.effective_bound_ms == least]
        if len(slowest) == 1:
            others = [q for q in self._queues.values() if q is not slowest[0]]
            bounds = (min(q.first_ms, _FOREVER if q.waived else q.effective_bound_ms) for q in others)
            runs.append(self._take(min(bounds, default=_FOREVER), ends))
        return Run.concat(runs)

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

    def _take(self, below_ms: float, ends: Frontier) -> Run:
        runs = [run for source, q in self._queues.items() for run in q.take(below_ms, ends.get(source, 0))]
        taken = Run.concat(runs or [NO_RECORDS]).in_order()
        if len(taken):
            if self._last is not None and taken.place_of(0) < self._last:
                taken = taken.placed(self._out_of_turn(taken, self._last))
            self._last = taken.place_of(len(taken) - 1)
        return taken

    def _out_of_turn(self, taken: Run, last: Key) -> dict[int, Key]:
        """The new places of the first records of an ordered run: those whose place has been passed."""
        places: dict[int, Key] = {}
        for row in range(len(taken)):
            if taken.place_of(row) >= last:
                break
            last = places[row] = last._replace(seq=last.seq + 1)
            self.n_out_of_turn += 1
        return places


NO_RECORDS = SourceClock(Source(EVENT, 0)).run([])


def sources(n_partitions: int, *, labels: bool) -> list[Source]:
    """All sources of a stream: its event partitions and, if it has labels, its label partitions."""
    kinds: Sequence[int] = (LABEL, EVENT) if labels else (EVENT,)
    return [Source(kind, p) for kind in kinds for p in range(n_partitions)]


def by_kind(values: Mapping[Source, int], n_partitions: int) -> dict[str, list[int]]:
    """A mapping by source as {"events": [..], "labels": [..]}, the JSON form of a frontier; 0 for a missing partition.

    >>> by_kind({Source(EVENT, 0): 3, Source(EVENT, 1): 5}, 2)
    {'events': [3, 5]}
    """
    return {
        KIND_NAMES[kind]: [values.get(Source(kind, p), 0) for p in range(n_partitions)]
        for kind in (LABEL, EVENT)
        if any(source.kind == kind for source in values)
    }


def from_kinds(frontier: Mapping[Any, Sequence[int]]) -> dict[Source, int]:
    """The frontier in the JSON form of `by_kind`.

    >>> from_kinds({"events": [3]})
    {Source(kind=1, partition=0): 3}
    """
    return {Source(KIND_NAMES.index(kind), p): offset for kind, row in frontier.items() for p, offset in enumerate(row)}
