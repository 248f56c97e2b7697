"""The feature table: the features of every event in the lake, kept on disk so that they are computed once.

A table is a folder of .npy files beside the lake. Its name is a digest of the feature definition and the version of the
lake. Tables are written in pieces and read memory-mapped, so they may be larger than memory.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.contracts.stream import Stream
from pipelines.errors import LakeError
from pipelines.features.draft import sync
from pipelines.features.state import State
from pipelines.lake.arrays import TextFile, growing, mapped, mapped_texts
from pipelines.lake.replay import fold_lake
from pipelines.lake.shards import Rows, Workers, fold_in_shards
from pipelines.lake.tables import Lake

log = logging.getLogger(__name__)

FORMAT = 2
KEPT = 3  # tables kept per stream; the least recently used one is removed first
_MANIFEST = "manifest.json"
_EVENT_IDS = "event_id.arrow"
_READ_FROM = ("events", "labels", "places")


@dataclass(frozen=True)
class FeatureTable:
    """All events of the lake except duplicates, in the one order, with the features that the live scorer computes.

    Features depend only on earlier records in that order, so the rows with `clock_ms < t` are equal to those of a fold
    of the records that took effect before t.

    Shapes: `numeric` (n, d), `categorical` (n, c) hashes, `duplicates` (m, 3), the others (n,). `clock_ms` is the
    effective time and never decreases; `entity` is the hash of the key; `hashes` are the feature hashes in scores. A
    row of `duplicates` has the partition and offset of a duplicate and the offset of its original. The arrays are
    memory-mapped.
    """

    key: str
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    clock_ms: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    entity: NDArray[np.uint64]
    numeric: NDArray[np.float64]
    categorical: NDArray[np.uint64]
    hashes: NDArray[np.uint64]
    late_ms: NDArray[np.int64]
    duplicates: NDArray[np.int64]
    event_ids: pa.ChunkedArray

    def __len__(self) -> int:
        return len(self.offset)

    @property
    def event_id(self) -> pl.Series:
        """Ids of the events. Memory: 16 bytes per row; the text stays memory-mapped."""
        ids = pl.from_arrow(self.event_ids)
        assert isinstance(ids, pl.Series)
        return ids


def feature_table(
    lake: Lake,
    stream: Stream,
    folder: Path,
    *,
    workers: Workers | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureTable:
    """Return the feature table of the lake; it is computed if it does not exist.

    Args:
        lake: the lake or a `snapshot` of it.
        folder: folder of the stream's tables; the newest `KEPT` are kept.
        workers: opens an executor that computes it in parallel, with the same result; None = this process does it. If
            it is stopped, the next call goes on where it was.
        progress: called with the number of items folded and the total.

    Raises:
        LakeError: the lake cannot be read, or the table cannot be written.
    """
    lake = lake.snapshot()
    key = _key(lake, stream)
    path, shards = folder / key, folder / f".{key}-shards"
    if (found := _open(path, key)) is not None:
        return found
    try:
        with _locked(folder):
            if (found := _open(path, key)) is not None:  # another process has written it meanwhile
                return found
            shutil.rmtree(path, ignore_errors=True)  # if it is damaged
            _clear(folder, keep=KEPT - 1, but=shards if workers else None)
            draft = folder / f".{key}"
            in_shards = workers and fold_in_shards(lake, stream, shards, workers, progress)
            _write(in_shards or _fold(lake, stream, progress), stream, draft)
            draft.replace(path)
            shutil.rmtree(shards, ignore_errors=True)
    except OSError as error:
        raise LakeError(
            f"the feature table in {folder} cannot be written ({error}); free disk space, or set UNMASK_HOME to a "
            "larger disk"
        ) from error
    made = _open(path, key)
    if made is None:
        raise LakeError(f"the feature table {path} was removed or changed while it was read; run the command again")
    log.info("folded %d events of stream %s into the feature table %s", len(made), stream.name, key)
    return made


def _key(lake: Lake, stream: Stream) -> str:
    parts = [FORMAT, version("unmask"), State(stream, 1).digest, lake.identity(_READ_FROM)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _open(path: Path, key: str) -> FeatureTable | None:
    """Open the table in a folder; None if it is missing or incomplete."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        if any((path / name).stat().st_size != size for name, size in manifest["files"].items()):
            log.warning("the feature table %s is damaged; it is rebuilt", path)
            return None
        columns = {name: mapped(path / f"{name}.npy") for name in _columns(0, 0)}
        event_ids = mapped_texts(path / _EVENT_IDS)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with suppress(OSError):
        os.utime(path)  # mark it as used
    return FeatureTable(key, **columns, event_ids=event_ids)


def _write(rows: Iterable[Rows], stream: Stream, draft: Path) -> None:
    """Write rows to a folder, chunk by chunk. The manifest marks completion and is written last."""
    draft.mkdir()
    shapes = _columns(len(stream.numeric_columns), len(stream.categories))
    with growing(draft, shapes) as columns, closing(TextFile(draft / _EVENT_IDS)) as event_ids:
        for chunk in rows:
            for name, values in chunk.arrays.items():
                columns[name].append(values)
            event_ids.append(chunk.event_ids)
    sizes = {path.name: path.stat().st_size for path in sorted(draft.iterdir())}
    (draft / _MANIFEST).write_text(json.dumps({"format": FORMAT, "files": sizes}))
    for path in (*draft.iterdir(), draft):
        sync(path)


def _fold(lake: Lake, stream: Stream, progress: Callable[[int, int], None] | None) -> Iterator[Rows]:
    """The rows of the lake, folded in this process."""
    for block, n_done, n_items in fold_lake(lake, stream):
        scored, repeated = block.take(block.is_scored), block.take(block.is_duplicate)
        arrays: dict[str, NDArray[Any]] = {
            "partition": scored.partition,
            "offset": scored.offset,
            "clock_ms": scored.clock_ms,
            "time_ms": scored.time_ms,
            "entity": scored.entity_hashes[:, 0],
            "numeric": scored.numeric,
            "categorical": scored.category_hashes,
            "hashes": scored.features_hash,
            "late_ms": scored.late_ms,
            "duplicates": np.stack([repeated.partition, repeated.offset, repeated.duplicate_of], axis=1),
        }
        yield Rows(arrays, pa.array(scored.event_id.tolist(), pa.large_string()))
        if progress:
            progress(n_done, n_items)


def _columns(d: int, c: int) -> dict[str, tuple[type, int | None]]:
    """Type and width of every array; None = one number per row."""
    return {
        "partition": (np.int32, None),
        "offset": (np.int64, None),
        "clock_ms": (np.int64, None),
        "time_ms": (np.int64, None),
        "entity": (np.uint64, None),
        "numeric": (np.float64, d),
        "categorical": (np.uint64, c),
        "hashes": (np.uint64, None),
        "late_ms": (np.int64, None),
        "duplicates": (np.int64, 3),
    }


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """A lock: one process at a time writes or removes tables. It is released when the process ends in any way."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is building a feature table in %s; waiting for it", folder)
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _clear(folder: Path, *, keep: int, but: Path | None) -> None:
    """Remove incomplete tables of killed processes except `but`, and all tables except the `keep` most recently used.

    A process that has mapped a removed table can still read it.
    """
    folders = [path for path in folder.iterdir() if path.is_dir() and path != but]
    half = [path for path in folders if path.name.startswith(".") or not (path / _MANIFEST).exists()]
    whole = sorted(set(folders) - set(half), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in (*half, *whole[keep:]):
        shutil.rmtree(path)
