"""How far the trees are believed: chosen on entities whose labels they have not seen."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.cells import Cells
from models.fit.trees import boost
from models.score.trees import Trees


class Caution(NamedTuple):
    """What keeps trees from learning chance.

    Args:
        min_gain: nats that a split must gain.
        ridge: penalty of large leaf values.
        column_share: share of the columns that each tree sees. With few, trees are less alike, and one strong column
            does not hide the others.
        weight: share of what the trees say that is added to the prior, in [0, 1].
        pace: trees learn so many times faster, and are so many times fewer.
    """

    min_gain: float
    ridge: float
    column_share: float = 1.0
    weight: float = 1.0
    pace: float = 1.0

    def times(self, share: Caution) -> Caution:
        """Caution of which each value is a share of this one."""
        return Caution(*(mine * part for mine, part in zip(self, share, strict=True)))

    def fit(
        self,
        cells: Cells,
        label: NDArray[np.int8],
        margin: NDArray[np.float64],
        *,
        row_weight: NDArray[np.float64],
        n_trees: int,
        depth: int,
        rate: float,
        seed: int,
    ) -> Trees:
        """Trees with this caution; see `boost`."""
        trees = boost(
            cells,
            label,
            margin,
            weight=row_weight,
            n_trees=round(n_trees / self.pace),
            depth=depth,
            rate=rate * self.pace,
            min_gain=self.min_gain,
            ridge=self.ridge,
            column_share=self.column_share,
            seed=seed,
        )
        return trees.times(self.weight)


SHARES = (Caution(1.0, 1.0), Caution(1 / 3, 1.0, 0.5), Caution(1 / 6, 0.4, 0.3))  # of the largest, to the boldest
MANY = 500  # frauds from which the mean of careful and bold trees is taken
CREDIBLE = 35  # frauds for which trees have at most half their weight
LEAST_WEIGHT = 0.1  # trees with less are left out: they change little, and as often for the worse
FOLDS = 4
N_TREES, RATE = 50, 0.2  # shorter than the final training
WEIGHTS = np.linspace(0.0, 1.0, 21)


def choose(
    cells: Cells,
    label: NDArray[np.int8],
    margin: NDArray[np.float64],
    entity: NDArray[np.uint64],
    *,
    weight: NDArray[np.float64],
    depth: int,
    most: Caution,
    seed: int,
    are_selected: bool = False,
) -> tuple[Caution, ...]:
    """The cautions that the labels ask for, at most ``most``; what their trees say is added.

    Frauds of one stream resemble each other from entity to entity, so that a few tell much; those of another do not.
    Trees are fitted to three quarters of the entities and judged by the log-likelihood that they gain over the margin
    on the rest. Entities whose frauds begin at the same time are judged together, because these may have one cause
    that will be gone later, such as a skimmed terminal.

    Cheap splits with a small weight are better than dear splits with the full weight if labels are few. So the trees
    are bold, and their weight is the one that gains most on the entities they have not seen, times the credibility of
    n frauds, n^3 / (n^3 + `CREDIBLE`^3). Another caution is chosen if it gains a standard error, over entities, more.

    If frauds are many, nothing is judged: careful and bold trees err in different ways, so that their mean is better
    than either. Half of it is bold at `MANY` frauds, and less with the root of their number. Bold trees may be fewer
    there. If labels are those of alerts, all trees are bold: the prior scores known rows alike, and only splits
    tell them apart.

    Args:
        cells: training rows in time order.
        label: 1 = fraud, **shape (n,)**.
        margin: log-odds of the prior, **shape (n,)**.
        entity: entity of each row, **shape (n,)**. If the frauds are all of one entity, nothing can be judged, and the
            answer is empty: labels then act through the prior.
        weight: how many rows each row stands for, **shape (n,)**.
        depth: of the trees.
        most: the largest caution.
        seed: seed of the folds.
        are_selected: whether labels are those of events that were chosen for review, such as alerts.

    Source: stacked generalisation (Wolpert, 1992) with entities as units, credibility (Buhlmann, 1967).
    """
    n_frauds = int(label.sum())
    credibility = n_frauds**3 / (n_frauds**3 + CREDIBLE**3)
    members, place = np.unique(entity, return_inverse=True)
    by_time = list(dict.fromkeys(place[label == 1].tolist()))
    if len(by_time) < 2 or credibility < LEAST_WEIGHT:
        return ()
    if n_frauds >= MANY:
        careful, *_, bold = (most.times(share) for share in SHARES)
        if are_selected:
            return (bold,)
        part = 0.5 * float(np.sqrt(MANY / n_frauds))
        return careful._replace(weight=1.0 - part), bold._replace(weight=part, pace=2.0)
    folds = min(FOLDS, len(by_time))
    fold = np.random.default_rng(seed).integers(0, folds, len(members))
    fold[by_time] = np.arange(len(by_time)) * folds // len(by_time)
    of_row = fold[place]
    found: list[tuple[Caution, NDArray[np.float64]]] = []
    for share in reversed(SHARES):
        caution, added = most.times(share), np.zeros(len(label))
        for k in range(folds):
            kept, held = np.flatnonzero(of_row != k), np.flatnonzero(of_row == k)
            trees = caution.fit(
                cells.take(kept),
                label[kept],
                margin[kept],
                row_weight=weight[kept],
                n_trees=N_TREES,
                depth=depth,
                rate=RATE,
                seed=seed,
            )
            added[held] = trees.score(cells.take(held))
        best, gain = _best_weight(label, margin, added, weight)
        per_entity = np.bincount(place, gain, minlength=len(members)).astype(np.float64)
        found.append((caution._replace(weight=best * credibility), per_entity))
    chosen, _ = found[_chosen([gain for _, gain in found])]
    return (chosen,) if chosen.weight >= LEAST_WEIGHT else ()


def _best_weight(
    label: NDArray[np.int8], margin: NDArray[np.float64], added: NDArray[np.float64], weight: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """The weight of what trees say that gains most, and the nats it gains for each row.

    >>> label, margin, some = np.int8([1, 0]), np.zeros(2), np.float64([2, -2])
    >>> [round(_best_weight(label, margin, sign * some, np.ones(2))[0], 2) for sign in (1, -1)]
    [1.0, 0.0]
    """
    before = _loss(label, margin)
    gains = [weight * (before - _loss(label, margin + share * added)) for share in WEIGHTS]
    best = int(np.argmax([gain.sum() for gain in gains]))
    return float(WEIGHTS[best]), gains[best]


def _chosen(gains: list[NDArray[np.float64]]) -> int:
    """The first, unless another gains a standard error more.

    >>> none, some = np.zeros(9), np.ones(9)
    >>> _chosen([none, none, none]), _chosen([none, none, some]), _chosen([some, none, some])
    (0, 2, 0)
    """
    chosen = 0
    for i in range(1, len(gains)):
        more = gains[i] - gains[chosen]
        if float(more.sum()) > float(np.sqrt((more**2).sum())):
            chosen = i
    return chosen


def _loss(label: NDArray[np.int8], log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.logaddexp(0.0, np.where(label == 1, -log_odds, log_odds)))
