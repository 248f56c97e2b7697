"""How well a checkpoint finds frauds, without labels: the entities with the oddest events have more of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from models.cells import CellCoding
from models.fit.label_free import label_free
from models.net.expectation import Expectation
from models.table import Table

TOP = 0.005  # share of the events that are odd
WITHIN_MS = 7 * 86_400_000
MOST_ROWS = 50_000
FEWEST = 50  # odd events


class Recurrence(NamedTuple):
    """Logarithm of a ratio of shares, 0 = as often as by chance, and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Watched:
    """All training events of some entities.

    Args:
        table: events in time order.
        coding: converts them to cells.
    """

    table: Table
    coding: CellCoding

    @classmethod
    def of(cls, table: Table, coding: CellCoding) -> Self | None:
        """As many entities as have `MOST_ROWS` events in all. None if the table names no entities or is too small."""
        if table.entity is None or len(table) * TOP < FEWEST:
            return None
        members, place = np.unique(table.entity, return_inverse=True)
        some = np.random.default_rng(0).permutation(len(members))[: int(np.ceil(len(members) * MOST_ROWS / len(table)))]
        rows = np.flatnonzero(np.isin(place, some))
        return cls(table.take(rows), coding) if len(rows) * TOP >= FEWEST else None

    def measure(self, network: Expectation) -> Recurrence:
        """`recurrence` of the label-free score of a network."""
        assert self.table.entity is not None
        _, score = label_free(network, self.coding, self.table)
        return recurrence(score, self.table.entity, self.table.time_ms)


def recurrence(score: NDArray[np.float64], entity: NDArray[np.uint64], time_ms: NDArray[np.int64]) -> Recurrence:
    """How much more often the oddest events than random ones are followed by another one of their entity.

    Frauds come again until somebody stops them, but what is odd by chance does not.

    Args:
        score: high = odd, **shape (n,)**.
        entity: entity of each event, **shape (n,)**.
        time_ms: time of each event, **shape (n,)**.

    >>> time_ms, card = np.arange(1000) * 864_000, np.arange(1000) % 100
    >>> again = np.where((card == 7) & (time_ms < 500_000_000), 1.0, 0.0)
    >>> recurrence(again, card, time_ms).value > 1
    True
    """
    n_top = max(1, int(len(score) * TOP))
    random = np.random.default_rng(0)
    odd = np.lexsort((random.random(len(score)), score))[-n_top:]
    chance = np.mean([_followed(random.choice(len(score), n_top, replace=False), entity, time_ms) for _ in range(5)])
    seen = _followed(odd, entity, time_ms)
    return Recurrence(float(np.log((seen + 1e-3) / (chance + 1e-3))), float(1 / np.sqrt(max(1.0, seen * n_top))))


def choose(found: Sequence[Recurrence], losses: Sequence[float]) -> int:
    """The checkpoint with the lowest loss among those whose recurrence is within a standard error of the highest.

    >>> choose([Recurrence(0.9, 0.2), Recurrence(0.8, 0.2), Recurrence(0.1, 0.3)], [3.0, 2.0, 1.0])
    1
    """
    best = max(found, key=lambda one: one.value)
    able = [i for i, one in enumerate(found) if one.value >= best.value - best.error]
    return min(able, key=lambda i: losses[i])


def _followed(rows: NDArray[np.int64], entity: NDArray[np.uint64], time_ms: NDArray[np.int64]) -> float:
    """Share of rows with a later one of the same entity within `WITHIN_MS`."""
    rows = rows[np.lexsort((time_ms[rows], entity[rows]))]
    same = entity[rows][1:] == entity[rows][:-1]
    return float((same & (np.diff(time_ms[rows]) < WITHIN_MS)).sum() / len(rows))
