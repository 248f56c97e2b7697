"""The charts of a backtest, for its page and for MLflow."""

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from flows.backtesting.result import Backtest, Outcome
from models.plots import MARK
from models.plots.canvas import CYCLE

_LINES = ("-", "--", "-.", ":")
_MOST_TICKS = 8


def charts(found: Backtest) -> dict[str, tuple[str, Figure]]:
    """Title and figure of each chart by a short name; those about frauds only if there are labels."""
    drawn = {"alerts_a_day": ("Cases a day", _cases_a_day(found))}
    if found.has_labels and found.n_frauds:
        money = "value_caught" if found.value else "caught"
        drawn = {
            "caught_over_time": ("Caught so far", _caught_over_time(found, money)),
            **drawn,
            "precision_of_reviews": ("Precision of the reviewed cases", _precision(found)),
            "caught_by_capacity": ("Frauds caught, by capacity", _by_capacity(found)),
        }
    return drawn


def _caught_over_time(found: Backtest, name: str) -> Figure:
    all_of, what = ("value", f"{found.value} of frauds") if name == "value_caught" else ("frauds", "frauds")
    figure, axes = _canvas("", f"{what}, summed up")
    days = _final(found.outcomes[0])
    axes.fill_between(_dates(days["day"]), days[all_of].cum_sum(), color=MARK, alpha=0.08, label="all")
    _lines(axes, found.outcomes, lambda one: _final(one)[name].cum_sum())
    if name == "caught":
        axes.plot(_dates(days["day"]), days["reported"], color=MARK, linewidth=1, label="reported by then")
    return _finished(figure, axes, found.outcomes[0].days["day"])


def _cases_a_day(found: Backtest) -> Figure:
    figure, axes = _canvas("", "cases opened")
    _lines(axes, found.outcomes, lambda one: one.days["cases"])
    if found.capacity is not None:
        axes.axhline(found.capacity, color=MARK, linestyle=":", linewidth=1.2, label=f"capacity {found.capacity:,}")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return _finished(figure, axes, found.outcomes[0].days["day"])


def _precision(found: Backtest) -> Figure:
    figure, axes = _canvas("", "share of reviewed cases with fraud")
    _lines(axes, found.outcomes, lambda one: _final(one)["right"] / _final(one)["judged"])
    axes.set_ylim(0, 1.03)
    return _finished(figure, axes, found.outcomes[0].days["day"])


def _by_capacity(found: Backtest) -> Figure:
    figure, axes = _canvas("cases that can be reviewed a day", "share of frauds caught")
    for one, style in zip(found.outcomes, _styles(), strict=False):
        axes.plot(one.by_capacity["capacity"], one.by_capacity["caught"] / found.n_frauds, label=one.name, **style)
    if found.capacity is not None:
        axes.axvline(found.capacity, color=MARK, linestyle=":", linewidth=1.2, label=f"capacity {found.capacity:,}")
    axes.set(ylim=(0, 1.03), xscale="log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.legend(frameon=False, fontsize=8)
    return figure


def _lines(axes: Axes, outcomes: Sequence[Outcome], values: Callable[[Outcome], Any]) -> None:
    for one, style in zip(outcomes, _styles(), strict=False):
        ys = values(one)
        axes.plot(_dates(one.days["day"][: len(ys)]), ys, label=one.name, marker="o", markersize=3, **style)


def _final(one: Outcome) -> pl.DataFrame:
    """The days up to the last one with final labels; what is not known yet is not drawn as a miss."""
    has_final = (one.days["final"] > 0).arg_true()
    return one.days.head(int(has_final[-1]) + 1 if len(has_final) else 0)


def _styles() -> Iterator[dict[str, Any]]:
    """Colours, then other strokes: lines that lie upon each other stay visible."""
    for stroke in cycle(_LINES):
        for colour in CYCLE:
            yield {"color": colour, "linestyle": stroke, "linewidth": 1.8}


def _dates(days: pl.Series) -> Any:
    return np.asarray(days, dtype="datetime64[D]")


def _finished(figure: Figure, axes: Axes, days: pl.Series) -> Figure:
    shown = days.gather_every(-(-len(days) // _MOST_TICKS))
    axes.set_xticks(_dates(shown), [f"{day:%b %-d}" for day in shown])
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _canvas(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.8, 3.4), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    return figure, axes
