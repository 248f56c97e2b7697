"""Two scorers on the same events: average precision and precision at a number of alerts, with paired intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 200


@dataclass(frozen=True)
class Difference:
    """A figure of two scorers, and the 95 % interval of the first minus the second.

    >>> Difference(0.5, 0.4, 0.02, 0.18).is_clear_loss
    False
    """

    ours: float
    theirs: float
    low: float
    high: float

    @property
    def is_clear_loss(self) -> bool:
        """Whether the whole interval is below 0."""
        return self.high < 0


@dataclass(frozen=True)
class Paired:
    """The comparison: of average precision, and of precision among the `n_alerts` highest scores."""

    average_precision: Difference
    precision: Difference
    n_alerts: int


def paired(
    label: NDArray[np.int8],
    ours: NDArray[np.floating],
    theirs: NDArray[np.floating],
    entity: NDArray[np.integer],
    *,
    n_alerts: int,
    seed: int = 0,
) -> Paired:
    """Compare two scorers by a paired bootstrap over entities: the frauds of one entity come together.

    Args:
        label: 1 = fraud, at least one, **shape (n,)**.
        ours, theirs: scores, high = anomalous, **shape (n,)**.
        entity: of each event; all events of an entity are drawn together, **shape (n,)**.
        n_alerts: number of highest scores of which the precision is computed.
        seed: of the draws.

    Raises:
        ValueError: no label is fraud.

    Example:
        >>> label, good = np.repeat([1, 0], [20, 80]).astype(np.int8), np.linspace(1, 0, 100)
        >>> found = paired(label, good, -good, np.arange(100), n_alerts=20)
        >>> found.average_precision.ours, found.precision.theirs, found.average_precision.low > 0.5
        (1.0, 0.0, True)

    Source: cluster bootstrap with Poisson weights (Field and Welsh, 2007; Oza and Russell, 2001).
    """
    if not (np.asarray(label) == 1).any():
        raise ValueError(f"none of the {len(label)} labels is fraud; a comparison needs at least one")
    group = np.unique(entity, return_inverse=True)[1]
    sides = [_Ranked.of(label, scores) for scores in (ours, theirs)]
    once = np.ones(len(label))
    found = np.array([side.figures(once, n_alerts) for side in sides])
    random = np.random.default_rng(seed)
    drawn = np.empty((DRAWS, 2))
    for i in range(DRAWS):
        weight = random.poisson(1.0, int(group.max()) + 1).astype(float)[group]
        drawn[i] = sides[0].figures(weight, n_alerts) - sides[1].figures(weight, n_alerts)
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
    average, precision = (Difference(*map(float, (*found[:, i], low[i], high[i]))) for i in (0, 1))
    return Paired(average, precision, n_alerts)


def average_precision_interval(
    label: NDArray[np.int8], score: NDArray[np.floating], entity: NDArray[np.integer], *, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the average precision of one scorer, by the bootstrap of `paired`.

    >>> label, score = np.repeat([1, 0], [20, 80]).astype(np.int8), np.random.default_rng(0).random(100)
    >>> low, high = average_precision_interval(label, score + 0.3 * label, np.arange(100))
    >>> 0.2 < low < high < 0.9
    True
    """
    group = np.unique(entity, return_inverse=True)[1]
    side, random = _Ranked.of(label, score), np.random.default_rng(seed)
    weights = (random.poisson(1.0, int(group.max()) + 1).astype(float)[group] for _ in range(DRAWS))
    low, high = np.nanquantile([side.figures(weight, 1)[0] for weight in weights], [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class _Ranked:
    """Events from the highest score down; equal scores are one step."""

    order: NDArray[np.int64]
    fraud: NDArray[np.bool_]
    last: NDArray[np.int64]  # last place of each distinct score

    @classmethod
    def of(cls, label: NDArray[np.int8], scores: NDArray[np.floating]) -> _Ranked:
        order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
        last = np.append(np.flatnonzero(np.diff(np.asarray(scores)[order])), len(order) - 1)
        return cls(order, np.asarray(label)[order] == 1, last)

    def figures(self, weight: NDArray[np.float64], n_alerts: int) -> NDArray[np.float64]:
        """Average precision, and precision among the highest `n_alerts`; NaN if no fraud was drawn."""
        weight = weight[self.order]
        taken, caught = np.cumsum(weight)[self.last], np.cumsum(weight * self.fraud)[self.last]
        if caught[-1] == 0:
            return np.array([np.nan, np.nan])
        precision = np.divide(caught, taken, out=np.zeros_like(caught), where=taken > 0)
        at = min(int(np.searchsorted(taken, n_alerts)), len(taken) - 1)
        return np.array([np.sum(np.diff(caught, prepend=0.0) * precision) / caught[-1], precision[at]])
