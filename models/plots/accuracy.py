"""How well scores tell frauds from other events, and what alerts of different numbers find."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from models.evaluation import Budgets, calibration_bins, calibration_error
from models.plots.canvas import FRAUD, LEGIT, MARK, canvas, thinned

MOST_SHARE = 0.1  # of the events: budgets beyond it are not drawn


def pr_curve(label: NDArray[np.int8], score: NDArray[np.floating], *, threshold: float | None = None) -> Figure:
    """Plot precision against recall, with the average precision, the share of fraud and the threshold.

    Args:
        label: 1 fraud, 0 not. **Shape** (n,)
        score: high = anomalous. **Shape** (n,)
        threshold: the alert threshold, marked on the curve.

    Raises:
        ValueError: no label is fraud.

    Example:
        >>> pr_curve(np.array([0, 1]), np.array([0.1, 0.9])).axes[0].get_xlabel()
        'recall (share of frauds caught)'
    """
    recall, precision, cut = _pr_points(label, score)
    average = float(np.sum(np.diff(recall, prepend=0.0) * precision))
    figure, axes = canvas("recall (share of frauds caught)", "precision (share of alerts that are fraud)")
    drawn = thinned(len(recall), logarithmic=True)  # most of the frauds are among the first scores
    axes.step(recall[drawn], precision[drawn], where="pre", color=LEGIT, linewidth=2)
    axes.fill_between(recall[drawn], precision[drawn], step="pre", alpha=0.12, color=LEGIT)
    share = float(np.mean(label))
    axes.axhline(share, color=MARK, linestyle=":", linewidth=1)
    axes.text(0.99, share, f" random {share:.2%}", ha="right", va="bottom", fontsize=8, color=MARK)
    if threshold is not None and bool(np.any(cut > threshold)):
        at = int(np.flatnonzero(cut > threshold)[-1])
        note = f"threshold {threshold:.3g}: precision {precision[at]:.1%}, recall {recall[at]:.1%}"
        axes.plot(recall[at], precision[at], "o", color=FRAUD, markersize=8, label=note)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 0.04), frameon=False)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), title=f"Precision and recall: average precision {average:.3f}")
    return figure


def roc_curve(label: NDArray[np.int8], score: NDArray[np.floating], *, threshold: float | None = None) -> Figure:
    """Plot the share of frauds against the share of other events above each score, both kinds present.

    Args:
        label: 1 fraud, 0 not. **Shape** (n,)
        score: high = anomalous. **Shape** (n,)
        threshold: the alert threshold, marked on the curve.
    """
    fraud = np.asarray(label)[np.argsort(-np.asarray(score), kind="stable")] == 1
    ranked = np.sort(np.asarray(score))[::-1]
    last = np.append(ranked[1:] != ranked[:-1], True)  # events of equal score alert together
    caught, false = np.cumsum(fraud)[last] / fraud.sum(), np.cumsum(~fraud)[last] / (~fraud).sum()
    caught, false = np.append(0.0, caught), np.append(0.0, false)
    area = float(np.trapezoid(caught, false))
    figure, axes = canvas("false alarms (share of ordinary events)", "recall (share of frauds caught)")
    drawn = thinned(len(false), logarithmic=True)
    axes.plot(false[drawn], caught[drawn], color=LEGIT, linewidth=2)
    axes.fill_between(false[drawn], caught[drawn], alpha=0.12, color=LEGIT)
    axes.plot([0, 1], [0, 1], color=MARK, linestyle=":", linewidth=1)
    if threshold is not None:
        alerts = ranked > threshold
        at = float((alerts & ~fraud).sum() / (~fraud).sum()), float((alerts & fraud).sum() / fraud.sum())
        note = f"threshold {threshold:.3g}: recall {at[1]:.1%}, false alarms {at[0]:.2%}"
        axes.plot(*at, "o", color=FRAUD, markersize=8, label=note)
        axes.legend(loc="lower right", frameon=False)
    axes.set(xlim=(-0.01, 1), ylim=(0, 1.02), title=f"ROC curve: area {area:.3f}")
    return figure


def calibration(label: NDArray[np.int8], score: NDArray[np.floating]) -> Figure:
    """Plot the share of fraud against the score, in bins with their 95 % intervals; on the diagonal they are equal.

    Args:
        label: 1 fraud, 0 not. **Shape** (n,)
        score: in [0, 1]. **Shape** (n,)
    """
    bins = calibration_bins(label, score)
    figure, axes = canvas("mean score of the bin", "share of fraud in the bin")
    lowest = min(1e-4, *(max(one.score, 1e-6) for one in bins), *(one.fraud.value or 1.0 for one in bins))
    axes.plot([lowest, 1], [lowest, 1], color=MARK, linestyle=":", linewidth=1, label="score = share of fraud")
    for one in bins:
        axes.plot([one.score] * 2, [max(one.fraud.low, lowest), one.fraud.high], color=LEGIT, alpha=0.5, linewidth=1.5)
    axes.plot([one.score for one in bins], [one.fraud.value for one in bins], "o", color=LEGIT, markersize=6)
    axes.set(xscale="log", yscale="log", xlim=(lowest, 1.3), ylim=(lowest, 1.3))
    axes.set_title(f"Calibration: mean difference of score and share of fraud {calibration_error(bins):.4f}")
    axes.legend(frameon=False, loc="upper left")
    return figure


def precision_at_budget(
    label: NDArray[np.int8], score: NDArray[np.floating], *, threshold: float | None = None
) -> Figure:
    """Plot precision and recall if the highest scores raise an alert, against the alert budget.

    Args:
        label: 1 fraud, 0 not. **Shape** (n,)
        score: high = anomalous. **Shape** (n,)
        threshold: the alert threshold; its number of alerts is marked.
    """
    found, n = Budgets.of(label, score), len(label)
    drawn = thinned(max(2, int(n * MOST_SHARE)), logarithmic=True)
    share = (drawn + 1) / n
    figure, axes = canvas(f"alert budget (share of {n:,} events)", "share")
    axes.plot(share, found.precision[drawn], color=LEGIT, linewidth=2, label="precision: alerts that are fraud")
    axes.plot(share, found.recall[drawn], color=FRAUD, linewidth=2, label="recall: frauds with an alert")
    if threshold is not None and (alerts := int((np.asarray(score) > threshold).sum())):
        axes.axvline(alerts / n, color=MARK, linestyle="--", linewidth=1.2, label=f"threshold: {alerts:,} alerts")
    axes.set(ylim=(0, 1.03), xscale="log", title="Precision and recall by alert budget")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(frameon=False, loc="center left")
    return figure


def value_at_cost(
    label: NDArray[np.int8],
    score: NDArray[np.floating],
    value: NDArray[np.float64],
    *,
    name: str,
    review_cost: float | None = None,
    threshold: float | None = None,
) -> Figure:
    """Plot the money in the frauds that alerts catch against what their review costs.

    Args:
        label: 1 fraud, 0 not. **Shape** (n,)
        score: high = anomalous. **Shape** (n,)
        value: money of each event, NaN = unknown. **Shape** (n,)
        name: of the value field.
        review_cost: cost of the review of an alert; None: the number of reviews is drawn instead of the cost.
        threshold: the alert threshold, marked.
    """
    found, n = Budgets.of(label, score, value), len(label)
    assert found.value is not None
    drawn = thinned(max(2, int(n * MOST_SHARE)))
    each = 1.0 if review_cost is None else review_cost
    cost, caught = (drawn + 1) * each, found.value[drawn]
    figure, axes = canvas("reviews (alerts)" if review_cost is None else "cost of the reviews", f"sum of {name}")
    axes.plot(cost, caught, color=FRAUD, linewidth=2, label=f"{name} in the frauds caught")
    axes.axhline(
        found.total_value, color=MARK, linestyle=":", linewidth=1, label=f"all frauds: {found.total_value:,.0f}"
    )
    if review_cost is not None:
        net = caught - cost
        best = int(np.argmax(net))
        axes.plot(cost, net, color=LEGIT, linewidth=2, label="after the cost of the reviews")
        axes.plot(
            cost[best], net[best], "o", color=LEGIT, label=f"highest with {drawn[best] + 1:,} alerts: {net[best]:,.0f}"
        )
    if threshold is not None and (alerts := int((np.asarray(score) > threshold).sum())):
        share = found.value[alerts - 1] / max(found.total_value, 1e-9)
        note = f"threshold: {alerts:,} alerts catch {share:.0%}"
        axes.axvline(alerts * each, color=MARK, linestyle="--", linewidth=1.2, label=note)
    axes.set(title=f"{name[:1].upper()}{name[1:]} of frauds caught, against reviews")
    axes.legend(frameon=False, loc="lower right")
    return figure


def score_histogram(
    score: NDArray[np.floating], *, label: NDArray[np.int8] | None = None, threshold: float | None = None
) -> Figure:
    """Plot the distribution of scores on a logarithmic axis, with frauds separate if labels are known.

    Args:
        score: in [0, 1]. **Shape** (n,)
        label: 1 fraud, 0 not; None if unknown. **Shape** (n,)
        threshold: the alert threshold, marked.
    """
    figure, axes = canvas("score", "events")
    known = np.zeros(len(score), dtype=bool) if label is None else np.asarray(label) == 1
    bins = np.linspace(0.0, 1.0, 51).tolist()
    axes.hist(
        np.asarray(score)[~known],
        bins=bins,
        color=LEGIT,
        alpha=0.75,
        label="not fraud" if label is not None else "all",
    )
    if label is not None:
        axes.hist(np.asarray(score)[known], bins=bins, color=FRAUD, alpha=0.75, label="fraud")
    if threshold is not None:
        alerted = float(np.mean(np.asarray(score) > threshold))
        axes.axvline(threshold, color=MARK, linestyle="--", linewidth=1.2, label=f"threshold: {alerted:.2%} alerted")
    axes.set_yscale("log")
    axes.set(xlim=(0, 1), title="Scores")
    axes.legend(frameon=False)
    return figure


def _pr_points(
    label: NDArray[np.int8], score: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Recall, precision and score at each distinct score, from high to low."""
    label, score = np.asarray(label), np.asarray(score, dtype=np.float64)
    n_frauds = int(label.sum())
    if n_frauds == 0:
        raise ValueError(f"none of the {len(label)} labels is fraud; a precision-recall curve needs at least one")
    order = np.argsort(-score, kind="stable")
    ranked, caught = score[order], np.cumsum(label[order])
    last_of_score = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    return (
        caught[last_of_score] / n_frauds,
        caught[last_of_score] / (last_of_score + 1),
        ranked[last_of_score],
    )
