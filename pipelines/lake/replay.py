"""The lake in the one order: its events and labels folded again, bit-equal to what was folded live."""

import os
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.contracts.contract import hash64
from pipelines.contracts.stream import Stream
from pipelines.features.id_log import ID_KEY_BYTES, hash_ids
from pipelines.features.state import Items, Rows, State
from pipelines.lake.tables import Lake
from pipelines.order import EVENT, KIND_NAMES, LABEL

CHUNK = 50_000
SLICE = 500_000  # rows of the lake that are read and sorted at a time, about
PLACE = ["effective_ms", "kind", "at_partition", "at_offset", "seq"]
_AT = ["at_effective_ms", "at_kind", "at_partition", "at_offset", "at_seq"]
_BUCKETS = 1 << 20  # of time, in which the lake's rows are counted to cut it into slices


class Span(NamedTuple):
    """Effective times from `from_ms` up to `until_ms`, which is not among them."""

    from_ms: int
    until_ms: int


class Folded(NamedTuple):
    """Some items of the lake, the ids of their events, and the rows that the fold made of them."""

    items: Items
    event_ids: pl.Series
    rows: Rows
    n_done: int  # items folded so far
    n_items: int  # items there are


def fold_lake(lake: Lake, stream: Stream) -> Iterator[Folded]:
    """Fold all events and labels of the lake again, in the one order, a chunk at a time.

    About `SLICE` rows of the lake are in memory at a time: more only where that many take effect within a millionth of
    the lake's whole time. Beside them stand the state and the list of records that were folded out of turn.

    Args:
        lake: a snapshot (`Lake.snapshot`), as it is read more than once.
    """
    spans, n_items, n_partitions = _slices(lake, stream)
    id_key = os.urandom(ID_KEY_BYTES)
    state = State(stream, n_partitions, id_key=id_key)
    n_done = 0
    for span in spans:
        items, event_ids = items_in_order(lake, stream, id_key, during=span)
        for begin in range(0, len(items.ids), CHUNK):
            chunk = Items._make(column[begin : begin + CHUNK] for column in items)
            n_done += len(chunk.ids)
            yield Folded(chunk, event_ids[begin : begin + CHUNK], state.fold(chunk), n_done, n_items)


def _slices(lake: Lake, stream: Stream) -> tuple[list[Span], int, int]:
    """Spans of about `SLICE` rows that follow one another, the number of rows, and that of partitions."""
    kinds = (LABEL, EVENT) if stream.labels else (EVENT,)
    low, high, n_partitions = 2**62, -(2**62), 1
    for kind in kinds:
        for batch in lake.batches(KIND_NAMES[kind], ["partition", "arrival_ms"]):
            if batch.height:
                at = batch["arrival_ms"].to_numpy() + _lag_ms(stream, kind)
                low, high = min(low, int(at.min())), max(high, int(at.max()))
                n_partitions = max(n_partitions, int(batch["partition"].max()) + 1)  # type: ignore[arg-type]
    if low > high:
        return [], 0, n_partitions
    width = (high - low) // _BUCKETS + 1
    counts = np.zeros((high - low) // width + 1, np.int64)
    for kind in kinds:
        for batch in lake.batches(KIND_NAMES[kind], ["arrival_ms"]):
            at = batch["arrival_ms"].to_numpy() + _lag_ms(stream, kind)
            counts += np.bincount((at - low) // width, minlength=len(counts))
    before = np.cumsum(counts) - counts
    cuts = low + width * np.flatnonzero(np.diff(before // SLICE, prepend=0))
    # what was folded out of turn may have its place outside of these times
    edges = [-(2**62), *cuts.tolist(), 2**62]
    return [Span(*ends) for ends in pairwise(edges)], int(counts.sum()), n_partitions


def _lag_ms(stream: Stream, kind: int) -> int:
    """From a record's arrival to its effect."""
    return stream.labels.lag_ms if stream.labels and kind == LABEL else 0


def items_in_order(
    lake: Lake, stream: Stream, id_key: bytes, chosen: pl.Expr | None = None, *, during: Span | None = None
) -> tuple[Items, pl.Series]:
    """All (or the chosen) events and labels in the one order, and the events' ids (null for labels).

    Args:
        id_key: of the state that will fold them.
        chosen: says by a record's place and `is_event`, `partition`, `offset` whether it is wanted.
        during: only what takes effect then is read.
    """
    frames = [placed(lake, stream, "events", EVENT, during=during)]
    if stream.labels:
        frames.append(placed(lake, stream, "labels", LABEL, during=during).drop("topic", "labelled_at_ms", "source"))
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


def placed(
    lake: Lake,
    stream: Stream,
    table: str,
    kind: int,
    *,
    columns: list[str] | None = None,
    during: Span | None = None,
) -> pl.DataFrame:
    """Rows of a table with their place in the one order: by arrival, or where the scorer said that it folded them.

    Args:
        columns: names, `partition`, `offset` and `arrival_ms` among them; None reads all.
        during: only rows that take effect then.
    """
    lag_ms = _lag_ms(stream, kind)
    told = (
        lake.read("places")
        .filter(pl.col("kind") == kind)
        .unique(["partition", "offset"], keep="last", maintain_order=True)
        .select("partition", "offset", *_AT)
        .rename({"at_partition": "told_partition", "at_offset": "told_offset"})
    )
    if during is None:
        rows = lake.read(table, columns=columns)
    else:
        rows = _taking_effect(lake, table, columns, told, during, lag_ms)
    rows = rows.join(told, on=["partition", "offset"], how="left", maintain_order="left")
    return rows.with_columns(
        is_event=pl.lit(kind == EVENT),
        effective_ms=pl.coalesce("at_effective_ms", pl.col("arrival_ms") + lag_ms),
        kind=pl.coalesce("at_kind", pl.lit(kind, pl.Int8)),
        at_partition=pl.coalesce("told_partition", "partition"),
        at_offset=pl.coalesce("told_offset", "offset"),
        seq=pl.coalesce("at_seq", pl.lit(0, pl.Int64)),
    ).drop("at_effective_ms", "at_kind", "told_partition", "told_offset", "at_seq")


def _taking_effect(
    lake: Lake, table: str, columns: list[str] | None, told: pl.DataFrame, during: Span, lag_ms: int
) -> pl.DataFrame:
    """Rows that take effect during a span: those of their own arrival, and those that were told to."""
    arrival, place = pc.field("arrival_ms"), ["partition", "offset"]
    in_turn = (arrival >= during.from_ms - lag_ms) & (arrival < during.until_ms - lag_ms)
    rows = lake.read(table, columns=columns, where=in_turn).join(told, on=place, how="anti", maintain_order="left")
    now = told.filter((pl.col("at_effective_ms") >= during.from_ms) & (pl.col("at_effective_ms") < during.until_ms))
    if now.height:
        late = lake.read(table, columns=columns, where=pc.field("offset").isin(now["offset"].to_list()))
        rows = pl.concat([rows, late.join(now, on=place, how="semi")])
    return rows


def _hashed(texts: pl.Series) -> NDArray[np.uint64]:
    """`contract.hash64` of every text, 0 where it is missing."""
    distinct = texts.unique().drop_nulls()
    hashes = pl.Series([hash64(text) for text in distinct], dtype=pl.UInt64)
    return texts.replace_strict(distinct, hashes, default=0, return_dtype=pl.UInt64).to_numpy()


def _stacked(columns: list[NDArray], n: int, kind: type) -> NDArray:
    return np.stack(columns, axis=1) if columns else np.empty((n, 0), kind)
