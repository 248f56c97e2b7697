"""The gate: checks of a challenger on held-out events that decide whether it may become the champion."""

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
MIN_FRAUDS = 30  # with fewer, average precision is too uncertain
TOLERATED_LOSS = 0.02  # allowed loss of average precision against each other scorer: seed noise
DRIFT = 1.5  # allowed growth of the alert rate between periods
MIN_EXPECTED = 30  # if the budget allows this many alerts, having none is a failure
BASELINES = ("logistic_regression", "isolation_forest")
FORMERS = {"champion": "the champion", "reference": "the best former champion"}

Check = tuple[str, bool]  # the finding, and whether the check passes


@dataclass(frozen=True)
class Comparison:
    """Average precision of the challenger and of another scorer on the same events.

    Args:
        ours, theirs: average precision.
        frauds: number of frauds among these events.
        learned: whether the other scorer was trained on some of these events, so that its result is too good.
    """

    ours: float
    theirs: float
    frauds: int
    learned: bool = False


@dataclass(frozen=True)
class Figures:
    """Measurements of a challenger, stored as tags of its version.

    Args:
        frauds: known frauds among the held-out labels.
        rows: number of held-out newest events, which were not used for the head or the threshold.
        finite: whether every score is a number.
        distinct: number of distinct scores.
        alert_rate: share of the rows that raise an alert.
        allowed_rate: share of alerts that the budget allows.
        cost: cost of alerts and missed frauds on the held-out labels, and the cost of no alert and of only alerts.
            Empty without a cost budget.
        comparisons: by name of the other scorer: champion, reference (the best former champion) and baselines.
        not_compared: scorers that could not be compared, and why.
    """

    frauds: int
    rows: int
    finite: bool
    distinct: int
    alert_rate: float
    allowed_rate: float
    cost: Mapping[str, float] = field(default_factory=dict)
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    not_compared: Mapping[str, str] = field(default_factory=dict)

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


def compare(
    ours: NDArray[np.floating],
    theirs: NDArray[np.floating],
    label: NDArray[np.int8],
    time_ms: NDArray[np.int64],
    *,
    learned_until_ms: int | None,
) -> Comparison:
    """Compare two scorers on events that the other one was not trained on, or on all if too few frauds are left.

    Args:
        ours, theirs: scores, high = anomalous, **shape (n,)**.
        label: 1 = fraud, at least one, **shape (n,)**.
        time_ms: event times, **shape (n,)**.
        learned_until_ms: the other scorer was trained on labels of events before this time; None = unknown.
    """
    later = time_ms >= learned_until_ms if learned_until_ms is not None else np.zeros(len(label), bool)
    use = later if (label[later] == 1).sum() >= MIN_FRAUDS else np.ones(len(label), bool)
    fraud = label[use] == 1
    precisions = [float(average_precision_score(fraud, scores[use])) for scores in (ours, theirs)]
    return Comparison(precisions[0], precisions[1], frauds=int(fraud.sum()), learned=not later[use].all())


def is_new_reference(figures: Figures) -> bool:
    """Whether the challenger, once promoted, becomes the reference for later challengers.

    The reference is the best champion so far. Each challenger is compared with it on the same events, so small losses
    from one champion to the next cannot add up. A challenger replaces it if it is at least as good.
    """
    before = figures.comparisons.get("reference")
    return before is not None and before.frauds >= MIN_FRAUDS and before.ours >= before.theirs


def judge(figures: Figures) -> dict[str, Check]:
    """Run all checks. Return the finding of each and whether it passes; all must pass for a promotion.

    A check of a missing measurement (NaN) fails.
    """
    checks = {
        "scores": (
            f"{figures.distinct} different scores on the {figures.rows} newest events"
            + ("" if figures.finite else "; some are not numbers"),
            figures.finite and figures.distinct > 1,
        ),
        "alert budget": _alert_budget(figures),
    }
    if figures.frauds < MIN_FRAUDS:
        seen = f"{figures.frauds} known frauds were held out, {MIN_FRAUDS} are needed: checked without labels"
        return checks | {"labels": (seen, True)}
    for name, words in FORMERS.items():
        if name in figures.comparisons:
            one = figures.comparisons[name]
            seen = f"average precision {one.ours:.3f}, {words} {one.theirs:.3f} on the same {one.frauds} frauds"
            seen += ", some of which it was trained on" if one.learned else ""
            checks[name] = (seen, one.ours >= one.theirs - TOLERATED_LOSS)
        elif name in figures.not_compared:
            checks[name] = (f"not compared: {figures.not_compared[name]}", True)
    checks["floor"] = _floor({name: figures.comparisons[name] for name in BASELINES if name in figures.comparisons})
    if figures.cost:
        ours, most = figures.cost["ours"], min(figures.cost["no_alert"], figures.cost["all_alert"])
        seen = f"{ours:g}; {figures.cost['no_alert']:g} with no alert, {figures.cost['all_alert']:g} if all alert"
        checks["cost"] = (seen, ours <= most)
    return checks


def _alert_budget(figures: Figures) -> Check:
    n, allowed = figures.rows, figures.allowed_rate
    # drift and three standard deviations of a binomial count
    most = DRIFT * allowed + 3 * (allowed * max(1 - allowed, 0.0) / max(n, 1)) ** 0.5
    silent = allowed * n >= MIN_EXPECTED and figures.alert_rate == 0
    seen = f"{figures.alert_rate:.3%} of the {n} newest events raise an alert; {allowed:.3%} is allowed"
    return seen, figures.alert_rate <= most and not silent


def _floor(baselines: Mapping[str, Comparison]) -> Check:
    if not baselines:
        return "no baseline was measured", False
    name, best = max(baselines.items(), key=lambda one: one[1].theirs)
    words = name.replace("_", " ")
    return f"average precision {best.ours:.3f}, {words} {best.theirs:.3f}", best.ours >= best.theirs - TOLERATED_LOSS
