"""How alerts fall on groups of events."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from models.evaluation import Group, Share
from models.plots.canvas import FRAUD, LEGIT, MARK, canvas


def by_group(groups: Sequence[Group], *, recall: Share, precision: Share) -> Figure:
    """Plot recall and precision of each group with 95 % intervals; the lines are those of all events.

    Args:
        groups: of one or several fields, at least one.
        recall, precision: of all events.
    """
    figure, axes = canvas("share, with its 95 % interval", "", size=(7.0, 1.6 + 0.42 * len(groups)))
    places = np.arange(len(groups))[::-1]
    for name, colour, shift, overall, of in (
        ("recall", FRAUD, 0.12, recall, Group.recall),
        ("precision", LEGIT, -0.12, precision, Group.precision),
    ):
        shares = [of.fget(group) for group in groups]  # type: ignore[attr-defined]
        for place, share in zip(places + shift, shares, strict=True):
            if share.n:
                axes.plot([share.low, share.high], [place] * 2, color=colour, alpha=0.6, linewidth=2)
                axes.plot(share.value, place, "o", color=colour, markersize=5)
        label = f"{name} of all: {overall.value:.0%}" if overall.n else f"{name}: no alert"
        axes.axvline(overall.value if overall.n else 0.0, color=colour, linestyle=":", linewidth=1.3, label=label)
    names = [f"{g.field} {g.value}\n{g.frauds:,} frauds of {g.events:,}" for g in groups]
    axes.set_yticks(places, names, fontsize=8, color=MARK)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(xlim=(-0.01, 1.01), title="Recall and precision by group")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.12), ncols=2)
    return figure
