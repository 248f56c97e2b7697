"""How careful the trees must be: chosen on entities whose labels the trees have not seen."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.cells import Cells
from models.fit.trees import FEW, boost


class Caution(NamedTuple):
    """What keeps trees from learning chance: the nats that a split must gain, and the penalty of leaf values.

    ``column_share`` is the share of the columns that each tree sees: with few each, trees are less alike, and one
    strong column does not hide the others.
    """

    min_gain: float
    ridge: float
    column_share: float = 1.0

    def times(self, share: Caution) -> Caution:
        """Caution of which each value is a share of this one."""
        return Caution(*(mine * part for mine, part in zip(self, share, strict=True)))


# of the largest, from careful to bold
SHARES = (Caution(1.0, 1.0), Caution(2 / 3, 1.0), Caution(1 / 3, 1.0, 0.5), Caution(1 / 12, 1 / 5, 0.3))
MIDDLE = 2  # the one of `SHARES` that is taken if the labels cannot tell
ENOUGH = 40  # frauds for a choice
FOLDS, FEWEST_ENTITIES = 4, 3
N_TREES, RATE = 30, 0.3  # shorter than the final training


def split_price(
    cells: Cells,
    label: NDArray[np.int8],
    margin: NDArray[np.float64],
    entity: NDArray[np.uint64],
    *,
    weight: NDArray[np.float64],
    depth: int,
    most: Caution,
    seed: int,
) -> Caution:
    """The caution that the labels ask for, at most ``most``.

    Frauds of one stream resemble each other from entity to entity, so that a few tell much; those of another do not.
    Trees with each caution are fitted to three quarters of the entities and judged by the log-likelihood that they gain
    over the margin on the rest. Entities whose frauds begin at the same time are judged together, because these may
    have one cause that will be gone later, such as a skimmed terminal.

    A third of ``most`` is taken, unless a more careful choice gains half a standard error, over entities, more; or the
    last of `SHARES`, if that gains a standard error more than ``most`` and is within half of one of the best. With
    fewer than `ENOUGH` frauds nothing can be judged: it is a third, and below `FEW` or with frauds of fewer than
    `FEWEST_ENTITIES` entities ``most``.

    Args:
        cells: training rows in time order.
        label: 1 = fraud, **shape (n,)**.
        margin: log-odds of the prior, **shape (n,)**.
        entity: entity of each row, **shape (n,)**.
        weight: how many rows each row stands for, **shape (n,)**.
        depth: of the trees.
        most: the largest caution.
        seed: seed of the folds.

    Source: cross-validation with entities as units, with a standard-error rule (Breiman and others, 1984).
    """
    members, place = np.unique(entity, return_inverse=True)
    has_fraud = np.bincount(place, label, minlength=len(members)) > 0
    if label.sum() < FEW or has_fraud.sum() < FEWEST_ENTITIES:
        return most
    if label.sum() < ENOUGH:
        return most.times(SHARES[MIDDLE])
    fold = np.random.default_rng(seed).integers(0, FOLDS, len(members))
    by_time = list(dict.fromkeys(place[label == 1].tolist()))
    fold[by_time] = np.arange(len(by_time)) * FOLDS // len(by_time)
    of_row = fold[place]
    before = _loss(label, margin)
    gains = []
    for share in SHARES:
        after = margin.copy()
        for k in range(FOLDS):
            kept, held = np.flatnonzero(of_row != k), np.flatnonzero(of_row == k)
            if len(held) == 0 or not label[kept].any():
                continue
            trees = boost(
                cells.take(kept),
                label[kept],
                margin[kept],
                weight=weight[kept],
                n_trees=N_TREES,
                depth=depth,
                rate=RATE,
                seed=seed,
                **most.times(share)._asdict(),
            )
            after[held] += trees.score(cells.take(held))
        gain = weight * (before - _loss(label, after))
        gains.append(np.bincount(place, gain, minlength=len(members)).astype(np.float64))
    return most.times(SHARES[_chosen(gains)])


def _chosen(gains: list[NDArray[np.float64]]) -> int:
    """Which of `SHARES`, by what each gains.

    >>> none, some = np.zeros(9), np.ones(9)
    >>> _chosen([none, none, none, none]), _chosen([some, none, none, none]), _chosen([none, none, none, some])
    (2, 0, 3)
    """

    def gains_over(i: int, j: int, errors: float) -> bool:
        more = gains[i] - gains[j]
        return float(more.sum()) > errors * float(np.sqrt((more**2).sum()))

    best, last = max(range(len(gains)), key=lambda i: float(gains[i].sum())), len(gains) - 1
    if gains_over(last, 0, 1) and not gains_over(best, last, 0.5):
        return last
    chosen = MIDDLE
    for i in range(MIDDLE):
        if gains_over(i, chosen, 0.5):
            chosen = i
    return chosen


def _loss(label: NDArray[np.int8], log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.logaddexp(0.0, np.where(label == 1, -log_odds, log_odds)))
