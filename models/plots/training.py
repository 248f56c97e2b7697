"""What training shows: losses by step, losses by field, and what more labels would give."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from models.plots.canvas import CYCLE, FRAUD, LEGIT, MARK, canvas


def training_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], *, ylabel: str = "loss", higher_is_better: bool = False
) -> Figure:
    """Plot losses or other metrics during training.

    Args:
        curves: name of each curve and its points (step, value).
        ylabel: name of the metric.
        higher_is_better: whether the best point of a curve is its maximum.
    """
    figure, axes = canvas("step", ylabel)
    for (name, points), colour in zip(curves.items(), CYCLE * (1 + len(curves) // len(CYCLE)), strict=False):
        steps, losses = np.asarray(points, dtype=float).T
        axes.plot(steps, losses, color=colour, linewidth=1.8, label=name)
        best = int(np.argmax(losses) if higher_is_better else np.argmin(losses))
        axes.plot(steps[best], losses[best], "o", color=colour, markersize=5)
    axes.set(title=f"{ylabel[0].upper()}{ylabel[1:]} during training (dot: best value)")
    axes.legend(frameon=False)
    return figure


def field_losses(losses: Mapping[str, float], marginal: Mapping[str, float]) -> Figure:
    """Plot the loss of each masked field beside that of its marginal distribution, the best predicted field on top.

    Args:
        losses, marginal: by name of the field, nats; both have the same fields.
    """
    names = sorted(losses, key=lambda name: marginal[name] - losses[name])
    figure, axes = canvas("nats gained over the field's own distribution", "", size=(7.0, 1.4 + 0.32 * len(names)))
    gain = np.array([marginal[name] - losses[name] for name in names])
    drawn = axes.barh(names, gain, color=[LEGIT if one > 0 else FRAUD for one in gain], alpha=0.85)
    axes.bar_label(
        drawn, [f"loss {losses[name]:.2f} (own {marginal[name]:.2f})" for name in names], padding=4, fontsize=8
    )
    axes.axvline(0, color=MARK, linewidth=1)
    axes.margins(x=0.35)
    axes.set(title="Masked loss of each field: how far the others predict it")
    return figure


def label_efficiency(points: Sequence[tuple[int, float]], *, label_free: float) -> Figure:
    """Plot average precision against the number of known frauds.

    Args:
        points: number of known frauds and average precision, of one training each.
        label_free: average precision without labels.
    """
    frauds, found = np.asarray(sorted(points), dtype=float).T
    figure, axes = canvas("known frauds (logarithmic)", "average precision on the same later events")
    axes.plot(frauds, found, "o-", color=LEGIT, linewidth=2, label="with labels")
    axes.axhline(label_free, color=MARK, linestyle=":", label=f"without labels: {label_free:.3f}")
    axes.set(xscale="log", ylim=(0, max(*found, label_free) * 1.15), title="What labels give")
    axes.set_xticks(frauds, [f"{int(n):,}" for n in frauds])
    axes.minorticks_off()
    axes.legend(frameon=False)
    return figure
