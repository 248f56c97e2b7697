"""How many nats a split of the trees must gain: chosen on entities whose labels the trees have not seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.cells import Cells
from models.fit.trees import boost

SHARES = (1.0, 2 / 3, 1 / 3, 1 / 12)  # of the largest price
ENOUGH = 40  # frauds for the smallest one
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
    most: float,
    ridge: float,
    seed: int,
) -> float:
    """The price of a split, at most ``most``.

    Frauds of one stream resemble each other from entity to entity, so that a few tell much; those of another do not.
    Trees with each price are fitted to three quarters of the entities and judged by the log-likelihood that they gain
    over the margin on the rest. Entities whose frauds begin at the same time are judged together, because these may
    have one cause that will be gone later, such as a skimmed terminal. The highest price is taken whose gain is within
    a standard error, over entities, of the best one. With frauds of fewer than `FEWEST_ENTITIES` entities it is
    ``most``, with fewer than `ENOUGH` frauds at least a third of it.

    Args:
        cells: training rows in time order.
        label: 1 = fraud, **shape (n,)**.
        margin: log-odds of the prior, **shape (n,)**.
        entity: entity of each row, **shape (n,)**.
        weight: how many rows each row stands for, **shape (n,)**.
        depth, ridge: of the trees.
        most: the largest price in nats.
        seed: seed of the folds.

    Source: the one-standard-error rule of cross-validation (Breiman and others, 1984), with entities as units.
    """
    members, place = np.unique(entity, return_inverse=True)
    has_fraud = np.bincount(place, label, minlength=len(members)) > 0
    if has_fraud.sum() < FEWEST_ENTITIES:
        return most
    fold = np.random.default_rng(seed).integers(0, FOLDS, len(members))
    by_time = list(dict.fromkeys(place[label == 1].tolist()))
    fold[by_time] = np.arange(len(by_time)) * FOLDS // len(by_time)
    of_row = fold[place]
    before = _loss(label, margin)
    gains = []
    for share in SHARES if label.sum() >= ENOUGH else SHARES[:-1]:
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
                min_gain=most * share,
                ridge=ridge,
                seed=seed,
            )
            after[held] += trees.score(cells.take(held))
        gain = weight * (before - _loss(label, after))
        gains.append(np.bincount(place, gain, minlength=len(members)).astype(np.float64))
    return most * SHARES[_highest(gains)]


def _highest(gains: list[NDArray[np.float64]]) -> int:
    """The first price whose gain is within a standard error of the best; prices fall.

    >>> _highest([np.zeros(9), np.full(9, 1.0)]), _highest([np.zeros(9), np.append(np.zeros(8), 5.0)])
    (1, 0)
    """
    best = max(range(len(gains)), key=lambda i: float(gains[i].sum() - _error(gains[i])))
    lacks = (gains[best] - one for one in gains)
    return next(i for i, lack in enumerate(lacks) if float(lack.sum()) <= _error(lack))


def _error(gain: NDArray[np.float64]) -> float:
    """Standard error of a sum of independent gains of entities, as if they were 0 on average."""
    return float(np.sqrt((gain**2).sum()))


def _loss(label: NDArray[np.int8], log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.logaddexp(0.0, np.where(label == 1, -log_odds, log_odds)))
