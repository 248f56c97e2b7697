"""Compare recomputed scores and alerts with those that were really published."""

from dataclasses import dataclass
from functools import reduce

import numpy as np
import polars as pl
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.lake.audit import SCORE_TOLERANCE
from pipelines.lake.feature_table import FeatureTable
from pipelines.lake.tables import Lake
from pipelines.model import Model

_COLUMNS = ["partition", "offset", "score", "alert", "features_hash", "threshold"]


@dataclass(frozen=True)
class LiveCheck:
    """The events of the period that a model scored live, compared with its scores of the backtest.

    Args:
        n_compared: number of live scores.
        n_features_equal: those made from equal features.
        n_scores_equal: those equal bit for bit.
        worst: largest difference of a score.
        n_alerts: live scores that raised an alert.
        n_alerts_equal: scores of which the alert is decided as it was.
        n_ordered: those decided with a threshold that an operator had ordered; they are compared with that one.
    """

    n_compared: int = 0
    n_features_equal: int = 0
    n_scores_equal: int = 0
    worst: float = 0.0
    n_alerts: int = 0
    n_alerts_equal: int = 0
    n_ordered: int = 0

    @property
    def is_equal(self) -> bool:
        """Whether every score has the same bits, and every alert is decided as it was."""
        return self.n_compared == self.n_features_equal == self.n_scores_equal == self.n_alerts_equal

    @property
    def holds(self) -> bool:
        """Whether features and alerts are equal and scores within 1e-5, as between different kinds of CPU."""
        return self.n_compared == self.n_features_equal == self.n_alerts_equal and self.worst <= SCORE_TOLERANCE

    @property
    def words(self) -> str:
        """The result in one line.

        >>> LiveCheck(9, 9, 9, 0.0, 2, 9).words
        '9 events were scored live: 9 scores are equal bit for bit, 9 alerts are decided as they were (2 raised)'
        """
        if not self.n_compared:
            return "it scored no event of the period live"
        words = (
            f"{self.n_compared:,} events were scored live: {self.n_scores_equal:,} scores are equal bit for bit, "
            f"{self.n_alerts_equal:,} alerts are decided as they were ({self.n_alerts:,} raised"
        )
        words += f", {self.n_ordered:,} scores judged by an ordered threshold)" if self.n_ordered else ")"
        if self.n_features_equal < self.n_compared:
            words += f"; {self.n_compared - self.n_features_equal:,} have other features: the stream file has changed?"
        if self.n_scores_equal < self.n_compared:
            words += f"; largest difference {self.worst:.1e}"
        return words


@dataclass(frozen=True)
class Live:
    """The live scores of one model on some rows: `rows` are their indices, the others are beside it, **shape (k,)**."""

    rows: NDArray[np.int64]
    score: NDArray[np.float64]
    is_alert: NDArray[np.bool_]
    features_hash: NDArray[np.uint64]
    threshold: NDArray[np.float64]

    def compared(self, model: Model, table: FeatureTable, first: int, score: NDArray[np.float32]) -> LiveCheck:
        """Compare with the scores of the rows from `first` on."""
        again = score[self.rows - first]
        is_ordered = np.isfinite(self.threshold)
        threshold = np.where(is_ordered, self.threshold, model.threshold).astype(np.float32)
        return LiveCheck(
            n_compared=len(self.rows),
            n_features_equal=int((self.features_hash == table.hashes[self.rows]).sum()),
            n_scores_equal=int((self.score.astype(np.float32).view(np.uint32) == again.view(np.uint32)).sum()),
            worst=float(np.abs(self.score - again).max(initial=0.0)),
            n_alerts=int(self.is_alert.sum()),
            n_alerts_equal=int((self.is_alert == (again > threshold)).sum()),
            n_ordered=int(is_ordered.sum()),
        )


def live_scores(lake: Lake, table: FeatureTable, rows: range, digest: str) -> Live:
    """What a model really scored among some rows of the feature table."""
    if not rows:
        return Live(np.zeros(0, np.int64), *(np.zeros(0, kind) for kind in (float, bool, np.uint64, float)))
    span = slice(rows.start, rows.stop)
    at = pl.DataFrame(
        {"partition": table.partition[span], "offset": table.offset[span], "row": np.arange(rows.start, rows.stop)}
    )
    of_partitions = [
        (pc.field("partition") == p) & (pc.field("offset") >= first) & (pc.field("offset") <= last)
        for p, first, last in at.group_by("partition").agg(first=pl.min("offset"), last=pl.max("offset")).rows()
    ]
    within = reduce(lambda one, other: one | other, of_partitions)
    found = lake.read("scores", columns=_COLUMNS, where=(pc.field("model") == digest) & within)
    found = found.join(at, on=["partition", "offset"], how="inner", maintain_order="left").sort("row")
    return Live(
        found["row"].to_numpy(),
        found["score"].to_numpy(),
        found["alert"].to_numpy(),
        found["features_hash"].str.to_integer(base=16, dtype=pl.UInt64).to_numpy(),
        found["threshold"].fill_null(np.nan).to_numpy(),
    )
