"""A replica without its broker: one order -> contract -> fold -> what each partition's outbox gets, and restarts."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pipelines.contracts.decode import Decoder
from pipelines.contracts.messages import Progress
from pipelines.faults import Fault, no_fault
from pipelines.features.snapshot import Snapshot
from pipelines.features.state import State
from pipelines.live.metrics import ScorerCounters
from pipelines.live.outbox import Put
from pipelines.order import Frontier, Item, Key, Merge, Places, Source, by_kind, from_kinds

CHUNK = 2_000


class Replica:
    """Folds records in the one order, so that a restart agrees with everything that was published before.

    What was published depends on three things, and a restart takes them from the progress records: on the log, on the
    *promise* (the furthest frontier told: what lies in it is folded before everything else), and on the *places* told
    of what came out of turn. A promise never shrinks, and a place is told in the transaction that first depends on it.

    Args:
        state: blank, or restored from a snapshot that is not ahead of `progress`.
        progress: the last progress record of every partition.
        told: every place that progress records told of what `needed_places(state)` names.
        order_wait_ms: how far behind the moment of asking an idle partition's bound stays, ms.
    """

    def __init__(
        self, state: State, progress: Mapping[int, Progress], told: Places, *, order_wait_ms: int = 50
    ) -> None:
        self.state = state
        self.counters = ScorerCounters()
        self._decoder = Decoder(state.stream)
        self._published = np.array([progress[p].next_offset for p in range(state.n_partitions)], np.int64)
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
            order_wait_ms=order_wait_ms,
        )

    def restored_puts(self) -> list[Put]:
        """What a snapshot's state owes every outbox: places that nobody has told yet."""
        return [Put(self._decoder.block(()), self.state.places, self._frontier())] * self.state.n_partitions

    def advance(self, *, chunk: int = CHUNK, fault: Fault = no_fault) -> Iterator[list[Put]]:
        """Fold what can no longer be preceded; per chunk, one put for each partition's outbox.

        An exception on the way, here or where a put is taken, leaves half a step: no snapshot can be taken any more.
        """
        with self.state.step():
            released = self.merge.release()
            for start in range(0, len(released), chunk):
                yield self._fold(released[start : start + chunk], fault)

    def n_untold(self, progress: Mapping[int, Progress]) -> int:
        """Number of places that a snapshot has to hold, because `progress` has not told them."""
        told = furthest(progress) or {}
        self.state.places = [p for p in self.state.places if p[2] >= told.get(Source(p[0], p[1]), 0)]
        return len(self.state.places)

    def snapshot(self, progress: Mapping[int, Progress]) -> Snapshot:
        """The state as of now; what `progress` has told meanwhile need not be told again."""
        self.n_untold(progress)
        return self.state.snapshot()

    def _fold(self, items: Sequence[Item], fault: Fault) -> list[Put]:
        """Decode and fold; each outbox gets the events of its partition that are not out yet."""
        state, counters = self.state, self.counters
        block = self._decoder.block(items)
        fault("mid_fold")
        block = state.fold(block)
        state.passed(items)
        places = [
            [*item.source, item.record.offset, *item.key]
            for item in items
            if item.out_of_turn and (*item.source, item.record.offset) not in self._told
        ]
        state.places += places
        frontier = self._frontier()
        # What is not waiting was published before the restart, or lies before the stream was scored.
        waiting = block.is_event & (block.offset >= self._published[block.partition])
        counters.n_folded += len(items)
        counters.n_out_of_turn += len(places)
        counters.n_unknown_fields += int(block.has_unknown_fields.sum())
        counters.n_broken_labels += int((~block.is_event & ~block.is_accepted).sum())
        counters.n_late += int((waiting & (block.late_ms > 0)).sum())
        return [
            Put(block.take(np.flatnonzero(waiting & (block.partition == p))), places, frontier)
            for p in range(state.n_partitions)
        ]

    def _frontier(self) -> dict[str, list[int]]:
        """What a restart has to fold before everything else; never less than what was promised before this one."""
        promised = self._promised
        frontier = {s: max(offset, promised.get(s, 0)) for s, offset in self.state.frontier.items()}
        return by_kind(frontier, self.state.n_partitions)


def furthest(progress: Mapping[int, Progress]) -> Frontier | None:
    """What is known to have been folded before everything beyond it, None where nothing was published yet."""
    frontiers = [from_kinds(p.frontier) for p in progress.values() if p.frontier is not None]
    every = {s for f in frontiers for s in f}  # records from before partitions were added know fewer of them
    return {s: max(f.get(s, 0) for f in frontiers) for s in every} if frontiers else None


def needed_places(state: State) -> Frontier:
    """From where on the places of records matter to a restart: what it folds again, or has folded and not told."""
    waiting = [(Source(kind, p), offset) for kind, p, offset, *_ in state.places]
    return {s: min([offset, *(at for source, at in waiting if source == s)]) for s, offset in state.frontier.items()}


def tells_more(progress: Progress, needed: Frontier) -> bool:
    """Whether a progress record, or one before it, may tell a place at or behind a frontier."""
    if not progress.n_out_of_turn:
        return False
    told = progress.frontier
    return told is None or any(offset > needed.get(s, 0) for s, offset in from_kinds(told).items())


def is_ahead(frontier: Frontier, progress: Mapping[int, Progress]) -> bool:
    """Whether a snapshot holds events that are not out: they would be lost, and their order may come out otherwise."""
    return any(frontier.get(Source(1, p), 0) > record.next_offset for p, record in progress.items())


def places_told(progress: Progress) -> dict[tuple[int, int, int], Key]:
    """(kind, partition, offset) -> place, of what one progress record tells."""
    return {(kind, p, offset): Key(*key) for kind, p, offset, *key in progress.out_of_turn}
