"""The fold of the lake in parallel: bit-equal to that of one process (`pipelines.lake.replay`).

The records of a time span are read by one task each. One task decides which of them are duplicates and what labels
change, because that depends on all records of a partition before. The windows of an entity depend only on the records
that name it: a task folds the entities of one kind whose hash falls into its shard. Then a task for each span puts the
feature rows together. Tasks exchange files in a folder that all workers reach; what is finished there is not done
again. `Executor` is that of Python's library: processes of this machine, or a cluster.
"""

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, as_completed
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.contracts.stream import Stream
from pipelines.errors import LakeError
from pipelines.features.id_log import ID_KEY_BYTES
from pipelines.features.layout import FoldInput
from pipelines.features.state import Decided, Records, State, feature_rows, hash_rows, plan_of
from pipelines.features.windows import Windows
from pipelines.lake.arrays import Draft, TextFile, growing, mapped, mapped_texts
from pipelines.lake.replay import CHUNK, Span, block_in_order, slices
from pipelines.lake.tables import Lake

SHARDS = 16  # of each kind of entity; a task holds the state of one
Workers = Callable[[], AbstractContextManager[Executor]]
_EVENT_IDS = "event_id.arrow"


class Rows(NamedTuple):
    """Feature rows of a time span, or of a chunk of it: arrays as in `FeatureTable`."""

    arrays: dict[str, NDArray[Any]]
    event_ids: pa.Array | pa.ChunkedArray


@dataclass(frozen=True)
class Job:
    """What every task must know: the stream, and the folder of the files.

    Raises:
        LakeError: in every task, if the worker has another version of Unmask or does not see the folder.
    """

    stream: Stream
    folder: Path
    n_partitions: int
    n_spans: int
    n_shards: int
    version: str

    @property
    def decided(self) -> Path:
        return self.folder / "decided"

    def records(self, span: int) -> Path:
        return self.folder / f"records-{span}"

    def windows(self, entity: int, shard: int) -> Path:
        return self.folder / f"windows-{entity}-{shard}"

    def rows(self, span: int) -> Path:
        return self.folder / f"rows-{span}"

    def check(self) -> None:
        if (here := version("unmask")) != self.version:
            raise LakeError(
                f"the worker on {socket.gethostname()} has version {here} of Unmask; install {self.version} there"
            )
        if not self.folder.is_dir():
            raise LakeError(
                f"the worker on {socket.gethostname()} does not see {self.folder}; set UNMASK_HOME to a folder that "
                "all workers reach under the same path"
            )


def fold_in_shards(
    lake: Lake, stream: Stream, folder: Path, workers: Workers, progress: Callable[[int, int], None] | None
) -> Iterator[Rows]:
    """The feature rows of a snapshot of the lake, in the one order.

    Args:
        folder: for the files of the tasks; if it is there, what is finished in it is kept. The caller deletes it.
        workers: opens the executor.
        progress: called with the number of records done, if all steps took the same time, and the total.
    """
    spans, n_items, n_partitions = slices(lake, stream)
    folder.mkdir(exist_ok=True)
    if not (folder / "id_key").exists():
        (folder / "id_key.draft").write_bytes(os.urandom(ID_KEY_BYTES))
        (folder / "id_key.draft").replace(folder / "id_key")
    job = Job(stream, folder.resolve(), n_partitions, len(spans), SHARDS, version("unmask"))
    entities = [e for e, name in enumerate(stream.entities) if any(f.entity == name for f in stream.features)]
    shards = [(e, s) for e in entities for s in range(SHARDS)]
    steps: list[tuple[Callable[..., None], list[tuple[Any, ...]], Callable[..., Path]]] = [
        (_read, [(i, lake, span) for i, span in enumerate(spans)], lambda i, *_: job.records(i)),
        (_decide, [()], lambda: job.decided),
        (_fold, shards, job.windows),
        (_assemble, [(i,) for i in range(len(spans))], job.rows),
    ]
    n_tasks, n_done = sum(len(tasks) for _, tasks, _ in steps), 0
    with workers() as executor:
        for task, arguments, result in steps:
            left = [one for one in arguments if not result(*one).exists()]
            n_done += len(arguments) - len(left)
            for _ in _finished([executor.submit(task, job, *one) for one in left]):
                n_done += 1
                if progress:
                    progress(n_items * n_done // n_tasks, n_items)
    for span in range(len(spans)):
        yield Rows(_load(job.rows(span)), mapped_texts(job.rows(span) / _EVENT_IDS))


def _finished(futures: "list[Future[None]]") -> Iterator[None]:
    """Wait for each. After a failure the others are cancelled."""
    try:
        for future in as_completed(futures):
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


def _read(job: Job, number: int, lake: Lake, span: Span) -> None:
    """The records of a span, without texts but for the event ids."""
    job.check()
    block = block_in_order(lake, job.stream, during=span)
    draft = Draft(job.records(number))
    id_key = (job.folder / "id_key").read_bytes()
    draft.save(Records.of(block, np.arange(len(block)), job.stream, id_key)._asdict())
    draft.save({"entities": block.entity_hashes, "numbers": block.numbers, "categories": block.category_hashes})
    _save_texts(draft, pa.array(block.event_id.tolist(), pa.large_string()))
    draft.finish()


def _decide(job: Job) -> None:
    """Duplicates, lateness and what labels change, of all records in the one order."""
    job.check()
    states: dict[int, State] = {}
    draft = Draft(job.decided)
    with growing(
        draft.folder, {"duplicate_of": (np.int64, None), "late_ms": (np.int64, None), "changes": (np.int8, 2)}
    ) as files:
        for span in range(job.n_spans):
            found = _load(job.records(span))
            records = Records(*(found[name] for name in Records._fields))
            n = len(records.is_event)
            all_of = Decided(np.empty(n, np.int64), np.empty(n, np.int64), np.empty((n, 2), np.int8))
            for group, rows in _groups(job.stream, records.partition):
                if group not in states:
                    states[group] = State(job.stream, job.n_partitions)
                decided = states[group].decide(records.take(rows))
                all_of.duplicate_of[rows], all_of.late_ms[rows], all_of.changes[rows] = decided
            for name, values in all_of._asdict().items():
                files[name].append(values)
    draft.finish()


def _fold(job: Job, entity: int, shard: int) -> None:
    """The window features of the entities of one kind in a shard: `values`, and the `row` of each among all records."""
    job.check()
    plan = plan_of(job.stream, job.stream.entities[entity])
    states: dict[int, Windows] = {}
    draft, decided = Draft(job.windows(entity, shard)), _load(job.decided)
    with growing(draft.folder, {"row": (np.int64, None), "values": (np.float64, len(plan.names))}) as files:
        for span, (start, end) in enumerate(_bounds(job)):
            records = _load(job.records(span))
            keys = records["entities"][:, entity]
            is_here = (keys != 0) & ((keys >> np.uint64(32)) % np.uint64(job.n_shards) == shard)
            here = np.flatnonzero(is_here & (decided["duplicate_of"][start:end] < 0))
            is_event, changes = records["is_event"][here], decided["changes"][start:end][here]
            items = FoldInput(
                is_event,
                records["clock_ms"][here],
                records["time_ms"][here],
                keys[here, None],
                records["numbers"][here],
                np.concatenate([records["categories"][here], records["entities"][here]], axis=1),
                changes[:, 0],
                changes[:, 1],
            )
            values = np.empty((len(here), len(plan.names)))
            for group, rows in _groups(job.stream, records["partition"][here]):
                windows = states.setdefault(group, Windows(plan))
                values[rows & is_event] = windows.fold(FoldInput._make(column[rows] for column in items))
            files["row"].append(start + here[is_event])
            files["values"].append(values[is_event])
    draft.finish()


def _assemble(job: Job, span: int) -> None:
    """The feature rows of a span."""
    job.check()
    start, end = _bounds(job)[span]
    records, decided = _load(job.records(span)), _load(job.decided)
    duplicate_of = decided["duplicate_of"][start:end]
    scored, repeated = records["is_event"] & (duplicate_of < 0), duplicate_of >= 0
    places = [records["partition"][repeated], records["offset"][repeated], duplicate_of[repeated]]
    draft = Draft(job.rows(span))
    draft.save({name: records[name][scored] for name in ("partition", "offset", "clock_ms", "time_ms")})
    draft.save({"entity": records["entities"][scored, 0], "categorical": records["categories"][scored]})
    draft.save({"late_ms": decided["late_ms"][start:end][scored]})
    draft.save({"duplicates": np.stack(places, axis=1)})
    _save_texts(draft, mapped_texts(job.records(span) / _EVENT_IDS).filter(pa.array(scored)))
    found, shapes = (
        _windows(job),
        {"numeric": (np.float64, len(job.stream.numeric_columns)), "hashes": (np.uint64, None)},
    )
    with growing(draft.folder, shapes) as files:
        for rows in np.split(np.flatnonzero(scored), range(CHUNK, int(scored.sum()), CHUNK)):
            windows = np.full((len(rows), len(job.stream.features)), np.nan)
            bounds = start + np.array([rows[0], rows[-1] + 1]) if len(rows) else [0, 0]
            for columns, row, values in found:
                first, last = np.searchsorted(row, bounds)
                windows[np.searchsorted(rows, row[first:last] - start)[:, None], columns] = values[first:last]
            numeric = feature_rows(records["numbers"][rows], records["time_ms"][rows], windows)
            files["numeric"].append(numeric)
            files["hashes"].append(hash_rows(numeric, records["categories"][rows]))
    draft.finish()


def _windows(job: Job) -> list[tuple[list[int], NDArray[np.int64], NDArray[np.float64]]]:
    """What was folded in each shard: the columns of its features, the rows of their values, the values."""
    parts = []
    for entity, name in enumerate(job.stream.entities):
        columns = [column for column, feature in enumerate(job.stream.features) if feature.entity == name]
        for shard in range(job.n_shards if columns else 0):
            found = _load(job.windows(entity, shard))
            parts.append((columns, found["row"], found["values"]))
    return parts


def _groups(stream: Stream, partition: NDArray[np.int32]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """The records that share a state: all, or those of a partition; as a mask."""
    if not stream.folds_by_partition:
        yield 0, np.ones(len(partition), np.bool_)
        return
    for p in np.unique(partition).tolist():
        yield p, partition == p


def _bounds(job: Job) -> list[tuple[int, int]]:
    """Number of the first record of each span, and of that after its last."""
    lengths = [len(mapped(job.records(span) / "partition.npy")) for span in range(job.n_spans)]
    return list(pairwise(np.cumsum([0, *lengths]).tolist()))


def _load(folder: Path) -> dict[str, NDArray[Any]]:
    return {path.stem: mapped(path) for path in folder.glob("*.npy")}


def _save_texts(draft: Draft, texts: pa.Array | pa.ChunkedArray) -> None:
    with closing(TextFile(draft.folder / _EVENT_IDS)) as file:
        file.append(texts)
