"""What a stream costs on several replicas: the CPU time of all together, on one, two and four of them.

Where windows are about two entities, a replica reads and folds the whole stream, and scores and publishes its own
partitions: N replicas should cost N * read + score. Both are solved from the first two numbers of replicas; the others
show how far that goes. Where all are about the key, it reads its own partitions only: N replicas should cost the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

NUMBERS = (1, 2, 4)


def partitions_of(number: int, n_replicas: int, n_partitions: int) -> frozenset[int]:
    """The partitions of one of several replicas.

    >>> sorted(partitions_of(1, 2, 4))
    [1, 3]
    """
    return frozenset(range(number, n_partitions, n_replicas))


def expected_us(cpu_us: Mapping[int, float]) -> dict[int, float]:
    """``N * read + score`` for each number of replicas, us per event, solved from one and two replicas.

    >>> expected_us({1: 20.0, 2: 28.0, 4: 50.0})
    {1: 20.0, 2: 28.0, 4: 44.0}
    """
    read = cpu_us[2] - cpu_us[1]
    return {n: n * read + cpu_us[1] - read for n in cpu_us}


def draw(costs: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """CPU time per event over the number of replicas, measured and expected, a line for each stream."""
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    for i, (name, cpu_us) in enumerate(costs.items()):
        axes.plot(list(cpu_us), list(cpu_us.values()), marker="o", color=f"C{i}", label=name)
        line = expected_us(cpu_us)
        axes.plot(list(line), list(line.values()), "--", color=f"C{i}", label=f"{name}: N read + score")
    axes.set(xlabel="replicas", ylabel="CPU time of all replicas, us per event", xticks=NUMBERS, ylim=(0, None))
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
