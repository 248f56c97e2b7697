"""Shards: partitions that are folded together, in one order and with one state."""

from collections.abc import Sequence
from pathlib import Path

from pipelines.contracts.stream import Stream
from pipelines.live.replica import Replica
from pipelines.live.snapshots import SnapshotSchedule
from pipelines.order import Frontier


def shards_of(stream: Stream, n_partitions: int) -> list[tuple[int, ...]]:
    """The partitions that are folded together: all, or each for itself if every window is about the key."""
    every = tuple(range(n_partitions))
    return [(p,) for p in every] if stream.folds_by_partition else [every]


def folder_of(snapshots: Path, stream: Stream, partitions: Sequence[int]) -> Path:
    """Folder of the snapshots of partitions that are folded together."""
    return snapshots / f"partition-{partitions[0]}" if stream.folds_by_partition else snapshots


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
