"""Labels of the events in the lake as of a time.

The rule, here for tables and in `features.reports` for the fold: of the labels in effect that of the strongest source
is valid, among equals the latest, and a repeated label changes nothing. Where the stream file ranks no sources, all are
equal. 1 means fraud, 0 legitimate. What an event without a label is, the stream file says:

- `reports = "frauds"`: legitimate, and a 0 only withdraws an earlier 1. It is known once the event is older than the
  maturity.
- `reports = "both"`: unknown.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.contracts.stream import Labels, Stream
from pipelines.features.reports import strengths_of
from pipelines.lake.replay import PLACE, placed
from pipelines.lake.tables import Lake
from pipelines.order import LABEL

_COLUMNS = ["partition", "offset", "arrival_ms", "event_id", "label", "source"]


def labels_of(
    lake: Lake, stream: Stream, event_id: pl.Series, time_ms: NDArray[np.int64], *, as_of_ms: int
) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """Label of each event as of a time (1 = fraud), and whether it is known. **Shape (n,)** each.

    Args:
        event_id, time_ms: ids and event times, **shape (n,)**.
        as_of_ms: ms since 1970, on the stream's clock.
    """
    label, known = np.zeros(len(time_ms), np.int8), is_mature(time_ms, stream.labels, as_of_ms=as_of_ms)
    if stream.labels is None:
        return label, known
    reports = placed(lake, stream, "labels", LABEL, columns=_COLUMNS).filter(pl.col("effective_ms") < as_of_ms)
    reports = reports.sort(PLACE)
    valid = valid_labels(reports, stream.labels)
    frauds = valid.filter(pl.col("label") == 1)["event_id"]
    label[event_id.is_in(frauds.implode()).to_numpy()] = 1
    if stream.labels.reports == "both":
        known = event_id.is_in(valid["event_id"].implode()).to_numpy()
    return label, known


def valid_labels(reports: pl.DataFrame, labels: Labels) -> pl.DataFrame:
    """The valid label of each event: the rows of `reports` that hold.

    Args:
        reports: labels in the one order, with columns `event_id` and `source`.
        labels: the stream's; they rank the sources.

    >>> reports = pl.DataFrame({"event_id": ["a", "b", "a"], "label": [1, 0, 0], "source": ["bank", "ann", "ann"]})
    >>> valid_labels(reports, Labels(0, 0))["label"].to_list()
    [0, 0]
    >>> valid_labels(reports, Labels(0, 0, sources=("bank",)))["label"].to_list()
    [0, 1]
    """
    strength = pl.Series("strength", strengths_of(labels, reports["source"].to_list()))
    ordered = reports.with_columns(strength).sort("strength", maintain_order=True)
    return ordered.unique("event_id", keep="last", maintain_order=True).drop("strength")


def reports_of(lake: Lake, stream: Stream, event_id: str) -> pl.DataFrame:
    """All labels of an event in the one order, and whether each `holds` as soon as all are in effect.

    Columns: those of the table, `effective_ms` (ms since 1970, on the stream's clock), and `holds`.
    """
    assert stream.labels is not None
    reports = placed(lake, stream, "labels", LABEL).filter(pl.col("event_id") == event_id).sort(PLACE)
    valid = valid_labels(reports.with_row_index("row"), stream.labels)
    return reports.with_columns(holds=pl.int_range(pl.len()).is_in(valid["row"].implode()))


def is_mature(time_ms: NDArray[np.int64], labels: Labels | None, *, as_of_ms: int) -> NDArray[np.bool_]:
    """Which events are old enough at a time that their labels have arrived.

    Args:
        time_ms: event times, **shape (n,)**.
        labels: label settings of the stream; None = it has no labels, and nothing is known.
        as_of_ms: ms since 1970, on the stream's clock.
    """
    if labels is None:
        return np.zeros(len(time_ms), bool)
    return time_ms < as_of_ms - labels.maturity_ms - labels.lag_ms
