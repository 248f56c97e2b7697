"""The canvas and the colours of every plot."""

import io
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# A palette for colour-blind readers (Okabe and Ito, 2008).
FRAUD, LEGIT, MARK = "#D55E00", "#0072B2", "#444444"
CYCLE = [LEGIT, FRAUD, "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
_FONT: Any = {"svg.fonttype": "none", "font.family": "sans-serif"}


def canvas(xlabel: str, ylabel: str, *, size: tuple[float, float] = (7.0, 4.5)) -> tuple[Figure, Axes]:
    """An empty plot of a size in inches."""
    # Not through pyplot: it has global state and needs a window system.
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    return figure, axes


def svg_of(figure: Figure) -> str:
    """A plot as inline SVG, with its text as text."""
    text = io.StringIO()
    with matplotlib.rc_context(_FONT):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
