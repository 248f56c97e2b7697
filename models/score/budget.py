"""Alert budgets, and the threshold that keeps one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError

DAY_MS = 86_400_000


class BudgetError(ModelError, ValueError):
    """An alert budget cannot be met or does not say one thing."""


@dataclass(frozen=True)
class Budget:
    """How many alerts people can look at: exactly one of rate, per_day and cost.

    Args:
        rate: largest share of events that may alert, in (0, 1).
        per_day: largest number of alerts a day: the mean over full days.
        cost: (cost of a missed fraud, cost of one review), same unit.
        fraud_rate: share of events believed to be fraud, in (0, 1); what a cost budget goes by where no fraud is known.

    Raises:
        BudgetError: none or several are given, or one is out of range.

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
            raise BudgetError(f"a budget must give exactly one of rate, per_day and cost, however: given={given}")
        if self.rate is not None and not 0 < self.rate < 1:
            raise BudgetError(f"rate must be in (0, 1), however: rate={self.rate}; 0.005 means 0.5 % of events")
        if self.per_day is not None and not self.per_day > 0:
            raise BudgetError(f"per_day must be positive, however: per_day={self.per_day}")
        if self.cost is not None and not (len(self.cost) == 2 and min(self.cost) > 0):
            raise BudgetError(f"cost must be (missed, review), both positive, however: cost={self.cost}")
        if self.fraud_rate is not None and not (self.cost is not None and 0 < self.fraud_rate < 1):
            raise BudgetError(
                f"fraud_rate must be in (0, 1) and stand beside cost, however: fraud_rate={self.fraud_rate}, "
                f"cost={self.cost}; 0.002 means that 0.2 % of events are fraud"
            )


def threshold_for(
    budget: Budget,
    scores: NDArray[np.float32],
    time_ms: NDArray[np.int64],
    label: NDArray[np.int8] | None = None,
    known: NDArray[np.bool_] | None = None,
) -> float:
    """The lowest threshold that keeps within the budget on a period; an event alerts where score > threshold.

    Events of equal score alert together or not at all.

    - rate: at most this share of the events.
    - per_day: at most ``per_day`` alerts a day in the mean over the full days, which are the whole spans of 24 hours
      that end with the newest event; in a period shorter than a day, its part of ``per_day``.
    - cost, with a known fraud: no other threshold would have cost less on the known events.
    - cost, without one: a label-free score is a rank and no probability, so its threshold is that of a share of
      events: ``fraud_rate * (sqrt(missed / review) - 1)``. It costs least if the share q of highest scores holds the
      part ``q / (q + fraud_rate)`` of all frauds: as many alerts as frauds find half of them. Where the ranking is
      useless, the reviews add at most ``sqrt(review / missed)`` of what missing every fraud costs.

    Args:
        budget: rate, alerts a day, or costs.
        scores: **shape (n,)**, of every event of the period.
        time_ms: event times, **shape (n,)**.
        label, known: **shape (n,)**, for a cost budget; only rows with ``known`` count there.

    Raises:
        BudgetError: there are no scores; or no fraud is known and a cost budget states no ``fraud_rate``.

    >>> threshold_for(Budget(rate=0.25), np.float32([0.1, 0.2, 0.3, 0.4]), np.zeros(4, np.int64))
    0.30000001192092896
    """
    if len(scores) == 0:
        raise BudgetError("a threshold needs at least one score, however: scores is empty; take a longer period")
    if budget.cost is not None:
        missed, review = budget.cost
        if label is not None and known is not None and np.any(label[known] == 1):
            return _cheapest(scores[known], label[known], missed, review)
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
    """Share of events that a cost budget lets alert where no fraud is known; see `threshold_for`.

    Raises:
        BudgetError: it states no ``fraud_rate``.
    """
    assert budget.cost is not None
    missed, review = budget.cost
    if budget.fraud_rate is None:
        raise BudgetError(
            "a cost budget needs known frauds or a stated fraud_rate, however: no fraud is known here; in the stream "
            f"file add the share of events that you believe are fraud: cost = {{ missed = {missed:g}, "
            f"review = {review:g}, fraud_rate = 0.002 }}"
        )
    return budget.fraud_rate * max(math.sqrt(missed / review) - 1, 0.0)


def _at_most(allowed: int, scores: NDArray[np.float32]) -> float:
    """The lowest threshold that at most `allowed` scores exceed."""
    if allowed >= len(scores):
        return 0.0
    # strictly above the score of rank allowed + 1 are at most `allowed` events, ties included
    return float(np.partition(scores, len(scores) - 1 - allowed)[len(scores) - 1 - allowed])


def _cheapest(scores: NDArray[np.float32], label: NDArray[np.int8], missed: float, review: float) -> float:
    order = np.argsort(-scores, kind="stable")
    ranked, fraud = scores[order], label[order] == 1
    alerts = np.arange(len(ranked) + 1)
    cost = review * alerts + missed * (fraud.sum() - np.concatenate([[0], np.cumsum(fraud)]))
    real = np.concatenate([[True], ranked[1:] < ranked[:-1], [True]])  # cuts between equal scores do not exist
    best = int(np.argmin(np.where(real, cost, np.inf)))
    # where every event is worth its review the threshold lies below them all, 0 included
    return float(ranked[best] if best < len(ranked) else np.nextafter(ranked[-1], np.float32(-1.0)))
