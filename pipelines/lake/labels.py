"""Labels of the events in the lake as of a time.

The rule, here for tables and in `features.reports` for the fold: the latest label in effect is valid. 1 means fraud, 0
withdraws an earlier 1, a repeated label changes nothing, and an event without a label is legitimate. That it is
legitimate is known once the event is older than the maturity.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.contracts.stream import Labels, Stream
from pipelines.lake.replay import PLACE, placed
from pipelines.lake.tables import Lake
from pipelines.order import LABEL

_COLUMNS = ["partition", "offset", "arrival_ms", "event_id", "label"]


def reported_frauds(lake: Lake, stream: Stream, *, as_of_ms: int) -> pl.Series:
    """Ids of the events whose latest label in effect before a time is fraud.

    Args:
        as_of_ms: ms since 1970, on the stream's clock.
    """
    reports = placed(lake, stream, "labels", LABEL, columns=_COLUMNS).filter(pl.col("effective_ms") < as_of_ms)
    reports = reports.sort(PLACE)
    return frauds_of(reports["event_id"], reports["label"])


def frauds_of(event_id: pl.Series, label: pl.Series) -> pl.Series:
    """Ids whose latest label is fraud.

    Args:
        event_id, label: of labels in the one order, **shape (n,)**; 1 = fraud, 0 = withdrawn.

    >>> frauds_of(pl.Series(["a", "b", "a", "b"]), pl.Series([1, 0, 0, 1])).to_list()
    ['b']
    """
    latest = pl.DataFrame({"event_id": event_id, "label": label}).unique("event_id", keep="last", maintain_order=True)
    return latest.filter(pl.col("label") == 1)["event_id"]


def is_known(time_ms: NDArray[np.int64], labels: Labels | None, *, as_of_ms: int) -> NDArray[np.bool_]:
    """Which events are old enough at a time that a missing label means legitimate.

    Args:
        time_ms: event times, **shape (n,)**.
        labels: label settings of the stream; None = it has no labels, and nothing is known.
        as_of_ms: ms since 1970, on the stream's clock.
    """
    if labels is None:
        return np.zeros(len(time_ms), bool)
    return time_ms < as_of_ms - labels.maturity_ms - labels.lag_ms
