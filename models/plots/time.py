"""Scores and figures over time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from models.plots.canvas import CYCLE, FRAUD, LEGIT, MARK, canvas

N_SPANS = 40
QUANTILES = (0.5, 0.9, 0.99, 0.999)


def alert_rate(time_ms: NDArray[np.int64], alert: NDArray[np.bool_], *, allowed: float | None = None) -> Figure:
    """Plot the share of events that raise an alert, over time.

    Args:
        time_ms: event times, at least one. **Shape** (n,)
        alert: **shape** (n,)
        allowed: share that the alert budget allows, marked.
    """
    figure, axes = canvas("", "alerts (share of events)")
    edges, at = _spans(time_ms)
    n = np.bincount(at, minlength=N_SPANS)
    share = np.bincount(at[alert], minlength=N_SPANS) / np.maximum(n, 1)
    axes.bar(_days(edges[:-1]), share, width=(edges[1] - edges[0]) * 0.9 / 86_400_000, align="edge", color=LEGIT)
    if allowed is not None:
        axes.axhline(allowed, color=MARK, linestyle="--", linewidth=1.2, label=f"budget {allowed:.2%}")
        axes.legend(frameon=False)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set(title=f"Alerts over time: {alert.mean():.2%} of {len(alert):,} events")
    _dates(axes)
    return figure


def scores(time_ms: NDArray[np.int64], score: NDArray[np.floating], *, threshold: float | None = None) -> Figure:
    """Plot quantiles of the scores over time.

    Args:
        time_ms: event times, at least one. **Shape** (n,)
        score: in [0, 1]. **Shape** (n,)
        threshold: the alert threshold, marked.
    """
    figure, axes = canvas("", "score")
    edges, at = _spans(time_ms)
    spans = [k for k in range(N_SPANS) if (at == k).any()]
    for quantile, colour in zip(QUANTILES, CYCLE, strict=False):
        height = [float(np.quantile(score[at == k], quantile)) for k in spans]
        name = "median" if quantile == 0.5 else f"highest {1 - quantile:.1%}"
        axes.plot(_days(edges[spans]), height, color=colour, linewidth=1.8, label=name)
    if threshold is not None:
        axes.axhline(threshold, color=MARK, linestyle="--", linewidth=1.2, label="threshold")
    axes.set(ylim=(0, 1.02), title="Scores over time")
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    _dates(axes)
    return figure


@dataclass(frozen=True)
class Period:
    """Quality of a scorer in a period.

    Args:
        name: of the period.
        average_precision, label_free: of the scorer and of the label-free score; None = not measured.
        frauds, events: their number.
        interval: 95 % interval of the average precision; None = not measured.
    """

    name: str
    average_precision: float
    frauds: int
    events: int
    label_free: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def share(self) -> float:
        """Share of fraud: the average precision of random scores."""
        return self.frauds / max(self.events, 1)


def periods(found: Sequence[Period]) -> Figure:
    """Plot the average precision of several periods side by side, at least one."""
    figure, axes = canvas("", "average precision")
    place = np.arange(len(found))
    drawn = axes.bar(place, [one.average_precision for one in found], width=0.55, color=LEGIT, label="this model")
    axes.bar_label(drawn, fmt="{:.2f}", padding=3, fontsize=9)
    for at, one in zip(place.tolist(), found, strict=True):
        if one.interval:
            axes.plot([at, at], one.interval, color=MARK, linewidth=1.4)
        if one.label_free is not None:
            name = "without labels" if at == 0 else None
            axes.plot([at - 0.28, at + 0.28], [one.label_free] * 2, color=FRAUD, linewidth=2, label=name)
    axes.set_xticks(place, [f"{one.name}\n{one.frauds:,} frauds of {one.events:,}" for one in found], fontsize=8.5)
    axes.set(title="The same model in several periods")
    axes.set_ylim(0, 1.25 * max(0.05, *(max(one.average_precision, *(one.interval or (0,))) for one in found)))
    axes.legend(frameon=False, loc="upper right")
    return figure


def _spans(time_ms: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Edges of equal spans of time, and the span of each event."""
    edges = np.linspace(int(time_ms.min()), int(time_ms.max()) + 1, N_SPANS + 1).astype(np.int64)
    return edges, np.clip(np.searchsorted(edges, time_ms, side="right") - 1, 0, N_SPANS - 1)


def _days(ms: NDArray[np.int64]) -> NDArray[np.datetime64]:
    return ms.astype("datetime64[ms]")


def _dates(axes: Axes) -> None:
    locator = AutoDateLocator(maxticks=8)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
