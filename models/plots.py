"""Plots for the MLflow page of a run. Each function takes arrays and returns a figure."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

# A palette for colour-blind readers (Okabe and Ito, 2008).
FRAUD, LEGIT, MARK = "#D55E00", "#0072B2", "#444444"
CYCLE = [LEGIT, FRAUD, "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]


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
    figure, axes = _canvas("recall (share of frauds caught)", "precision (share of alerts that are fraud)")
    axes.step(recall, precision, where="pre", color=LEGIT, linewidth=2)
    axes.fill_between(recall, precision, step="pre", alpha=0.12, color=LEGIT)
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


def precision_at_budget(
    label: NDArray[np.int8],
    score: NDArray[np.floating],
    *,
    rates: Sequence[float] = (0.001, 0.002, 0.005, 0.01, 0.02),
) -> Figure:
    """Plot precision and recall if the highest scores raise an alert, for several alert budgets.

    Args:
        label: 1 fraud, 0 not. **Shape** (n,)
        score: high = anomalous. **Shape** (n,)
        rates: shares of all events that may raise an alert.
    """
    ranked = np.asarray(label)[np.argsort(-np.asarray(score), kind="stable")]
    taken = np.maximum(1, np.round(np.asarray(rates) * len(ranked)).astype(int))
    caught = np.cumsum(ranked)[taken - 1]
    figure, axes = _canvas("alert budget (share of events)", "share")
    place = np.arange(len(taken))
    bars = {
        "precision": (caught / taken, -0.2, LEGIT),
        "recall": (caught / max(1, int(ranked.sum())), 0.2, FRAUD),
    }
    for name, (height, shift, colour) in bars.items():
        drawn = axes.bar(place + shift, height, width=0.38, color=colour, label=name)
        axes.bar_label(drawn, fmt="{:.0%}", fontsize=8)
    axes.set_xticks(place, [f"{rate:.2%}\n({n} alerts)" for rate, n in zip(rates, taken, strict=True)])
    axes.set(ylim=(0, 1.08), title="Precision and recall by alert budget")
    axes.legend(frameon=False)
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
    figure, axes = _canvas("score", "events")
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


def training_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], *, ylabel: str = "loss", higher_is_better: bool = False
) -> Figure:
    """Plot losses or other metrics during training.

    Args:
        curves: name of each curve and its points (step, value).
        ylabel: name of the metric.
        higher_is_better: whether the best point of a curve is its maximum.
    """
    figure, axes = _canvas("step", ylabel)
    for (name, points), colour in zip(curves.items(), CYCLE * (1 + len(curves) // len(CYCLE)), strict=False):
        steps, losses = np.asarray(points, dtype=float).T
        axes.plot(steps, losses, color=colour, linewidth=1.8, label=name)
        best = int(np.argmax(losses) if higher_is_better else np.argmin(losses))
        axes.plot(steps[best], losses[best], "o", color=colour, markersize=5)
    axes.set(title=f"{ylabel[0].upper()}{ylabel[1:]} during training (dot: best value)")
    axes.legend(frameon=False)
    return figure


def _canvas(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    # Not through pyplot: it has global state and needs a window system.
    figure = Figure(figsize=(7.0, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    return figure, axes


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
