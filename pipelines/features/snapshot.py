"""Snapshots of the state, in memory or in a file, and the folder that stores them."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import RestoreError
from pipelines.faults import Fault, no_fault
from pipelines.features import draft, pieces
from pipelines.features.draft import Draft
from pipelines.features.pieces import Pieces
from pipelines.order import Frontier, Source, from_kinds

log = logging.getLogger(__name__)

KEPT = 4


@dataclass(frozen=True)
class Snapshot:
    """A copy of a state: metadata for JSON, and arrays in memory, or on disk until they are restored.

    If there is a base, `meta["base"]` has its id and the name of its file.
    """

    meta: dict[str, Any]
    arrays: dict[str, Pieces]
    base: "Snapshot | None" = None  # if the arrays have only what changed since that one

    @property
    def frontier(self) -> dict[Source, int]:
        return frontier_of(self.meta)

    def write(self, path: Path, *, fault: Fault = no_fault) -> None:
        """Write atomically: after a crash or power cut, the file is complete or absent."""
        draft.write(path, self.meta, self.arrays, fault=fault)

    @classmethod
    def read(cls, path: Path) -> "Snapshot":
        """Read a snapshot, and its base.

        Raises:
            RestoreError: a file is damaged, or was written by another version, or the base is another one.
            FileNotFoundError: there is no file, or none of the base.
        """
        meta, arrays = pieces.read(path)
        if (told := meta.get("base")) is None:
            return cls(meta, arrays)
        if told["file"] == path.name:
            raise RestoreError(f"{path.name} has only what changed since itself")
        base = cls.read(path.with_name(told["file"]))
        if base.meta["id"] != told["id"]:
            raise RestoreError(f"{path.name} has only what changed since another {told['file']}")
        return cls(meta, arrays, base)


def frontier_of(meta: Mapping[str, Any]) -> dict[Source, int]:
    """The next offset of every source that a snapshot has, from its metadata."""
    partitions = meta.get("partitions")
    frontier = from_kinds(meta["frontier"])
    return {s: offset for s, offset in frontier.items() if partitions is None or s.partition in partitions}


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
        path = self._path(snapshot.frontier)
        snapshot.write(path, fault=self._fault)
        self.tidy()
        return path

    def draft(self, frontier: Frontier) -> Draft:
        """Begin to write a snapshot with this frontier."""
        return Draft(self._path(frontier), fault=self._fault)

    def tidy(self, is_usable: Callable[[Frontier], bool] = lambda _: True) -> None:
        """Delete all but the newest ones and the newest usable one, which those that are ahead must not displace."""
        paths = self._paths()
        old = paths[self._keep :]
        bases = {self._base_of(path) for path in paths[: self._keep]}
        if not any(self._is(is_usable, path) for path in paths[: self._keep]):
            spared = next((path for path in old if self._is(is_usable, path)), None)
            old = [path for path in old if path != spared]
            bases.add(self._base_of(spared) if spared else None)
        for path in old:
            if path.name not in bases:
                path.unlink(missing_ok=True)

    def has(self, file: str, id: str) -> bool:
        """Whether the store has a snapshot in this file."""
        return self._told(self.folder / file).get("id") == id

    def file_of(self, frontier: Frontier) -> str:
        """Name of the file of a snapshot with this frontier."""
        return f"{sum(frontier.values()):020d}.snapshot"

    def _base_of(self, path: Path) -> str | None:
        return (self._told(path).get("base") or {}).get("file")

    def _told(self, path: Path) -> dict[str, Any]:
        """Metadata of a file; nothing if it cannot be read."""
        try:
            return pieces.read_meta(path)
        except (RestoreError, OSError, ValueError):
            return {}

    def _is(self, usable: Callable[[Frontier], bool], path: Path) -> bool:
        told = self._told(path)
        return "frontier" in told and usable(frontier_of(told))

    def _path(self, frontier: Frontier) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / self.file_of(frontier)

    def newest_first(self) -> Iterator[tuple[Path, Snapshot]]:
        """All readable snapshots; a warning names the others."""
        for path in self._paths():
            try:
                yield path, Snapshot.read(path)
            except (RestoreError, OSError, ValueError, KeyError) as error:
                log.warning("snapshot %s is not used: %s", path.name, error)

    def clear_unfinished(self) -> None:
        """Delete files left incomplete by a crash, not those that another replica is writing."""
        draft.clear_drafts(self.folder)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("*.snapshot"), reverse=True)
