"""Snapshots of the state, in memory or in a file, and the folder or object store that has them."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
        """Delete all but the newest ones and the newest usable one, which those that are ahead must not displace.

        The folder and the object store are tidied each for itself.
        """
        self._tidy_folder(is_usable)
        if self._bucket is not None:
            here = set(self._files_here())
            self._bucket.delete(_old(self._files_there(), lambda file: self._told(file, here), is_usable, self._keep))

    def tidy_copies(self, is_usable: Callable[[Frontier], bool]) -> None:
        """The same for copies of an object store only, which a replica that writes none itself would gather."""
        if self._bucket is not None:
            self._tidy_folder(is_usable)

    def _tidy_folder(self, is_usable: Callable[[Frontier], bool]) -> None:
        for file in _old(self._files_here(), self._told_here, is_usable, self._keep):
            (self.folder / file).unlink(missing_ok=True)

    def has(self, file: str, id: str) -> bool:
        """Whether the store has a snapshot in this file, also for other replicas."""
        return self._told_here(file).get("id") == id and (self._bucket is None or self._bucket.has(file))

    def file_of(self, frontier: Frontier) -> str:
        """Name of the file of a snapshot with this frontier."""
        return f"{sum(frontier.values()):020d}{SUFFIX}"

    def newest_first(
        self, is_wanted: Callable[[Mapping[str, Any]], bool] = lambda _: True
    ) -> Iterator[tuple[Path, Snapshot]]:
        """All readable snapshots; a warning names the others.

        Args:
            is_wanted: says by the metadata which ones are; the others are not copied from the object store.
        """
        here = set(self._files_here())
        files = set(here)
        try:
            files |= set(self._files_there())
        except OSError as error:
            log.warning("only the snapshots in %s can be used: %s", self.folder, error)
        for file in sorted(files, reverse=True):
            try:
                told = self._told(file, here)
                if told and not is_wanted(told):
                    log.info("snapshot %s does not fit and is passed over", file)
                    continue
                yield self.folder / file, self._read(file, told)
            except (RestoreError, OSError, ValueError, KeyError) as error:
                log.warning("snapshot %s is not used: %s", file, error)

    def newest_frontier(self) -> dict[Source, int] | None:
        """The frontier of the newest readable snapshot, by its metadata; nothing is copied.

        Raises:
            OSError: the object store does not answer.
        """
        here = set(self._files_here())
        told = (self._told(file, here) for file in sorted({*here, *self._files_there()}, reverse=True))
        return next((frontier_of(meta) for meta in told if "frontier" in meta), None)

    def _read(self, file: str, told: Mapping[str, Any]) -> Snapshot:
        """Read a snapshot, after copying from the object store what is not here, or is damaged here."""
        names = [name for name in (file, (told.get("base") or {}).get("file")) if name]
        for name in names:
            self._fetch(name)
        try:
            return Snapshot.read(self.folder / file)
        except RestoreError:
            if self._bucket is None:
                raise
            for name in names:
                self._fetch(name, again=True)
            return Snapshot.read(self.folder / file)

    def _fetch(self, file: str, *, again: bool = False) -> None:
        if (again or not (self.folder / file).exists()) and self._bucket is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with draft.completed(self.folder / file) as into:
                self._bucket.get(file, into)

    def clear_unfinished(self) -> None:
        """Delete files left incomplete by a crash, not those that another replica is writing."""
        draft.clear_drafts(self.folder)

    def move_aside(self, suffix: str) -> None:
        """Give the folder another name, in the object store as well; nothing is lost."""
        to = self._place.with_suffix(suffix)
        if self._bucket is not None and to.url is not None:
            self._bucket.move_to(Bucket(to.url))
        if self.folder.exists():
            self.folder.rename(to.folder)

    def _told(self, file: str, here: Collection[str]) -> dict[str, Any]:
        """Metadata of a file, of the folder if it is one of those `here`."""
        return self._told_here(file) if file in here else self._told_there(file)

    def _told_here(self, file: str) -> dict[str, Any]:
        """Metadata of a file of the folder; nothing if it cannot be read."""
        try:
            return pieces.read_meta(self.folder / file)
        except (RestoreError, OSError, ValueError):
            return {}

    def _told_there(self, file: str) -> dict[str, Any]:
        """Metadata of a file of the object store; nothing if it is damaged. Raises OSError if there is no answer."""
        assert self._bucket is not None
        try:
            with self._bucket.open(file) as opened:
                return pieces.meta_of(opened, self.folder / file)
        except (RestoreError, ValueError):
            return {}

    def _path(self, frontier: Frontier) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / self.file_of(frontier)

    def _files_here(self) -> list[str]:
        """Names of the snapshots in the folder, the newest first."""
        return sorted((path.name for path in self.folder.glob(f"*{SUFFIX}")), reverse=True)

    def _files_there(self) -> list[str]:
        """Names of the snapshots in the object store, the newest first."""
        names = [] if self._bucket is None else self._bucket.names()
        return sorted((name for name in names if name.endswith(SUFFIX) and "/" not in name), reverse=True)


def _old(
    files: Sequence[str],
    told: Callable[[str], Mapping[str, Any]],
    is_usable: Callable[[Frontier], bool],
    keep: int,
) -> list[str]:
    """Those of the files, the newest first, that are not needed any more; `told` gives the metadata of one."""

    def base_of(file: str) -> str | None:
        return (told(file).get("base") or {}).get("file")

    def can_be_used(file: str) -> bool:
        return "frontier" in (meta := told(file)) and is_usable(frontier_of(meta))

    kept = list(files[:keep])
    if len(files) > keep and not any(map(can_be_used, kept)):
        kept += [file for file in [next(filter(can_be_used, files[keep:]), None)] if file]
    needed = {*kept, *map(base_of, kept)}
    return [file for file in files if file not in needed]
