"""The canvas and the colours of every plot."""

import io
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

# A palette for colour-blind readers (Okabe and Ito, 2008).
FRAUD, LEGIT, MARK = "#D55E00", "#0072B2", "#444444"
CYCLE = [LEGIT, FRAUD, "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MOST_POINTS = 1_000  # of a curve; more cannot be seen and make a page slow
_FONT: Any = {"svg.fonttype": "none", "font.family": "sans-serif"}


def thinned(n: int, *, logarithmic: bool = False) -> NDArray[np.int64]:
    """At most `MOST_POINTS` indices of a curve of n points, evenly spread on its axis, with both ends.

    >>> thinned(3), len(thinned(10**6)), int(thinned(10**6)[-1])
    (array([0, 1, 2]), 1000, 999999)
    """
    if n <= MOST_POINTS:
        return np.arange(n)
    places = np.geomspace(1, n, MOST_POINTS) - 1 if logarithmic else np.linspace(0, n - 1, MOST_POINTS)
    return np.unique(np.rint(places).astype(np.int64))


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
