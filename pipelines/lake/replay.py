"""The training table: what the live scorer saw of every event, made again from the lake, with labels as of a time."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.contracts.contract import hash64
from pipelines.contracts.stream import InputColumn, Stream
from pipelines.features.id_log import ID_KEY_BYTES, hash_ids
from pipelines.features.state import Items, Rows, State
from pipelines.lake.tables import Lake
from pipelines.order import EVENT, LABEL

CHUNK = 50_000
PLACE = ["effective_ms", "kind", "at_partition", "at_offset", "seq"]


@dataclass(frozen=True)
class ReplayedEvents:
    """Every event of the lake that is no duplicate, in the one order, as the live scorer saw it.

    Shapes: `numeric` (n, d), `categorical` (n, c) hashes, the others (n,). `clock_ms` is the effective time; `key` the
    hash of the key entity. `duplicates` maps the place of each repeated event to its original's offset.
    """

    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    event_id: pl.Series
    key: NDArray[np.uint64]
    clock_ms: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    numeric: NDArray[np.float64]
    categorical: NDArray[np.uint64]
    hashes: NDArray[np.uint64]
    late_ms: NDArray[np.int64]
    duplicates: dict[tuple[int, int], int]

    def __len__(self) -> int:
        return len(self.offset)


@dataclass(frozen=True)
class TrainingTable:
    """Rows by event time, each with the label known by a time. Shapes as in `ReplayedEvents`.

    `label` is 1 where the latest report that had taken effect says so. `known` says that the label counts: the event is
    old enough, so that a 0 means no fraud and not merely no report yet.
    """

    columns: tuple[InputColumn, ...]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    event_id: pl.Series
    key: NDArray[np.uint64]
    time_ms: NDArray[np.int64]
    numeric: NDArray[np.float64]
    categorical: NDArray[np.uint64]
    label: NDArray[np.int8]
    known: NDArray[np.bool_]
    category_names: dict[int, str]

    def __len__(self) -> int:
        return len(self.time_ms)


def replay_rows(
    lake: Lake, stream: Stream, *, until_ms: int | None = None, progress: Callable[[int, int], None] | None = None
) -> ReplayedEvents:
    """Fold all events and labels of the lake again, in the one order: bit-equal to what was folded live.

    Args:
        until_ms: leave away what takes effect at or after this time (ms since 1970, the stream's clock).
        progress: called with the number of items folded and the number there are.
    """
    id_key = os.urandom(ID_KEY_BYTES)
    chosen = None if until_ms is None else pl.col("effective_ms") < until_ms
    items, event_ids = items_in_order(lake, stream, id_key, chosen)
    n, n_events = len(items.ids), int(items.is_event.sum())
    state = State(stream, int(items.partition.max(initial=0)) + 1, id_key=id_key)
    numeric = np.empty((n_events, len(stream.numeric_columns)))
    index, late_ms = np.empty(n_events, np.int64), np.empty(n_events, np.int64)
    hashes = np.empty(n_events, np.uint64)
    duplicates: dict[tuple[int, int], int] = {}
    n_rows = 0
    for begin in range(0, n, CHUNK):
        rows: Rows = state.fold(Items._make(column[begin : begin + CHUNK] for column in items))
        to = slice(n_rows, n_rows + len(rows.index))
        numeric[to], hashes[to], late_ms[to] = rows.numeric, rows.hashes, rows.late_ms
        index[to] = rows.index + begin
        n_rows = to.stop
        for i, original in rows.duplicates.items():
            duplicates[(int(items.partition[begin + i]), int(items.offset[begin + i]))] = original
        if progress:
            progress(min(begin + CHUNK, n), n)
    index = index[:n_rows]
    return ReplayedEvents(
        items.partition[index],
        items.offset[index],
        event_ids.gather(index),
        items.entities[index, 0],
        items.clock_ms[index],
        items.time_ms[index],
        numeric[:n_rows],
        items.categories[index],
        hashes[:n_rows],
        late_ms[:n_rows],
        duplicates,
    )


def training_table(
    lake: Lake, stream: Stream, *, as_of_ms: int, progress: Callable[[int, int], None] | None = None
) -> TrainingTable:
    """The events that had taken effect before a time, with features as of each event and labels as of that time.

    Args:
        as_of_ms: ms since 1970, on the stream's clock; nothing that takes effect later is looked at.
        progress: as in `replay_rows`.
    """
    rows = replay_rows(lake, stream, until_ms=as_of_ms, progress=progress)
    order = np.argsort(rows.time_ms, kind="stable")
    time_ms, event_id = rows.time_ms[order], rows.event_id.gather(order)
    label, known = np.zeros(len(order), np.int8), np.zeros(len(order), bool)
    if stream.labels:
        known = time_ms < as_of_ms - stream.labels.maturity_ms - stream.labels.lag_ms
        label[event_id.is_in(_frauds(lake, stream, as_of_ms).implode()).to_numpy()] = 1
    return TrainingTable(
        stream.columns,
        rows.partition[order],
        rows.offset[order],
        event_id,
        rows.key[order],
        time_ms,
        rows.numeric[order],
        rows.categorical[order],
        label,
        known,
        category_names(lake, stream),
    )


def category_names(lake: Lake, stream: Stream) -> dict[int, str]:
    """The text behind every category hash in the lake."""
    texts = lake.read("events", columns=list(stream.categories)) if stream.categories else pl.DataFrame()
    return {hash64(text): text for column in texts for text in column.unique().drop_nulls()}


def _frauds(lake: Lake, stream: Stream, as_of_ms: int) -> pl.Series:
    """Ids of the events whose latest report before a time says fraud."""
    reports = placed(lake, stream, "labels", LABEL).filter(pl.col("effective_ms") < as_of_ms)
    latest = reports.sort(PLACE).group_by("event_id", maintain_order=True).last()
    return latest.filter(pl.col("label") == 1)["event_id"]


def items_in_order(lake: Lake, stream: Stream, id_key: bytes, chosen: pl.Expr | None = None) -> tuple[Items, pl.Series]:
    """All (or the chosen) events and labels in the one order, and the events' ids (null for labels).

    Args:
        id_key: of the state that will fold them.
        chosen: says by a record's place and `is_event`, `partition`, `offset` whether it is wanted.
    """
    frames = [placed(lake, stream, "events", EVENT)]
    if stream.labels:
        frames.append(placed(lake, stream, "labels", LABEL).drop("topic", "labelled_at_ms", "source"))
    both = pl.concat(frames, how="diagonal")
    if chosen is not None:
        both = both.filter(chosen)
    both = both.sort(PLACE)
    n = both.height
    items = Items(
        (both["is_event"]).to_numpy(),
        both["partition"].to_numpy(),
        both["offset"].to_numpy(),
        both["effective_ms"].to_numpy(),
        both["event_time_ms"].to_numpy(),
        hash_ids(both["event_id"].to_list(), id_key),
        both["label"].fill_null(0).to_numpy() if stream.labels else np.zeros(n, np.int8),
        _stacked([_hashed(both[name]) for name in stream.entities], n, np.uint64),
        _stacked([both[name].fill_null(np.nan).to_numpy() for name in stream.numbers], n, np.float64),
        _stacked([_hashed(both[name]) for name in stream.categories], n, np.uint64),
    )
    return items, both["event_id"]


def placed(lake: Lake, stream: Stream, table: str, kind: int, *, columns: list[str] | None = None) -> pl.DataFrame:
    """Rows of a table with their place in the one order: by arrival, or where the scorer said that it folded them."""
    lag_ms = stream.labels.lag_ms if stream.labels and kind == LABEL else 0
    told = (
        lake.read("places")
        .filter(pl.col("kind") == kind)
        .unique(["partition", "offset"], keep="last", maintain_order=True)
        .select("partition", "offset", "at_effective_ms", "at_kind", "at_partition", "at_offset", "at_seq")
    )
    told = told.rename({"at_partition": "told_partition", "at_offset": "told_offset"})
    rows = lake.read(table, columns=columns).join(told, on=["partition", "offset"], how="left", maintain_order="left")
    return rows.with_columns(
        is_event=pl.lit(kind == EVENT),
        effective_ms=pl.coalesce("at_effective_ms", pl.col("arrival_ms") + lag_ms),
        kind=pl.coalesce("at_kind", pl.lit(kind, pl.Int8)),
        at_partition=pl.coalesce("told_partition", "partition"),
        at_offset=pl.coalesce("told_offset", "offset"),
        seq=pl.coalesce("at_seq", pl.lit(0, pl.Int64)),
    ).drop("at_effective_ms", "at_kind", "told_partition", "told_offset", "at_seq")


def _hashed(texts: pl.Series) -> NDArray[np.uint64]:
    """`contract.hash64` of every text, 0 where it is missing."""
    distinct = texts.unique().drop_nulls()
    hashes = pl.Series([hash64(text) for text in distinct], dtype=pl.UInt64)
    return texts.replace_strict(distinct, hashes, default=0, return_dtype=pl.UInt64).to_numpy()


def _stacked(columns: list[NDArray], n: int, kind: type) -> NDArray:
    return np.stack(columns, axis=1) if columns else np.empty((n, 0), kind)
