"""Snapshots of the state, in memory or in a file, and the folder or object store that has them."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.errors import RestoreError
from pipelines.faults import Fault, no_fault
from pipelines.features import draft, pieces
from pipelines.features.bucket import Bucket, Place
from pipelines.features.draft import Draft
from pipelines.features.pieces import Pieces
from pipelines.order import Frontier, Source, from_kinds

log = logging.getLogger(__name__)

KEPT = 4
SUFFIX = ".snapshot"


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
    """A folder of snapshots that keeps the newest ones, and their copies in an object store if there is one.

    File names contain the number of records folded, so their order does not depend on the clock. Where the object store
    cannot be reached, the folder is used alone: its files are as good, only other replicas do not have them.

    Args:
        place: the folder is created if it does not exist.
        keep: number of snapshots to keep.
    """

    def __init__(self, place: Path | Place, *, keep: int = KEPT, fault: Fault = no_fault) -> None:
        self._place, self._keep, self._fault = Place.of(place), keep, fault
        self.folder = self._place.folder

    @cached_property
    def _bucket(self) -> Bucket | None:
        return None if self._place.url is None else Bucket(self._place.url)

    def write(self, snapshot: Snapshot) -> Path:
        """Store a snapshot. If this fails, no partial file is left."""
        path = self._path(snapshot.frontier)
        snapshot.write(path, fault=self._fault)
        self.finished(path.name)
        self.tidy()
        return path

    def draft(self, frontier: Frontier) -> Draft:
        """Begin to write a snapshot with this frontier."""
        return Draft(self._path(frontier), fault=self._fault)

    def finished(self, file: str) -> None:
        """Copy a file that was written to the object store."""
        if self._bucket is not None:
            self._bucket.put(self.folder / file, file)

    def tidy(self, is_usable: Callable[[Frontier], bool] = lambda _: True) -> None:
        """Delete all but the newest ones and the newest usable one, which those that are ahead must not displace."""
        old = self._old(self._files(), is_usable)
        self._delete(old)
        if self._bucket is not None:
            self._bucket.delete(old)

    def tidy_copies(self, is_usable: Callable[[Frontier], bool]) -> None:
        """The same for copies of an object store only, which a replica that writes none itself would gather."""
        if self._bucket is not None:
            self._delete(self._old(self._files_here(), is_usable))

    def _old(self, files: list[str], is_usable: Callable[[Frontier], bool]) -> list[str]:
        old = files[self._keep :]
        bases = {self._base_of(file) for file in files[: self._keep]}
        if not any(self._is(is_usable, file) for file in files[: self._keep]):
            spared = next((file for file in old if self._is(is_usable, file)), None)
            old = [file for file in old if file != spared]
            bases.add(self._base_of(spared) if spared else None)
        return [file for file in old if file not in bases]

    def _delete(self, files: list[str]) -> None:
        for file in files:
            (self.folder / file).unlink(missing_ok=True)

    def has(self, file: str, id: str) -> bool:
        """Whether the store has a snapshot in this file, also for other replicas."""
        return self._told(file).get("id") == id and (self._bucket is None or self._bucket.has(file))

    def file_of(self, frontier: Frontier) -> str:
        """Name of the file of a snapshot with this frontier."""
        return f"{sum(frontier.values()):020d}{SUFFIX}"

    def _base_of(self, file: str) -> str | None:
        return (self._told(file).get("base") or {}).get("file")

    def _told(self, file: str) -> dict[str, Any]:
        """Metadata of a file; nothing if it cannot be read."""
        try:
            if self._bucket is None or (self.folder / file).exists():
                return pieces.read_meta(self.folder / file)
            with self._bucket.open(file) as opened:
                return pieces.meta_of(opened, self.folder / file)
        except (RestoreError, OSError, ValueError):
            return {}

    def _is(self, usable: Callable[[Frontier], bool], file: str) -> bool:
        told = self._told(file)
        return "frontier" in told and usable(frontier_of(told))

    def _path(self, frontier: Frontier) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / self.file_of(frontier)

    def newest_first(self) -> Iterator[tuple[Path, Snapshot]]:
        """All readable snapshots; a warning names the others."""
        for file in self._files():
            try:
                self._fetch(file)
                if base := self._base_of(file):
                    self._fetch(base)
                yield self.folder / file, Snapshot.read(self.folder / file)
            except (RestoreError, OSError, ValueError, KeyError) as error:
                log.warning("snapshot %s is not used: %s", file, error)

    def clear_unfinished(self) -> None:
        """Delete files left incomplete by a crash, not those that another replica is writing."""
        draft.clear_drafts(self.folder)

    def move_aside(self, suffix: str) -> None:
        """Give the folder another name, in the object store as well; nothing is deleted."""
        to = self._place.with_suffix(suffix)
        if self._bucket is not None and to.url is not None:
            self._bucket.copy_to(Bucket(to.url))
            self._bucket.delete(self._bucket.names())
        if self.folder.exists():
            self.folder.rename(to.folder)

    def _fetch(self, file: str) -> None:
        """Copy a file from the object store to the folder, unless it is there."""
        if self._bucket is not None and not (self.folder / file).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with draft.completed(self.folder / file) as into:
                self._bucket.get(file, into)

    def _files(self) -> list[str]:
        """Names of all snapshots, the newest first."""
        files = self._files_here()
        try:
            if self._bucket is not None:
                files += (name for name in self._bucket.names() if name.endswith(SUFFIX) and "/" not in name)
        except OSError as error:
            log.warning("only the snapshots in %s can be used: %s", self.folder, error)
        return sorted(set(files), reverse=True)

    def _files_here(self) -> list[str]:
        return sorted((path.name for path in self.folder.glob(f"*{SUFFIX}")), reverse=True)
