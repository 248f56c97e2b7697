"""Labels of the events in the lake as of a time.

The rule, here for tables and in `features.reports` for the fold: the latest label in effect is valid, and a repeated
label changes nothing. 1 means fraud, 0 legitimate. What an event without a label is, the stream file says:

- `reports = "frauds"`: legitimate, and a 0 only withdraws an earlier 1. It is known once the event is older than the
  maturity.
- `reports = "both"`: unknown.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.contracts.stream import Labels, Stream
from pipelines.lake.replay import PLACE, placed
from pipelines.lake.tables import Lake
from pipelines.order import LABEL

_COLUMNS = ["partition", "offset", "arrival_ms", "event_id", "label"]


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
    latest = latest_labels(reports["event_id"], reports["label"])
    frauds = latest.filter(pl.col("label") == 1)["event_id"]
    label[event_id.is_in(frauds.implode()).to_numpy()] = 1
    if stream.labels.reports == "both":
        known = event_id.is_in(latest["event_id"].implode()).to_numpy()
    return label, known


def latest_labels(event_id: pl.Series, label: pl.Series) -> pl.DataFrame:
    """The latest label of each event: columns `event_id`, `label`.

    Args:
        event_id, label: of labels in the one order, **shape (n,)**; 1 = fraud, 0 = legitimate.

    >>> latest_labels(pl.Series(["a", "b", "a", "b"]), pl.Series([1, 0, 0, 1])).rows()
    [('a', 0), ('b', 1)]
    """
    labels = pl.DataFrame({"event_id": event_id, "label": label})
    return labels.unique("event_id", keep="last", maintain_order=True)


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
