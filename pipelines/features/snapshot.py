"""A snapshot: the facts of a state at one moment, in memory or in a file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.faults import Fault, no_fault
from pipelines.features import pieces
from pipelines.features.pieces import Pieces
from pipelines.order import Source, from_kinds


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
