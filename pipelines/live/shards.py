"""Shards: partitions that are folded together, in one order and with one state."""

from collections.abc import Sequence
from pathlib import Path

from pipelines.contracts.stream import Stream
from pipelines.features.bucket import Place
from pipelines.live.replica import Replica
from pipelines.live.snapshots import SnapshotSchedule
from pipelines.order import Frontier


def shards_of(stream: Stream, n_partitions: int) -> list[tuple[int, ...]]:
    """The partitions that are folded together: all, or each for itself if every window is about the key."""
    every = tuple(range(n_partitions))
    return [(p,) for p in every] if stream.folds_by_partition else [every]


def place_of(snapshots: Path | Place, stream: Stream, partitions: Sequence[int]) -> Place:
    """Where the snapshots of partitions lie that are folded together."""
    every = Place.of(snapshots)
    return every / f"partition-{partitions[0]}" if stream.folds_by_partition else every


class Shard:
    """Partitions that this process folds together: their order and state, and the snapshots of it.

    Args:
        ends: end offset of each source when the state was restored.
    """

    def __init__(self, replica: Replica, snapshots: SnapshotSchedule, *, ends: Frontier) -> None:
        self.replica, self.snapshots, self.ends = replica, snapshots, ends
        self.caught_up = False  # whether everything before these ends was read

    @property
    def partitions(self) -> tuple[int, ...]:
        """The numbers of its partitions."""
        return self.replica.state.partitions
