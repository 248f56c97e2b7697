"""Snapshots: the facts of a state at one moment, in memory or in a file, and the folder that keeps them."""

import logging
from collections.abc import Iterator
from contextlib import suppress
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
    """A state's facts: JSON-able `meta` and arrays, which lie in memory, or on disk until they are restored."""

    meta: dict[str, Any]
    arrays: dict[str, Pieces]

    @property
    def frontier(self) -> dict[Source, int]:
        return from_kinds(self.meta["frontier"])

    def write(self, path: Path, *, fault: Fault = no_fault) -> None:
        """Write so that the file is either whole or absent, also after a power cut."""
        pieces.write(path, self.meta, self.arrays, fault=fault)

    @classmethod
    def read(cls, path: Path) -> "Snapshot":
        """Read a snapshot.

        Raises:
            RestoreError: the file is damaged, or was written by another version.
        """
        return cls(*pieces.read(path))


class SnapshotStore:
    """A folder of snapshots, of which the newest few are kept.

    They are named after the number of records folded, so that names sort as the fold went, whatever the clock does.

    Args:
        folder: created where it does not exist.
        keep: how many to keep.
    """

    def __init__(self, folder: Path, *, keep: int = KEPT, fault: Fault = no_fault) -> None:
        self.folder, self._keep, self._fault = folder, keep, fault

    def write(self, snapshot: Snapshot) -> Path:
        """Keep a snapshot; where that fails, nothing of it is left."""
        path = self.folder / f"{sum(snapshot.frontier.values()):020d}.snapshot"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            snapshot.write(path, fault=self._fault)
            for old in self._paths()[self._keep :]:
                old.unlink(missing_ok=True)
        except BaseException:
            with suppress(OSError):
                path.with_suffix(".part").unlink(missing_ok=True)
            raise
        return path

    def newest_first(self) -> Iterator[tuple[Path, Snapshot]]:
        """Every snapshot that can be read; the others are named in a warning."""
        for path in self._paths():
            try:
                yield path, Snapshot.read(path)
            except (RestoreError, OSError, ValueError, KeyError) as error:
                log.warning("snapshot %s is not used: %s", path.name, error)

    def clear_unfinished(self) -> None:
        """Delete what a crash left half written."""
        for unfinished in self.folder.glob("*.part"):
            with suppress(OSError):  # a full or read-only disk is reported when a snapshot is written
                unfinished.unlink()

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("*.snapshot"), reverse=True)
