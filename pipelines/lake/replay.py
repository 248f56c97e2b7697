"""The training table: what the live scorer saw of every event, made again from the lake, with labels as of a time."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.contracts.block import Block
from pipelines.contracts.contract import hash64, hashes_of
from pipelines.contracts.stream import InputColumn, Stream
from pipelines.features.state import State
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
    block = block_in_order(lake, stream, None if until_ms is None else pl.col("effective_ms") < until_ms)
    n, n_events = len(block), int(block.is_event.sum())
    state = State(stream, int(block.partition.max(initial=0)) + 1)
    numeric = np.empty((n_events, len(stream.numeric_columns)))
    index, late_ms = np.empty(n_events, np.int64), np.empty(n_events, np.int64)
    hashes = np.empty(n_events, np.uint64)
    duplicates: dict[tuple[int, int], int] = {}
    n_rows = 0
    for begin in range(0, n, CHUNK):
        folded = state.fold(block.take(slice(begin, begin + CHUNK)))
        rows = np.flatnonzero(folded.is_scored)
        to = slice(n_rows, n_rows + len(rows))
        numeric[to], hashes[to], late_ms[to] = folded.numeric[rows], folded.features_hash[rows], folded.late_ms[rows]
        index[to] = rows + begin
        n_rows = to.stop
        repeats = folded.take(np.flatnonzero(folded.is_duplicate))
        places = zip(repeats.partition.tolist(), repeats.offset.tolist(), strict=True)
        duplicates |= dict(zip(places, repeats.duplicate_of.tolist(), strict=True))
        if progress:
            progress(min(begin + CHUNK, n), n)
    index = index[:n_rows]
    return ReplayedEvents(
        block.partition[index],
        block.offset[index],
        pl.Series("event_id", block.event_id[index].tolist(), pl.String),
        block.entity_hashes[index, 0],
        block.clock_ms[index],
        block.time_ms[index],
        numeric[:n_rows],
        block.category_hashes[index],
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


def block_in_order(lake: Lake, stream: Stream, chosen: pl.Expr | None = None) -> Block:
    """All (or the chosen) events and labels of the lake, ready to fold; without the texts of entities and categories.

    Args:
        chosen: says by a record's place and `is_event`, `partition`, `offset` whether it is wanted.
    """
    frames = [placed(lake, stream, "events", EVENT)]
    if stream.labels:
        frames.append(placed(lake, stream, "labels", LABEL).drop("topic", "labelled_at_ms", "source"))
    both = pl.concat(frames, how="diagonal")
    if chosen is not None:
        both = both.filter(chosen)
    both = both.sort(PLACE)
    block = Block.blank(
        both.height,
        n_entities=len(stream.entities),
        n_numbers=len(stream.numbers),
        n_categories=len(stream.categories),
    )
    block.kind[:] = np.where(both["is_event"].to_numpy(), EVENT, LABEL)
    block.partition[:], block.offset[:] = both["partition"].to_numpy(), both["offset"].to_numpy()
    block.arrival_ms[:], block.clock_ms[:] = both["arrival_ms"].to_numpy(), both["effective_ms"].to_numpy()
    block.event_id[:], block.time_ms[:] = both["event_id"].to_list(), both["event_time_ms"].to_numpy()
    if stream.labels:
        block.label[:] = both["label"].fill_null(0).to_numpy()
    for i, name in enumerate(stream.entities):
        block.entity_hashes[:, i] = hashes_of(both[name].to_list())
    for i, name in enumerate(stream.numbers):
        block.numbers[:, i] = both[name].fill_null(np.nan).to_numpy()
    for i, name in enumerate(stream.categories):
        block.category_hashes[:, i] = hashes_of(both[name].to_list())
    return block


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
