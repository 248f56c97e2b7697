"""A replica without its broker: one order -> contract -> fold -> outboxes; also the rules of a restart."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np

from pipelines.contracts.decode import Decoder
from pipelines.contracts.messages import Progress
from pipelines.faults import Fault, no_fault
from pipelines.features.state import Base, State, StateCopy
from pipelines.live.metrics import ScorerCounters
from pipelines.live.outbox import Put
from pipelines.order import NO_RECORDS, Frontier, Key, Merge, Places, Run, Source, by_kind, from_kinds

CHUNK = 4_000


class Replica:
    """Folds records in the one order, so that a restart agrees with everything that was published before.

    Published scores depend on the log and on two things that a restart reads from the progress records: the *promise*
    (the furthest recorded frontier; everything before it is folded first) and the *places* of out-of-turn records.
    A promise never shrinks, and a place is recorded in the transaction that first depends on it.

    Args:
        state: blank, or restored from a snapshot that is not ahead of `progress`.
        progress: the last progress record of every partition that the state folds.
        told: all places recorded in progress records for the records that `needed_places(state)` names.
        order_wait_ms: how far the bound of an idle partition stays behind the time of the request, ms.
        own_clock: nobody else folds these partitions: their order needs no marks.
        counters: counts here, together with others; its own by default.
        refused: what `refused_earlier` says of the events to be folded again.
    """

    def __init__(
        self,
        state: State,
        progress: Mapping[int, Progress],
        told: Places,
        *,
        order_wait_ms: int = 50,
        own_clock: bool = False,
        counters: ScorerCounters | None = None,
        refused: Mapping[tuple[int, int], str] = MappingProxyType({}),
    ) -> None:
        self.state, self._own_clock = state, own_clock
        self.counters = ScorerCounters() if counters is None else counters
        self._decoder = Decoder(state.stream, refused)
        self.published = np.zeros(state.n_partitions, np.int64)
        for p in state.partitions:
            self.published[p] = progress[p].next_offset
        self._promised = furthest(progress) or {}
        self._told = told
        state.places = [place for place in state.places if (*place[:3],) not in told]
        self.merge = Merge(
            state.frontier,
            label_lag_ms=state.stream.labels.lag_ms if state.stream.labels else 0,
            arrivals=state.arrivals,
            last=state.last,
            places={
                record: place for record, place in told.items() if record[2] >= state.frontier[Source(*record[:2])]
            },
            folded_first=self._promised or None,
            clock_offset=max(state.clock_offset, *(record.clock_offset for record in progress.values())),
            order_wait_ms=order_wait_ms,
        )

    def restored_puts(self) -> list[Put]:
        """Puts after a restore, one per partition: the places that are not recorded in progress yet."""
        put = Put(self._decoder.block(NO_RECORDS), list(self.state.places), self._frontier(), self.state.clock_offset)
        return [put] * len(self.state.partitions)

    def advance(self, *, chunk: int = CHUNK, fault: Fault = no_fault) -> Iterator[list[Put]]:
        """Fold the records that no later record can precede; yields one put per partition for each chunk.

        After an exception, here or in the consumer of a put, the step is incomplete and no snapshot can be taken.
        """
        with self.state.step():
            clock_offset = self.merge.clock_offset
            released = self.merge.release()
            if self._own_clock:
                released = Run.concat([released, self.merge.release_alone()])
            for start in range(0, len(released), chunk):
                yield self._fold(released.take(slice(start, start + chunk)), clock_offset, fault)
            self.state.clock_offset = self.merge.clock_offset

    def n_untold(self, progress: Mapping[int, Progress]) -> int:
        """Number of places that a snapshot must contain, because they are not recorded in `progress`."""
        told = furthest(progress) or {}
        self.state.places = [p for p in self.state.places if p[2] >= told.get(Source(p[0], p[1]), 0)]
        return len(self.state.places)

    def copy(self, progress: Mapping[int, Progress], since: Base | None = None) -> StateCopy:
        """Begin a copy of the current state, without the places that have been recorded in `progress` meanwhile."""
        self.n_untold(progress)
        return self.state.copy(since)

    def _fold(self, run: Run, clock_offset: int, fault: Fault) -> list[Put]:
        """Decode and fold; each outbox gets the unpublished events of its partition."""
        state, counters = self.state, self.counters
        block = self._decoder.block(run)
        fault("mid_fold")
        block = state.fold(block)
        state.passed(run)
        late = np.flatnonzero(run.out_of_turn).tolist()
        places = [[*record, *run.place_of(row)] for row in late if (record := _record_of(run, row)) not in self._told]
        state.places += places
        frontier = self._frontier()
        # The other events were published before the restart, or are before the start of scoring.
        waiting = block.is_event & (block.offset >= self.published[block.partition])
        counters.n_folded += len(run)
        counters.n_out_of_turn += len(places)
        counters.n_unknown_fields += int(block.has_unknown_fields.sum())
        counters.n_broken_labels += int((~block.is_event & ~block.is_accepted).sum())
        counters.n_late += int((waiting & (block.late_ms > 0)).sum())
        return [
            Put(block.take(np.flatnonzero(waiting & (block.partition == p))), places, frontier, clock_offset)
            for p in state.partitions
        ]

    def _frontier(self) -> dict[str, list[int]]:
        """The frontier that a restart must fold first; at least the promise made before this restart."""
        promised = self._promised
        frontier = {s: max(offset, promised.get(s, 0)) for s, offset in self.state.frontier.items()}
        return by_kind(frontier, self.state.n_partitions)


def _record_of(run: Run, row: int) -> tuple[int, int, int]:
    return int(run.kind[row]), int(run.partition[row]), int(run.offset[row])


def furthest(progress: Mapping[int, Progress]) -> Frontier | None:
    """The furthest recorded frontier: everything before it was folded first. None if nothing was published yet."""
    frontiers = [from_kinds(p.frontier) for p in progress.values() if p.frontier is not None]
    every = {s for f in frontiers for s in f}  # records from before partitions were added have fewer
    return {s: max(f.get(s, 0) for f in frontiers) for s in every} if frontiers else None


def needed_places(state: State) -> Frontier:
    """The frontier from which a restart needs places: records that it folds again, or folded but not yet recorded."""
    waiting = [(Source(kind, p), offset) for kind, p, offset, *_ in state.places]
    return {s: min([offset, *(at for source, at in waiting if source == s)]) for s, offset in state.frontier.items()}


def tells_more(progress: Progress, needed: Frontier) -> bool:
    """Whether a progress record, or an earlier one, may contain a place at or beyond a frontier."""
    if not progress.n_out_of_turn:
        return False
    told = progress.frontier
    return told is None or any(offset > needed.get(s, 0) for s, offset in from_kinds(told).items())


def is_ahead(frontier: Frontier, progress: Mapping[int, Progress]) -> bool:
    """Whether a snapshot contains unpublished events: they would be lost, and their order may change."""
    return any(frontier.get(Source(1, p), 0) > record.next_offset for p, record in progress.items())


def places_told(progress: Progress) -> dict[tuple[int, int, int], Key]:
    """(kind, partition, offset) -> place, from one progress record."""
    return {(kind, p, offset): Key(*key) for kind, p, offset, *key in progress.out_of_turn}
