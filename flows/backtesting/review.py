"""Who reviews what: of the alerts of each day, the cases that a team of limited capacity looks at. Arrays only."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.contracts.stream import DAY_MS

NO_CASE = -1
NEVER_MS = 2**62
MS_PER_HOUR = 3_600_000


@dataclass(frozen=True)
class Events:
    """The events of a period in the one order. All arrays have the shape (n,).

    Args:
        arrival_ms: when each took effect; it never decreases. Days are UTC days of it.
        time_ms: event times.
        is_fraud: known by the end of the lake.
        is_judged: whether a label is final by then; the others are in no figure about frauds.
        reported_ms: when a fraud was first reported, whoever found it; `NEVER_MS` if the lake has no report.
        value: money of the event, 0 where it is missing; None = no field of it was named.
    """

    arrival_ms: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    is_fraud: NDArray[np.bool_]
    is_judged: NDArray[np.bool_]
    reported_ms: NDArray[np.int64]
    value: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.arrival_ms)

    @property
    def day(self) -> NDArray[np.int64]:
        """UTC day of each event, counted from the first day of the period, **shape (n,)**."""
        days = self.arrival_ms // DAY_MS
        return np.asarray(days - days[0]) if len(days) else days


@dataclass(frozen=True)
class Review:
    """The alerts of a period, and the rank of the case of each on its day. Arrays have the shape (n,).

    A case is what an analyst opens: an alert, or a group of alerts of one key. `case` is the row of its first alert,
    `NO_CASE` for events without an alert and for alerts that are only listed, beyond the cap of the stream file.
    """

    is_alert: NDArray[np.bool_]
    case: NDArray[np.int64]
    rank: NDArray[np.int64]
    capacity: int | None

    @property
    def is_reviewed(self) -> NDArray[np.bool_]:
        """Alerts whose case is reviewed."""
        return (self.rank > 0) & (True if self.capacity is None else self.rank <= self.capacity)

    def any_of(self, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """For the first alert of each case, whether any alert of the case is one of these rows, **shape (n,)**."""
        found = np.zeros(len(rows), bool)
        found[self.case[rows & (self.case != NO_CASE)]] = True
        return found

    @property
    def opens(self) -> NDArray[np.bool_]:
        """The first alert of each case."""
        return self.case == np.arange(len(self.case))


def review(
    score: NDArray[np.float32],
    is_alert: NDArray[np.bool_],
    day: NDArray[np.int64],
    *,
    case: NDArray[np.int64] | None = None,
    capacity: int | None = None,
) -> Review:
    """Rank the cases of each day by the score of their first alert; of equal scores the earlier one is first.

    Args:
        score, is_alert, day: of events in order, **shape (n,)**.
        case: see `Review`; None = each alert is a case.
        capacity: cases reviewed a day; None = all.

    >>> score = np.float32([0.9, 0.8, 0.1, 0.95])
    >>> found = review(score, score > 0.5, np.zeros(4, int), capacity=2)
    >>> found.rank.tolist(), found.is_reviewed.tolist()
    ([2, 3, 0, 1], [True, False, False, True])
    """
    if case is None:
        case = np.where(is_alert, np.arange(len(score)), NO_CASE)
    first = np.flatnonzero(case == np.arange(len(case)))
    order = first[np.lexsort((first, -score[first].astype(np.float64), day[first]))]
    rank_of = np.zeros(len(score), np.int64)
    rank_of[order] = np.arange(len(order)) - np.searchsorted(day[order], day[order]) + 1
    rank = np.where(case == NO_CASE, 0, rank_of[case])
    return Review(is_alert, case, rank, capacity)


def daily(events: Events, found: Review) -> pl.DataFrame:
    """One row a day: the work, and what came of it. The sums over the days are the totals of the period.

    Each event counts on the day of its arrival, a case on the day of its first alert. Columns:

    - ``day``; ``events``, ``final`` of them with a final label; ``alerts``; ``cases`` opened, ``reviewed`` of them,
      and ``judged`` of these with a final label; ``right``: reviewed cases with a fraud.
    - ``frauds``, of which ``caught`` in a reviewed case, ``beyond`` with an alert that nobody had time for, and
      ``below`` without an alert; ``reported``: frauds of the period whose report had arrived by the end of the day.
    - ``value``, ``value_caught``, ``value_beyond``, ``value_below``: the money of these frauds, if a field is named.
    """
    day, is_fraud, is_reviewed = events.day, events.is_fraud & events.is_judged, found.is_reviewed
    n_days = int(day[-1]) + 1 if len(events) else 0

    def per_day(rows: NDArray[np.bool_], weight: NDArray[np.float64] | None = None) -> NDArray[np.generic]:
        summed = np.bincount(day[rows], None if weight is None else weight[rows], minlength=n_days)
        return np.asarray(summed)

    opens, is_right, is_known = found.opens, found.any_of(is_fraud), found.any_of(events.is_judged)
    caught, beyond = is_fraud & is_reviewed, is_fraud & found.is_alert & ~is_reviewed
    below = is_fraud & ~found.is_alert
    columns: dict[str, NDArray[np.generic]] = {
        "events": per_day(np.ones(len(events), bool)),
        "final": per_day(events.is_judged),
        "alerts": per_day(found.is_alert),
        "cases": per_day(opens),
        "reviewed": per_day(opens & is_reviewed),
        "judged": per_day(opens & is_reviewed & is_known),
        "right": per_day(opens & is_reviewed & is_right),
        "frauds": per_day(is_fraud),
        "caught": per_day(caught),
        "beyond": per_day(beyond),
        "below": per_day(below),
    }
    first_day = int(events.arrival_ms[0]) // DAY_MS if len(events) else 0
    ends = (first_day + np.arange(1, n_days + 1)) * DAY_MS
    columns["reported"] = np.searchsorted(np.sort(events.reported_ms[is_fraud]), ends)
    if events.value is not None:
        parts = {"value": is_fraud, "value_caught": caught, "value_beyond": beyond, "value_below": below}
        columns |= {name: per_day(rows, events.value) for name, rows in parts.items()}
    days = pl.Series("day", first_day + np.arange(n_days), pl.Int32).cast(pl.Date)
    return pl.DataFrame([days, *(pl.Series(name, values) for name, values in columns.items())])


def totals(events: Events, found: Review, days: pl.DataFrame, score: NDArray[np.float32]) -> dict[str, float | None]:
    """The figures of the period by name; None where there is nothing to divide by.

    `lead_hours` is the median time from the alert of a caught fraud to its report, `delay_s` that from an event to its
    alert.
    """
    sums: dict[str, float] = {name: float(days[name].sum()) for name in days.columns if name not in ("day", "reported")}
    caught = events.is_fraud & events.is_judged & found.is_reviewed
    is_known = caught & (events.reported_ms < NEVER_MS)
    lead = (events.reported_ms - events.arrival_ms)[is_known] / MS_PER_HOUR
    delay = np.maximum(events.arrival_ms - events.time_ms, 0)[found.is_alert] / 1000
    figures: dict[str, float | None] = {
        **sums,
        "alert_rate": _over(sums["alerts"], len(events)),
        "reviewed_per_day": _over(sums["reviewed"], days.height),
        "precision": _over(sums["right"], sums["judged"]),
        "recall": _over(sums["caught"], sums["frauds"]),
        "lead_hours": float(np.median(lead)) if len(lead) else None,
        "delay_s": float(np.median(delay)) if len(delay) else None,
    }
    if events.value is not None:
        figures["value_recall"] = _over(sums["value_caught"], sums["value"])
        figures["value_per_review"] = _over(sums["value_caught"], sums["reviewed"])
    if len(score):
        figures |= {f"score_p{q:g}": float(np.quantile(score, q / 100)) for q in (50, 90, 99, 99.9)}
    return figures


def by_capacity(events: Events, found: Review, *, most: int = 60) -> pl.DataFrame:
    """What other capacities do, up to one for all cases: columns capacity, reviewed (a day), caught, precision."""
    top, n_days = int(found.rank.max(initial=0)), int(events.day[-1]) + 1 if len(events) else 1
    capacity = np.unique(np.geomspace(1, max(top, 1), most).round().astype(np.int64))
    is_fraud = events.is_fraud & events.is_judged
    opens, ranked = found.opens, found.rank > 0

    def up_to(rows: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.cumsum(np.bincount(found.rank[rows], minlength=int(capacity[-1]) + 1))[capacity]

    judged = up_to(opens & found.any_of(events.is_judged))
    right = up_to(opens & found.any_of(is_fraud))
    return pl.DataFrame(
        {
            "capacity": capacity,
            "reviewed": up_to(opens) / n_days,
            "caught": up_to(ranked & is_fraud),
            "precision": np.where(judged > 0, right / np.maximum(judged, 1), np.nan),
        }
    )


def _over(part: float, whole: float) -> float | None:
    return part / whole if whole else None
