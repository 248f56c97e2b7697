"""The result of a backtest: one outcome for each model and budget, and what was compared with the live scores."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import polars as pl

from flows.backtesting.live_check import LiveCheck
from pipelines.contracts.messages import rfc3339
from pipelines.contracts.stream import DAY_MS


@dataclass(frozen=True)
class Outcome:
    """What one model would have done with one budget.

    Args:
        model, version, digest: which one.
        budget: as it was asked for.
        threshold: what a score had to exceed.
        set_from: the events that set the threshold, in words.
        n_seen: events of the period that the model may have seen in its training, and did not score live.
        days: see `review.daily`.
        totals: see `review.totals`.
        by_capacity: see `review.by_capacity`.
    """

    model: str
    version: int
    digest: str
    budget: str
    threshold: float
    set_from: str
    n_seen: int
    days: pl.DataFrame
    totals: Mapping[str, float | None]
    by_capacity: pl.DataFrame

    @property
    def name(self) -> str:
        """Model and budget."""
        return f"{self.model}, {'own threshold' if self.budget == 'model' else self.budget}"

    def said(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "version": self.version,
            "digest": self.digest,
            "budget": self.budget,
            "threshold": self.threshold,
            "threshold_from": self.set_from,
            "seen_events": self.n_seen,
            **self.totals,
            "days": [{**row, "day": f"{row['day']}"} for row in self.days.rows(named=True)],
        }


@dataclass(frozen=True)
class Backtest:
    """The result for a period.

    Args:
        n_events: events that arrived in it.
        n_judged: those with a final label at the end of the lake.
        n_frauds: those known to be fraud by then.
        capacity: cases reviewed a day; None = all.
        value: number field that is the money of an event.
        live: for each model, the comparison with its live scores.
        comparison: average precision and ROC AUC of the first model and of baselines, if asked for.
        url: page of the MLflow run.
    """

    stream: str
    from_ms: int
    until_ms: int
    n_events: int
    n_judged: int
    n_frauds: int
    capacity: int | None
    value: str | None
    outcomes: list[Outcome]
    live: Mapping[str, LiveCheck]
    comparison: Mapping[str, float] = field(default_factory=dict)
    url: str = ""

    @property
    def holds(self) -> bool:
        """Whether what was live is reproduced."""
        return all(check.holds for check in self.live.values())

    @property
    def has_labels(self) -> bool:
        """Whether any event of the period has a final label."""
        return self.n_judged > 0

    def notes(self) -> list[str]:
        """What a reader must know beside the figures."""
        said = [f"{name}: {check.words}." for name, check in self.live.items()]
        for model, n in {one.model: one.n_seen for one in self.outcomes if one.n_seen}.items():
            of_all = f"{n:,} of the {self.n_events:,} events"
            said.append(f"SEEN: {model} may have been trained on {of_all}; its figures are too good.")
        if not self.has_labels:
            said.append("No event of the period has a final label: there are figures about the work only.")
        elif self.n_judged < self.n_events:
            n = self.n_events - self.n_judged
            said.append(f"{n:,} events have no final label at the end of the lake; no figure about frauds counts them.")
        return said + [f"{one.name}: threshold {one.threshold:.6g} from {one.set_from}." for one in self.outcomes]

    def said(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "stream": self.stream,
            "from": rfc3339(self.from_ms),
            "until": rfc3339(self.until_ms),
            "events": self.n_events,
            "judged": self.n_judged,
            "frauds": self.n_frauds,
            "capacity": self.capacity,
            "value": self.value,
            "outcomes": [one.said() for one in self.outcomes],
            "live": {name: {**vars(check), "is_equal": check.is_equal} for name, check in self.live.items()},
            "comparison": dict(self.comparison),
            "mlflow": self.url,
        }


def day_or_time(ms: int) -> str:
    """A day, or a time where it is not midnight (UTC).

    >>> day_or_time(0), day_or_time(3_600_000)
    ('1970-01-01', '1970-01-01 01:00')
    """
    moment = datetime.fromtimestamp(ms / 1000, UTC)
    return f"{moment:%Y-%m-%d}" if ms % DAY_MS == 0 else f"{moment:%Y-%m-%d %H:%M}"
