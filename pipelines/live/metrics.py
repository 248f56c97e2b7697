"""Counters of a scorer, for its status file and for operators. Counted per block, never per event."""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pipelines.contracts.block import Block
from pipelines.contracts.messages import Progress

LATENCY_MS = (5, 10, 20, 40, 60, 80, 100, 150, 200, 300, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000)
BLOCK_ROWS = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000)


@dataclass
class ScorerCounters:
    """Counters since the start of the scorer."""

    n_read: int = 0
    n_folded: int = 0
    n_out_of_turn: int = 0
    n_unknown_fields: int = 0
    n_broken_labels: int = 0
    n_late: int = 0
    n_snapshots: int = 0
    n_snapshots_failed: int = 0


class Lag(NamedTuple):
    """How far a partition is behind: events not yet published, and the age of the oldest one read, ms."""

    records: int
    ms: int


class Histogram:
    """Number of values in buckets with ascending upper bounds, the last one without a bound.

    >>> histogram = Histogram((10, 100))
    >>> histogram.add([10, 11, 1_000])
    >>> histogram.cumulative(), histogram.total
    ([1, 2, 3], 1021.0)
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.total = 0.0
        self._counts = np.zeros(len(bounds) + 1, np.int64)

    def add(self, values: ArrayLike) -> None:
        """Count values; shape (n,)."""
        found = np.asarray(values)
        self._counts += np.bincount(np.searchsorted(self.bounds, found), minlength=len(self._counts))
        self.total += float(found.sum())

    def cumulative(self) -> list[int]:
        """Number of values up to each bound, then of all."""
        return [int(n) for n in np.cumsum(self._counts)]


@dataclass
class Published:
    """What this process has published, in all of its lanes.

    - `refused`: number of refused events by rule.
    - `n_alerts`, `n_suppressed`: scores over the threshold; those of suppressed entities among them.
    - `n_reviews`: events drawn for review.
    - `n_late`, `n_out_of_order`: events older than the newest one of their partition; after their place in the order.
    - `latency_ms`: from the arrival of an event at the broker to the commit of its score, in a live stream.
    - `block_rows`: events in a transaction.
    """

    n_scored: int = 0
    n_duplicates: int = 0
    n_alerts: int = 0
    n_suppressed: int = 0
    n_reviews: int = 0
    n_late: int = 0
    n_out_of_order: int = 0
    n_rebuilt: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    latency_ms: Histogram = field(default_factory=lambda: Histogram(LATENCY_MS))
    block_rows: Histogram = field(default_factory=lambda: Histogram(BLOCK_ROWS))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(
        self,
        rows: Block,
        before: Progress,
        after: Progress,
        *,
        n_alerts: int,
        n_suppressed: int,
        n_reviews: int,
        now_ms: float,
    ) -> None:
        """Count a committed block, which moved the progress of its partition from `before` to `after`."""
        if not len(rows):
            return
        n_refused = after.n_refused - before.n_refused
        refused = Counter(one.rule for one in rows.refusal.tolist() if one is not None) if n_refused else Counter[str]()
        if lacking := n_refused - refused.total():
            refused["unpublishable"] = lacking
        with self._lock:
            self.n_scored += after.n_scored - before.n_scored
            self.n_duplicates += after.n_duplicates - before.n_duplicates
            self.n_alerts += n_alerts
            self.n_suppressed += n_suppressed
            self.n_reviews += n_reviews
            self.n_late += int(np.count_nonzero(rows.late_ms))
            self.n_out_of_order += int(np.count_nonzero(rows.out_of_turn))
            self.refused += refused
            self.latency_ms.add(np.maximum(now_ms - rows.arrival_ms, 0.0))
            self.block_rows.add([len(rows)])

    def rebuilt(self) -> None:
        """Count a lane that opened a new producer."""
        with self._lock:
            self.n_rebuilt += 1
