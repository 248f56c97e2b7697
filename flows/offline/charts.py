"""The charts of the report, as inline SVG."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flows.offline.tryout import Tried
from models.plots import FRAUD, LEGIT, MARK, svg_of

SIZE = (6.4, 3.0)
N_BINS = 40
_FONT: Any = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9.5, "axes.titlesize": 10.5}


def score_histogram(tried: Tried) -> str:
    """Distribution of scores on a logarithmic axis, with the threshold; frauds are separate if known."""
    with _chart("score", "events (logarithmic)") as (figure, axes):
        bins = np.linspace(0, 1, 51).tolist()
        fraud = tried.label == 1
        axes.hist(
            tried.score[~fraud], bins=bins, color=LEGIT, alpha=0.8, label="not fraud" if fraud.any() else "events"
        )
        if fraud.any():
            axes.hist(tried.score[fraud], bins=bins, color=FRAUD, alpha=0.8, label="fraud")
        axes.axvline(tried.threshold, color=MARK, linestyle="--", linewidth=1.2, label="alert threshold")
        axes.set(xlim=(0, 1.005), yscale="log")
        axes.set_ylim(bottom=0.8)
        axes.legend(frameon=False, loc="upper center", ncols=3)
    return svg_of(figure)


def alerts_over_time(tried: Tried) -> str:
    """Number of alerts over time; frauds are separate if known."""
    with _chart("", "alerts") as (figure, axes):
        alert = tried.score > np.float32(tried.threshold)
        stamps = tried.time_ms.astype("datetime64[ms]")
        edges = np.linspace(stamps[0].astype(np.int64), stamps[-1].astype(np.int64) + 1, N_BINS + 1)
        right = alert & (tried.label == 1)
        parts = [(alert & ~right, LEGIT, "not fraud" if right.any() else "alerts"), (right, FRAUD, "fraud")]
        below = np.zeros(N_BINS)
        middle = ((edges[1:] + edges[:-1]) / 2).astype(np.int64).astype("datetime64[ms]")
        width = (edges[1] - edges[0]) * 0.9 / 86_400_000
        for mask, colour, name in parts if right.any() else parts[:1]:
            height, _ = np.histogram(tried.time_ms[mask], bins=edges)
            axes.bar(middle, height, width=width, bottom=below, color=colour, alpha=0.85, label=name)  # type: ignore[arg-type]
            below = below + height
        locator = AutoDateLocator(maxticks=8)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(top=1.4 * max(below.max(), 1))  # room for the legend
        if right.any():
            axes.legend(frameon=False, loc="upper right", ncols=2)
    return svg_of(figure)


def precision_and_recall(tried: Tried) -> str:
    """Precision against recall on the scored events with a label, with the threshold."""
    judged = tried.label >= 0
    fraud = tried.label[judged] == 1
    order = np.argsort(-tried.score[judged], kind="stable")
    ranked = tried.score[judged][order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # events of equal score alert together
    caught, taken = np.cumsum(fraud[order])[last], np.flatnonzero(last) + 1
    with _chart("recall: share of the frauds found", "precision: share of alerts that are fraud") as (figure, axes):
        axes.step(caught / fraud.sum(), caught / taken, where="pre", color=LEGIT, linewidth=1.8)
        axes.axhline(fraud.mean(), color=MARK, linestyle=":", linewidth=1)
        axes.text(0.99, fraud.mean(), f"random {fraud.mean():.2%}", ha="right", va="bottom", color=MARK, fontsize=8.5)
        if tried.figures is not None and tried.n_alerts:
            axes.plot(tried.figures.recall, tried.figures.precision, "o", color=FRAUD, label="alert threshold")
            axes.legend(frameon=False, loc="upper right")
        axes.set(xlim=(0, 1), ylim=(0, 1.03))
    return svg_of(figure)


@contextmanager
def _chart(xlabel: str, ylabel: str) -> Iterator[tuple[Figure, Axes]]:
    with matplotlib.rc_context(_FONT):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        yield figure, axes
