"""Does the cost of an event grow with the number of entities, or with their history? The CPU time is noted on the way.

Two backlogs of n events: of few customers with a long history, and of ten times as many customers with a short one.
Unmask folds ahead of what it publishes, so its first step looks dearer than it is and its last one cheaper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tests.bench.stream.backlog import customers_for
from tests.bench.stream.task import Found

N_STEPS = 10
TIMES = {"1 x entities": 10, "10 x entities": 1}  # the history is as many times longer


def customers(n_events: int) -> dict[str, int]:
    """Customers of each backlog.

    >>> customers(300_000)
    {'1 x entities': 288, '10 x entities': 2875}
    """
    return {name: customers_for(n_events // times) for name, times in TIMES.items()}


def curve(found: Found) -> list[tuple[int, float]]:
    """(events folded before, events per CPU-second of the next step).

    >>> curve(Found(20, 4.0, 4.0, noted=[(10, 1.0), (20, 4.0)]))
    [(0, 10.0), (10, 3.3)]
    """
    points = [(0, 0.0), *found.noted]
    return [
        (before, round((n - before) / (cpu_s - cpu_before), 1)) for (before, cpu_before), (n, cpu_s) in pairwise(points)
    ]


def draw(curves: Mapping[str, Sequence[Any]], path: Path) -> None:
    """One line for each run, `curves` is label -> points; the PNG shows whether they are flat."""
    figure = Figure(figsize=(11, 6))
    axes = figure.subplots()
    systems = list(dict.fromkeys(name.rpartition(", ")[0] for name in curves))
    for name, points in sorted(curves.items(), key=lambda item: -item[1][-1][1]):
        x, y = zip(*points, strict=True)
        system, _, entities = name.rpartition(", ")
        style = "--" if entities.startswith("10") else "-"
        axes.plot(x, y, style, marker="o", label=name, color=f"C{systems.index(system)}")
    axes.set(xlabel="events folded before", ylabel="events per CPU-second", yscale="log")
    axes.grid(True, alpha=0.3, which="both")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
