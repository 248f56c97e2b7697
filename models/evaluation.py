"""Figures of a scorer on events with known labels: curves, calibration, alert budgets, and groups of events."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from models.table import Table

DOUBT = 0.05  # of an interval: 1 - 95 %
LEAST_FRAUDS = 5  # of a group whose recall is judged
MOST_GROUPS = 12  # groups of a field with a line of their own; the others are one


@dataclass(frozen=True)
class Share:
    """A share `k` of `n`, with the 95 % interval of Wilson (1927), which holds for small `n` too.

    >>> half = Share(5, 10)
    >>> half.value, round(half.low, 2), round(half.high, 2)
    (0.5, 0.24, 0.76)
    """

    k: int
    n: int

    @property
    def value(self) -> float:
        """NaN if `n` is 0."""
        return self.k / self.n if self.n else float("nan")

    @property
    def low(self) -> float:
        return self.interval()[0]

    @property
    def high(self) -> float:
        return self.interval()[1]

    def interval(self, *, doubt: float = DOUBT) -> tuple[float, float]:
        """Bounds that do not contain the true share with this probability."""
        if self.n == 0:
            return 0.0, 1.0
        z = NormalDist().inv_cdf(1 - doubt / 2)
        p, z2 = self.k / self.n, z * z / self.n
        half = z * math.sqrt(p * (1 - p) / self.n + z2 / (4 * self.n))
        low, high = ((p + z2 / 2 + sign * half) / (1 + z2) for sign in (-1, 1))
        return max(low, 0.0), min(high, 1.0)


def stability_index(before: NDArray[np.number], now: NDArray[np.number]) -> float:
    """Population stability index of counts by bin, **shape (n_bins,)** each; below 0.1 is stable, above 0.25 a shift.

    >>> before, same, other = np.array([[9, 1], [18, 2], [1, 9]])
    >>> stability_index(before, same), round(stability_index(before, other), 2)
    (0.0, 3.52)

    Source: Siddiqi, Credit Risk Scorecards (2006). Empty bins count as half an event.
    """
    was, is_now = (np.maximum(n, 0.5) / np.maximum(n, 0.5).sum() for n in (before, now))
    return float(np.sum((is_now - was) * np.log(is_now / was)))


@dataclass(frozen=True)
class Group:
    """Alerts of the events with one value of a category field.

    Args:
        field, value: the field, and its text; "missing" or "other (n values)".
        events, frauds: their number.
        alerts: events above the threshold.
        caught: frauds above the threshold.
    """

    field: str
    value: str
    events: int
    frauds: int
    alerts: int
    caught: int

    @property
    def alert_rate(self) -> Share:
        return Share(self.alerts, self.events)

    @property
    def precision(self) -> Share:
        return Share(self.caught, self.alerts)

    @property
    def recall(self) -> Share:
        return Share(self.caught, self.frauds)

    @property
    def false_alarm_rate(self) -> Share:
        """Share of the ordinary events that raise an alert."""
        return Share(self.alerts - self.caught, self.events - self.frauds)


def groups_of(
    table: Table, label: NDArray[np.int8], alert: NDArray[np.bool_], fields: Sequence[str]
) -> tuple[Group, ...]:
    """Alerts for each value of some category columns, the most frequent values first.

    Args:
        table: n events.
        label: 1 = fraud, **shape (n,)**.
        alert: whether the event is above the threshold, **shape (n,)**.
        fields: names of categorical columns.
    """
    found = []
    names = [column.name for column in table.columns[table.d_num :]]
    for field in fields:
        column = table.category(names.index(field))
        values, at, counts = np.unique(column, return_inverse=True, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        shown = order[: MOST_GROUPS if len(order) <= MOST_GROUPS else MOST_GROUPS - 1]
        for k in shown:
            text = table.category_names.get(int(values[k]), f"#{int(values[k]):016x}") if values[k] else "missing"
            found.append(_group(field, text, at == k, label, alert))
        if len(order) > len(shown):
            rest = ~np.isin(at, shown)
            found.append(_group(field, f"other ({len(order) - len(shown)} values)", rest, label, alert))
    return tuple(found)


def _group(field: str, value: str, rows: NDArray[np.bool_], label: NDArray[np.int8], alert: NDArray[np.bool_]) -> Group:
    fraud = label == 1
    counts = (rows, rows & fraud, rows & alert, rows & fraud & alert)
    return Group(field, value, *(int(part.sum()) for part in counts))


def concerns(groups: Sequence[Group], *, recall: Share, false_alarms: Share) -> list[str]:
    """Groups to which the model is blind or unfair, in words: by more than chance, though many groups are looked at.

    All intervals together contain the overall share with 95 % if the groups do not differ (Bonferroni).

    Args:
        groups: of `groups_of`.
        recall: share of all frauds that raise an alert.
        false_alarms: share of all ordinary events that raise an alert.

    >>> online = Group("channel", "online", events=900, frauds=40, alerts=30, caught=2)
    >>> concerns([online], recall=Share(60, 100), false_alarms=Share(90, 4000))
    ['channel online: only 5% (1-19%) of its 40 frauds raise an alert, 60% of all do']
    """
    found, doubt = [], DOUBT / max(1, 2 * len(groups))
    for group in groups:
        one = f"{group.field} {group.value}"
        low, high = group.recall.interval(doubt=doubt)
        if group.frauds >= LEAST_FRAUDS and high < recall.value:
            found.append(
                f"{one}: only {group.recall.value:.0%} ({low * 100:.0f}-{high:.0%}) of its {group.frauds:,} frauds "
                f"raise an alert, {recall.value:.0%} of all do"
            )
        low, high = group.false_alarm_rate.interval(doubt=doubt)
        if low > false_alarms.value:
            found.append(
                f"{one}: {group.false_alarm_rate.value:.2%} ({low * 100:.2f}-{high:.2%}) of its ordinary events raise "
                f"an alert, {false_alarms.value:.2%} of all do"
            )
    return found


def with_known_fraud(table: Table) -> NDArray[np.bool_] | None:
    """Whether a fraud of one of the event's entities was known before it, **shape (n,)**; None: no column says so."""
    stats = ("fraud_count", "fraud_rate")
    columns = [i for i, c in enumerate(table.columns[: table.d_num]) if c.label_fed and c.stat in stats]
    if not columns:
        return None
    return np.asarray((np.nan_to_num(np.asarray(table.numeric[:])[:, columns]) > 0).any(axis=1))


@dataclass(frozen=True)
class Budgets:
    """What alerts find, for each number of alerts from 1 to n, the highest scores first. All have the **shape (n,)**.

    Args:
        precision, recall: of the alerts.
        value: money in the frauds that they catch; None without a value field.
        total_value: money in all frauds.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    value: NDArray[np.float64] | None
    total_value: float

    @classmethod
    def of(
        cls, label: NDArray[np.int8], score: NDArray[np.floating], value: NDArray[np.float64] | None = None
    ) -> Budgets:
        """Rank n events by score; an unknown value counts as 0."""
        order = np.argsort(-np.asarray(score), kind="stable")
        fraud = np.asarray(label)[order] == 1
        caught = np.cumsum(fraud)
        money = None if value is None else np.cumsum(np.where(fraud, np.nan_to_num(value[order]), 0.0))
        total = 0.0 if money is None else float(money[-1])
        return cls(caught / np.arange(1, len(fraud) + 1), caught / max(1, fraud.sum()), money, total)


@dataclass(frozen=True)
class CalibrationBin:
    """Events of similar score: their mean score, and the share of them that is fraud."""

    score: float
    fraud: Share


def calibration_bins(label: NDArray[np.int8], score: NDArray[np.floating], *, most: int = 10) -> list[CalibrationBin]:
    """Bins with an equal number of frauds, so that the few high scores have bins of their own.

    >>> label, score = np.repeat([0, 1], 10), np.repeat([0.125, 0.875], 10)
    >>> [(one.score, one.fraud) for one in calibration_bins(label, score)]
    [(0.375, Share(k=5, n=15)), (0.875, Share(k=5, n=5))]
    """
    order = np.argsort(np.asarray(score), kind="stable")
    fraud, ranked = np.asarray(label)[order] == 1, np.asarray(score, np.float64)[order]
    n_bins = max(1, min(most, int(fraud.sum()) // 5))
    of_fraud = np.minimum(np.cumsum(fraud) * n_bins // max(1, int(fraud.sum()) + 1), n_bins - 1)
    found = []
    for k in range(n_bins):
        rows = of_fraud == k
        if rows.any():
            found.append(CalibrationBin(float(ranked[rows].mean()), Share(int(fraud[rows].sum()), int(rows.sum()))))
    return found


def calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Mean difference between score and share of fraud over the events of all bins (expected calibration error)."""
    n = sum(one.fraud.n for one in bins)
    return sum(abs(one.score - one.fraud.value) * one.fraud.n for one in bins) / n
