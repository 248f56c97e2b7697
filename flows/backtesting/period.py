"""The events of a period in the feature table, in the order of their arrival, with what came to be known of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from flows.backtesting.budgets import Window
from flows.backtesting.candidates import NothingToTestError
from flows.backtesting.review import NEVER_MS, Events
from pipelines.contracts.messages import rfc3339
from pipelines.contracts.stream import Stream
from pipelines.errors import UnmaskError
from pipelines.lake.feature_table import FeatureTable
from pipelines.lake.labels import is_mature, labels_of
from pipelines.lake.replay import PLACE, placed
from pipelines.lake.tables import Lake
from pipelines.model import Model
from pipelines.order import LABEL

BLOCK = 8_192  # rows read and scored at once


@dataclass(frozen=True)
class Period:
    """The events that arrived in [`from_ms`, `until_ms`): `rows` of the feature table, and what is known of them."""

    table: FeatureTable
    from_ms: int
    until_ms: int
    rows: range
    events: Events

    @property
    def clock_ms(self) -> NDArray[np.int64]:
        """Arrival of every event in the lake, **shape (n,)**."""
        return self.table.clock_ms

    def since(self, from_ms: int) -> range:
        """The rows that arrived since an earlier time, to the end of the period."""
        return range(int(np.searchsorted(self.clock_ms, from_ms)), self.rows.stop)


def period_of(
    lake: Lake,
    stream: Stream,
    table: FeatureTable,
    from_ms: int,
    until_ms: int,
    *,
    value: str | None = None,
    truth: Path | None = None,
) -> Period:
    """The events of a period, with labels as known at the end of the lake.

    Args:
        lake: the snapshot that the table was made from.
        value: number field that is the money of an event.
        truth: Parquet file (event_id, label) to use instead of the labels of the lake, for a replay whose labels are
            known before they arrive; an event without a row is legitimate or, where both are reported, unknown.

    Raises:
        NothingToTestError: no event arrived in the period.
    """
    first, end = np.searchsorted(table.clock_ms, [from_ms, until_ms]).tolist()
    if first == end:
        arrived = [rfc3339(int(table.clock_ms[at])) for at in (0, -1)] if len(table) else []
        there = f"its events arrived from {arrived[0]} to {arrived[1]}" if arrived else "it is empty"
        raise NothingToTestError(
            f"{stream.name}: no event of the lake arrived from {rfc3339(from_ms)} to {rfc3339(until_ms)}; {there}"
        )
    span = slice(first, end)
    event_id, time_ms = table.event_id[first:end], np.asarray(table.time_ms[span])
    label, known = labels_of(lake, stream, event_id, time_ms, as_of_ms=lake.end_ms())
    known &= is_mature(time_ms, stream.labels, as_of_ms=lake.end_ms())  # early labels are those of fast frauds
    if truth is not None:
        label, known = labels_told(
            event_id, truth, is_unknown=stream.labels is not None and stream.labels.reports == "both"
        )
    is_fraud = label == 1
    events = Events(
        arrival_ms=np.asarray(table.clock_ms[span]),
        time_ms=time_ms,
        is_fraud=is_fraud,
        is_judged=known,
        reported_ms=_reported_ms(lake, stream, event_id, is_fraud),
        value=None if value is None else _money(stream, table, span, value),
    )
    return Period(table, from_ms, until_ms, range(first, end), events)


def window_of(lake: Lake, stream: Stream, period: Period, from_ms: int) -> Window:
    """The events that arrived from a time to the start of the period, with their labels as known then."""
    first = int(np.searchsorted(period.clock_ms, from_ms))
    event_id = period.table.event_id[first : period.rows.start]
    time_ms = np.asarray(period.table.time_ms[first : period.rows.start])
    label, known = labels_of(lake, stream, event_id, time_ms, as_of_ms=period.from_ms)
    return Window(from_ms, period.from_ms, time_ms, label, known)


def score(
    model: Model, table: FeatureTable, rows: range, *, progress: Callable[[int], None] | None = None
) -> NDArray[np.float32]:
    """Scores of rows of the feature table, **shape (n,)**. Besides them, `BLOCK` rows are in memory."""
    found = np.zeros(len(rows), np.float32)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        span = slice(block.start, block.stop)
        found[start : start + BLOCK] = model.score(table.numeric[span], table.categorical[span])
        if progress:
            progress(start + len(block))
    return found


def check_value(stream: Stream, value: str | None) -> None:
    """Check that the money of an event is a number field of the stream.

    Raises:
        UnmaskError: it is not.
    """
    if value is not None and value not in stream.numbers:
        raise UnmaskError(
            f"--value {value}: {stream.name} has no such number field; it has {', '.join(stream.numbers) or 'none'}"
        )


def _money(stream: Stream, table: FeatureTable, span: slice, value: str) -> NDArray[np.float64]:
    return np.nan_to_num(table.numeric[span, stream.numeric_columns.index(value)], nan=0.0)


def labels_told(event_id: pl.Series, truth: Path, *, is_unknown: bool) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """Labels of events in a file of the truth, and whether they are known; see `period_of`."""
    told = pl.read_parquet(truth, columns=["event_id", "label"]).unique("event_id")
    rows = pl.DataFrame({"event_id": event_id}).join(told, on="event_id", how="left", maintain_order="left")
    known = rows["label"].is_not_null().to_numpy() if is_unknown else np.ones(len(event_id), bool)
    return rows["label"].fill_null(0).cast(pl.Int8).to_numpy(), known


def _reported_ms(lake: Lake, stream: Stream, event_id: pl.Series, is_fraud: NDArray[np.bool_]) -> NDArray[np.int64]:
    """When each fraud was first reported: the effect of its first label 1, **shape (n,)**."""
    found = np.full(len(event_id), NEVER_MS)
    if stream.labels is None or not is_fraud.any():
        return found
    columns = ["partition", "offset", "arrival_ms", "event_id", "label"]
    frauds = pl.DataFrame({"event_id": event_id.filter(pl.Series(is_fraud))})
    reports = placed(lake, stream, "labels", LABEL, columns=columns).filter(pl.col("label") == 1)
    first = reports.sort(PLACE).unique("event_id", keep="first", maintain_order=True)
    when = frauds.join(first.select("event_id", "effective_ms"), on="event_id", how="left", maintain_order="left")
    found[is_fraud] = when["effective_ms"].fill_null(NEVER_MS).to_numpy()
    return found
