"""The replay of the lake: its events and labels in the one order, folded again, bit-equal to the live fold."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.contracts.block import Block
from pipelines.contracts.contract import hashes_of
from pipelines.contracts.stream import Stream
from pipelines.features.state import State
from pipelines.lake.tables import Lake
from pipelines.order import EVENT, KIND_NAMES, LABEL, Frontier, Source

CHUNK = 50_000
SLICE = 500_000  # approximate number of rows read and sorted at once
PLACE = ["effective_ms", "kind", "at_partition", "at_offset", "seq"]
_AT = ["at_effective_ms", "at_kind", "at_partition", "at_offset", "at_seq"]
_NOT_FOLDED = ("topic", "labelled_at_ms", "labelled_by", "label_why")  # columns of labels
_FOREVER_MS = 2**62
_BUCKETS = 1 << 20  # time intervals in which rows are counted, to divide the lake into slices


class Span(NamedTuple):
    """Effective times in [`from_ms`, `until_ms`)."""

    from_ms: int
    until_ms: int


_ALWAYS = Span(-_FOREVER_MS, _FOREVER_MS)


class Folded(NamedTuple):
    """Records of the lake after the fold."""

    block: Block
    n_done: int  # items folded so far
    n_items: int  # total number of items


def fold_lake(
    lake: Lake, stream: Stream, *, state: State | None = None, until_ms: int = _FOREVER_MS
) -> Iterator[Folded]:
    """Fold the events and labels of the lake in the one order, chunk by chunk: all, or those after a state.

    If each partition has a state of its own (`Stream.folds_by_partition`), so it is here.

    In memory are about `SLICE` rows at a time (more only if they take effect within a millionth of the lake's time
    span), the state, and the list of records that were folded out of turn.

    Args:
        lake: a snapshot (`Lake.snapshot`), because it is read more than once.
        state: a restored one; the records before its frontier are in it already, and those of partitions that it does
            not fold are left out. It is changed.
        until_ms: only records that take effect before this time.
    """
    from_ms = state.last.effective_ms if state is not None and state.last is not None else -_FOREVER_MS
    spans, n_items, n_partitions = slices(lake, stream, Span(from_ms, until_ms))
    unfolded, fold = None, _fold_by_partition(stream, n_partitions)
    if state is not None:
        unfolded, fold = at_or_after(state.frontier) & pl.col("partition").is_in(state.partitions), state.fold
    elif not stream.folds_by_partition:
        fold = State(stream, n_partitions).fold
    n_done = 0
    for span in spans:
        block = block_in_order(lake, stream, unfolded, during=span)
        for begin in range(0, len(block), CHUNK):
            chunk = block.take(slice(begin, begin + CHUNK))
            n_done += len(chunk)
            yield Folded(fold(chunk), n_done, n_items)


def _fold_by_partition(stream: Stream, n_partitions: int) -> Callable[[Block], Block]:
    """A fold with a state for each partition."""
    states: dict[int, State] = {}

    def fold(block: Block) -> Block:
        rows_of = {p: np.flatnonzero(block.partition == p) for p in np.unique(block.partition).tolist()}
        parts = []
        for p, rows in rows_of.items():
            if p not in states:
                states[p] = State(stream, n_partitions, partitions=[p])
            parts.append(states[p].fold(block.take(rows)))
        if not parts:
            return block
        return Block.concat(parts).take(np.argsort(np.concatenate(list(rows_of.values()))))

    return fold


def slices(lake: Lake, stream: Stream, within: Span = _ALWAYS) -> tuple[list[Span], int, int]:
    """Consecutive spans of about `SLICE` rows, the number of rows, and the number of partitions."""
    kinds = (LABEL, EVENT) if stream.labels else (EVENT,)
    low, high, n_partitions = _FOREVER_MS, -_FOREVER_MS, 1
    for kind in kinds:
        for batch in lake.batches(KIND_NAMES[kind], ["partition", "arrival_ms"]):
            if batch.height:
                at = _within(batch, within, _lag_ms(stream, kind))
                low, high = min(low, int(at.min(initial=low))), max(high, int(at.max(initial=high)))
                n_partitions = max(n_partitions, int(batch["partition"].max()) + 1)  # type: ignore[arg-type]
    if low > high:
        return ([within] if within.from_ms > -_FOREVER_MS else []), 0, n_partitions
    width = (high - low) // _BUCKETS + 1
    counts = np.zeros((high - low) // width + 1, np.int64)
    for kind in kinds:
        for batch in lake.batches(KIND_NAMES[kind], ["arrival_ms"]):
            at = _within(batch, within, _lag_ms(stream, kind))
            counts += np.bincount((at - low) // width, minlength=len(counts))
    before = np.cumsum(counts) - counts
    cuts = low + width * np.flatnonzero(np.diff(before // SLICE, prepend=0))
    # records folded out of turn may have a place outside of these times
    edges = [within.from_ms, *cuts.tolist(), within.until_ms]
    return [Span(*ends) for ends in pairwise(edges)], int(counts.sum()), n_partitions


def _within(rows: pl.DataFrame, within: Span, lag_ms: int) -> NDArray[np.int64]:
    """Effective times of those rows that arrived in their turn within a span."""
    at = rows["arrival_ms"].to_numpy() + lag_ms
    return at[(at >= within.from_ms) & (at < within.until_ms)]


def at_or_after(offsets: Frontier) -> pl.Expr:
    """Records at or beyond the offset of their source; all records of other sources."""
    before = pl.lit(False)
    for source, offset in offsets.items():
        before |= of_source(source) & (pl.col("offset") < offset)
    return ~before


def of_source(source: Source) -> pl.Expr:
    """Records of a source."""
    return (pl.col("is_event") == (source.kind == EVENT)) & (pl.col("partition") == source.partition)


def _lag_ms(stream: Stream, kind: int) -> int:
    """Delay from the arrival of a record to its effect, ms."""
    return stream.labels.lag_ms if stream.labels and kind == LABEL else 0


def block_in_order(lake: Lake, stream: Stream, chosen: pl.Expr | None = None, *, during: Span | None = None) -> Block:
    """Events and labels of the lake, ready to fold, without the texts of entities and categories.

    Args:
        chosen: selects records by their place, `is_event`, `partition` and `offset`; all by default.
        during: read only records that take effect in this span.
    """
    frames = [placed(lake, stream, "events", EVENT, during=during)]
    if stream.labels:
        frames.append(placed(lake, stream, "labels", LABEL, during=during).drop(*_NOT_FOLDED))
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
        block.label[:], block.label_source[:] = both["label"].fill_null(0).to_numpy(), both["source"].to_list()
    for i, name in enumerate(stream.entities):
        block.entity_hashes[:, i] = hashes_of(both[name].to_list())
    for i, name in enumerate(stream.numbers):
        block.numbers[:, i] = both[name].fill_null(np.nan).to_numpy()
    for i, name in enumerate(stream.categories):
        block.category_hashes[:, i] = hashes_of(both[name].to_list())
    return block


def placed(
    lake: Lake,
    stream: Stream,
    table: str,
    kind: int,
    *,
    columns: list[str] | None = None,
    during: Span | None = None,
) -> pl.DataFrame:
    """Rows of a table with their place in the one order: by arrival, or where the scorer recorded that it folded them.

    Args:
        columns: column names, including `partition`, `offset` and `arrival_ms`; None reads all.
        during: read only rows that take effect in this span.
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
    """Rows that take effect in a span, by arrival or by a recorded place."""
    arrival, place = pc.field("arrival_ms"), ["partition", "offset"]
    in_turn = (arrival >= during.from_ms - lag_ms) & (arrival < during.until_ms - lag_ms)
    rows = lake.read(table, columns=columns, where=in_turn).join(told, on=place, how="anti", maintain_order="left")
    now = told.filter((pl.col("at_effective_ms") >= during.from_ms) & (pl.col("at_effective_ms") < during.until_ms))
    if now.height:
        late = lake.read(table, columns=columns, where=pc.field("offset").isin(now["offset"].to_list()))
        rows = pl.concat([rows, late.join(now, on=place, how="semi")])
    return rows
