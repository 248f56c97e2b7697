"""The gate: checks of a candidate's evidence that decide whether it may become the champion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from models.fit.split import last_share
from models.score.budget import DAY_MS, Budget

SHARE = 0.1  # newest share held out for the gate: of known labels, and of all events for checks without labels


@dataclass(frozen=True)
class Comparison:
    """Average precision of a model and of a baseline on the same held-out events."""

    ours: float
    theirs: float
    frauds: int


@dataclass(frozen=True)
class Figures:
    """Measurements on held-out events when a model is trained, stored as tags of its version.

    Args:
        frauds: known frauds among the held-out labels.
        rows: number of held-out newest events, which were not used for the head or the threshold.
        alert_rate: share of the rows that raise an alert.
        allowed_rate: share of alerts that the budget allows.
        comparisons: by name of the other scorer: label_free and baselines. Empty without known frauds.
    """

    frauds: int
    rows: int
    alert_rate: float
    allowed_rate: float
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)

    def tags(self) -> dict[str, str]:
        """Convert to tags `gate_*`, each with a JSON value."""
        return {f"gate_{name}": json.dumps(value) for name, value in asdict(self).items()}

    @classmethod
    def of_tags(cls, tags: Mapping[str, str]) -> Figures | None:
        """Read figures from tags; None if tags are missing or not valid."""
        try:
            found = {each.name: json.loads(tags[f"gate_{each.name}"]) for each in fields(cls)}
            comparisons = {name: Comparison(**one) for name, one in found.pop("comparisons").items()}
            return cls(**found, comparisons=comparisons)
        except (KeyError, ValueError, TypeError, AttributeError):
            return None


@dataclass(frozen=True)
class Slices:
    """Held-out rows of a training table: bool, **shape (n,)**.

    Args:
        labelled: the newest rows with known labels.
        newest: the newest of all rows, for checks without labels.
    """

    labelled: NDArray[np.bool_]
    newest: NDArray[np.bool_]


def keep_back(known: NDArray[np.bool_], *, share: float = SHARE) -> Slices:
    """Choose the held-out rows. They are not used for training, early stopping, calibration or the threshold.

    >>> slices = keep_back(np.arange(40) < 20)
    >>> np.flatnonzero(slices.labelled), np.flatnonzero(slices.newest)
    (array([18, 19]), array([36, 37, 38, 39]))
    """
    labelled, newest = np.zeros(len(known), bool), np.zeros(len(known), bool)
    labelled[last_share(np.flatnonzero(known), share).valid] = True
    newest[last_share(np.arange(len(known)), share, at_least=1).valid] = True
    return Slices(labelled, newest)


def allowed_share(budget: Budget, time_ms: NDArray[np.int64], *, validation_alert_rate: float) -> float:
    """Share of alerts that a budget allows in a period; for a cost budget, the alert rate in validation."""
    if budget.rate is not None:
        return budget.rate
    if budget.per_day is not None:
        return min(budget.per_day * (int(time_ms.max()) - int(time_ms.min())) / DAY_MS / len(time_ms), 1.0)
    return validation_alert_rate


def cost_of(
    budget: Budget, scores: NDArray[np.floating], label: NDArray[np.int8], threshold: float
) -> dict[str, float]:
    """Cost of alerts and missed frauds, and the cost of no alert and of alerting on every event."""
    if budget.cost is None:
        return {}
    missed, review = budget.cost
    alerts, fraud = scores > threshold, label == 1
    return {
        "ours": review * float(alerts.sum()) + missed * float((fraud & ~alerts).sum()),
        "no_alert": missed * float(fraud.sum()),
        "all_alert": review * float(len(scores)),
    }


def compare(ours: NDArray[np.floating], theirs: NDArray[np.floating], label: NDArray[np.int8]) -> Comparison:
    """Compare two scorers. Scores: high = anomalous; label: 1 = fraud, at least one; **shape (n,)**."""
    fraud = label == 1
    precisions = [float(average_precision_score(fraud, scores)) for scores in (ours, theirs)]
    return Comparison(precisions[0], precisions[1], frauds=int(fraud.sum()))
