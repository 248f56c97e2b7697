"""Snapshots of the state, in memory or in a file, and the folder that stores them."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import RestoreError
from pipelines.faults import Fault, no_fault
from pipelines.features import pieces
from pipelines.features.pieces import Pieces
from pipelines.order import Source, from_kinds

log = logging.getLogger(__name__)

KEPT = 4


@dataclass(frozen=True)
class Snapshot:
    """A copy of a state: metadata for JSON, and arrays in memory, or on disk until they are restored."""

    meta: dict[str, Any]
    arrays: dict[str, Pieces]

    @property
    def frontier(self) -> dict[Source, int]:
        return from_kinds(self.meta["frontier"])

    def write(self, path: Path, *, fault: Fault = no_fault) -> None:
        """Write atomically: after a crash or power cut, the file is complete or absent."""
        pieces.write(path, self.meta, self.arrays, fault=fault)

    @classmethod
    def read(cls, path: Path) -> "Snapshot":
        """Read a snapshot.

        Raises:
            RestoreError: the file is damaged, or was written by another version.
        """
        return cls(*pieces.read(path))


class SnapshotStore:
    """A folder of snapshots that keeps the newest ones.

    File names contain the number of records folded, so their order does not depend on the clock.

    Args:
        folder: created if it does not exist.
        keep: number of snapshots to keep.
    """

    def __init__(self, folder: Path, *, keep: int = KEPT, fault: Fault = no_fault) -> None:
        self.folder, self._keep, self._fault = folder, keep, fault

    def write(self, snapshot: Snapshot) -> Path:
        """Store a snapshot. If this fails, no partial file is left."""
        path = self.folder / f"{sum(snapshot.frontier.values()):020d}.snapshot"
        self.folder.mkdir(parents=True, exist_ok=True)
        snapshot.write(path, fault=self._fault)
        for old in self._paths()[self._keep :]:
            old.unlink(missing_ok=True)
        return path

    def newest_first(self) -> Iterator[tuple[Path, Snapshot]]:
        """All readable snapshots; a warning names the others."""
        for path in self._paths():
            try:
                yield path, Snapshot.read(path)
            except (RestoreError, OSError, ValueError, KeyError) as error:
                log.warning("snapshot %s is not used: %s", path.name, error)

    def clear_unfinished(self) -> None:
        """Delete files left incomplete by a crash, not those that another replica is writing."""
        pieces.clear_unfinished(self.folder)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("*.snapshot"), reverse=True)
