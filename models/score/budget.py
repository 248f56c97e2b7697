"""Alert budgets and the thresholds that meet them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError

DAY_MS = 86_400_000


class BudgetError(ModelError, ValueError):
    """An alert budget is not valid, or its threshold cannot be computed."""


@dataclass(frozen=True)
class Budget:
    """How many alerts people can review: exactly one of rate, per_day and cost.

    Args:
        rate: maximum share of events that may raise an alert, in (0, 1).
        per_day: maximum number of alerts per day, averaged over full days.
        cost: (cost of a missed fraud, cost of one review), in the same unit.
        fraud_rate: estimated share of fraud, in (0, 1). Used by a cost budget if no fraud is known.

    Raises:
        BudgetError: none or several are given, or a value is out of range.

    >>> Budget(rate=0.005)
    Budget(rate=0.005, per_day=None, cost=None, fraud_rate=None)
    """

    rate: float | None = None
    per_day: float | None = None
    cost: tuple[float, float] | None = None
    fraud_rate: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("rate", "per_day", "cost") if getattr(self, name) is not None]
        if len(given) != 1:
            raise BudgetError(
                f"a budget needs exactly one of rate, per_day and cost; {' and '.join(given)} are given"
                if given
                else "a budget needs exactly one of rate, per_day and cost; none is given"
            )
        if self.rate is not None and not 0 < self.rate < 1:
            raise BudgetError(f"rate is {self.rate}; it must be between 0 and 1 (0.005 means 0.5 % of events)")
        if self.per_day is not None and not self.per_day > 0:
            raise BudgetError(f"per_day is {self.per_day}; it must be greater than 0")
        if self.cost is not None and not (len(self.cost) == 2 and min(self.cost) > 0):
            raise BudgetError(f"cost is {self.cost}; it must be (missed, review), both greater than 0")
        if self.fraud_rate is not None and not (self.cost is not None and 0 < self.fraud_rate < 1):
            raise BudgetError(
                f"fraud_rate is {self.fraud_rate} and cost is {self.cost}; fraud_rate must be between 0 and 1 (0.002 "
                "means 0.2 % of events) and needs a cost"
            )


def threshold_for(
    budget: Budget,
    scores: NDArray[np.float32],
    time_ms: NDArray[np.int64],
    label: NDArray[np.int8] | None = None,
    known: NDArray[np.bool_] | None = None,
    weight: NDArray[np.float64] | None = None,
) -> float:
    """Compute the lowest threshold that meets the budget on a period.

    An event raises an alert if score > threshold, so events with equal scores are treated alike.

    - rate: at most this share of the events raise an alert.
    - per_day: at most ``per_day`` alerts per day, averaged over full days. Full days are 24-hour spans that end at the
      newest event. For a period shorter than a day, ``per_day`` is scaled down.
    - cost, with at least one known fraud: the threshold with the lowest cost on the known events.
    - cost, without known frauds: a label-free score is a rank, not a probability, so the threshold is set by a share
      of events: ``fraud_rate * (sqrt(missed / review) - 1)``. This is optimal if the share q of highest scores
      contains the part ``q / (q + fraud_rate)`` of all frauds, so that as many alerts as frauds find half of them. If
      the ranking is useless, the reviews add at most ``sqrt(review / missed)`` of the cost of missing every fraud.

    Args:
        budget: rate, alerts per day, or costs.
        scores: scores of all events of the period, **shape (n,)**.
        time_ms: event times, **shape (n,)**.
        label, known: **shape (n,)**, for a cost budget. Only rows with ``known`` are used.
        weight: how many events each row stands for, for a cost budget, **shape (n,)**; None = one.

    Raises:
        BudgetError: there are no scores, or no fraud is known and a cost budget has no ``fraud_rate``.

    >>> threshold_for(Budget(rate=0.25), np.float32([0.1, 0.2, 0.3, 0.4]), np.zeros(4, np.int64))
    0.30000001192092896
    """
    if len(scores) == 0:
        raise BudgetError("there are no scores to set a threshold from; use a longer period")
    if budget.cost is not None:
        missed, review = budget.cost
        if label is not None and known is not None and np.any(label[known] == 1):
            each = np.ones(len(scores)) if weight is None else weight
            return _cheapest(scores[known], label[known], each[known], missed, review)
        return _at_most(int(share_by_cost(budget) * len(scores)), scores)
    if budget.rate is not None:
        return _at_most(int(budget.rate * len(scores)), scores)
    assert budget.per_day is not None
    last = int(time_ms.max())
    days = (last - int(time_ms.min())) / DAY_MS
    if days >= 1:
        days = int(days)
        scores = scores[time_ms >= last - days * DAY_MS]
    return _at_most(int(budget.per_day * days), scores)


def share_by_cost(budget: Budget) -> float:
    """Share of events that a cost budget allows to raise an alert if no fraud is known; see `threshold_for`.

    Raises:
        BudgetError: the budget has no ``fraud_rate``.
    """
    assert budget.cost is not None
    missed, review = budget.cost
    if budget.fraud_rate is None:
        raise BudgetError(
            "a cost budget needs known frauds or a fraud_rate, and no fraud is known; add your estimate of the share "
            f"of fraud to the stream file: cost = {{ missed = {missed:g}, review = {review:g}, fraud_rate = 0.002 }}"
        )
    return budget.fraud_rate * max(math.sqrt(missed / review) - 1, 0.0)


def _at_most(allowed: int, scores: NDArray[np.float32]) -> float:
    """The lowest threshold that at most `allowed` scores exceed."""
    if allowed >= len(scores):
        return 0.0
    # at most `allowed` events are strictly above the score of rank allowed + 1, ties included
    return float(np.partition(scores, len(scores) - 1 - allowed)[len(scores) - 1 - allowed])


def _cheapest(
    scores: NDArray[np.float32], label: NDArray[np.int8], weight: NDArray[np.float64], missed: float, review: float
) -> float:
    order = np.argsort(-scores, kind="stable")
    ranked, events, frauds = scores[order], weight[order], np.where(label == 1, weight, 0.0)[order]
    alerts, caught = (np.concatenate([[0.0], np.cumsum(part)]) for part in (events, frauds))
    cost = review * alerts + missed * (frauds.sum() - caught)
    real = np.concatenate([[True], ranked[1:] < ranked[:-1], [True]])  # no cut between equal scores
    best = int(np.argmin(np.where(real, cost, np.inf)))
    # if every event is worth a review, the threshold is below all scores, including 0
    return float(ranked[best] if best < len(ranked) else np.nextafter(ranked[-1], np.float32(-1.0)))
