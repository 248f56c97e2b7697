"""Boosted trees that add what the labels say to a prior."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.cells import Cells
from models.score.trees import LEAF, Trees, frequent_choices, inputs

FEW = 20  # frauds
PATIENCE = 20  # trees without a split before boosting ends


def boost(
    cells: Cells,
    label: NDArray[np.int8],
    margin: NDArray[np.float64],
    *,
    weight: NDArray[np.float64],
    n_trees: int,
    depth: int,
    rate: float,
    min_gain: float,
    ridge: float,
    seed: int,
    row_share: float = 1.0,
    column_share: float = 1.0,
    min_weight: float = 1.0,
) -> Trees:
    """Fit trees with exact splits to the residuals of a prior (XGBoost, Chen and Guestrin, 2016).

    A split must gain about ``min_gain`` nats of log-likelihood. Without that, a few frauds would be fitted by chance;
    with it, few labels make few splits, or none, and many labels make deep trees.

    Args:
        cells: training rows.
        label: 1 = fraud, **shape (n,)**.
        margin: log-odds of the prior, **shape (n,)**.
        weight: how many rows each row stands for, **shape (n,)**.
        n_trees, depth: number of trees and their largest depth.
        rate: learning rate.
        min_gain: nats that a split must gain if there are many frauds; twice as many if there are `FEW`.
        ridge: penalty of the squared leaf values.
        seed: seed of the library.
        row_share, column_share: share of the rows and of the columns that each tree sees.
        min_weight: smallest sum of second derivatives in a leaf.
    """
    import xgboost

    class Stop(xgboost.callback.TrainingCallback):  # type: ignore[misc]
        """Ends when no split is worth its price any more; a tree without a split costs as much time as any other."""

        idle = 0

        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            self.idle = self.idle + 1 if model[epoch : epoch + 1].get_dump()[0].startswith("0:leaf") else 0
            return self.idle == PATIENCE

    choices = frequent_choices(cells.codes)
    x = inputs(cells, choices)
    rows = xgboost.DMatrix(x, label, weight=weight, base_margin=margin.astype(np.float32))
    settings = {
        "objective": "binary:logistic",
        "tree_method": "exact",
        "max_depth": depth,
        "eta": rate,
        "gamma": min_gain * (1 + scarcity(label)),
        "lambda": ridge,
        "subsample": row_share,
        "colsample_bytree": column_share,
        "min_child_weight": min_weight,
        "seed": seed,
    }
    booster = xgboost.train(settings, rows, n_trees, callbacks=[Stop()])
    found = json.loads(booster.save_raw("json"))["learner"]["gradient_booster"]["model"]["trees"]
    return _arrays([tree for tree in found if tree["left_children"][0] >= 0], choices)


def scarcity(label: NDArray[np.int8]) -> float:
    """1 if there are `FEW` frauds; falls with the square root of their number.

    >>> scarcity(np.repeat(np.int8([1, 0]), [80, 1000]))
    0.5
    """
    return float(np.sqrt(FEW / max(1, int((label == 1).sum()))))


def no_trees() -> Trees:
    """An ensemble that adds nothing."""
    return _arrays([], np.zeros((0, 2), np.int64))


def _arrays(trees: list[dict[str, Any]], choices: NDArray[np.int64]) -> Trees:
    shape = len(trees), max((len(tree["left_children"]) for tree in trees), default=1)
    feature, split = np.full(shape, LEAF, np.int64), np.zeros(shape, np.float32)
    left = np.tile(np.arange(shape[1]), (shape[0], 1))
    right, missing_left, value = left.copy(), np.zeros(shape, np.bool_), np.zeros(shape, np.float32)
    for t, tree in enumerate(trees):
        below = np.array(tree["left_children"], np.int64)
        inner, at = below >= 0, np.arange(len(below))
        conditions = np.array(tree["split_conditions"], np.float32)
        feature[t, at[inner]] = np.array(tree["split_indices"], np.int64)[inner]
        split[t, at[inner]] = conditions[inner]
        left[t, at[inner]] = below[inner]
        right[t, at[inner]] = np.array(tree["right_children"], np.int64)[inner]
        missing_left[t, at[inner]] = np.array(tree["default_left"], np.bool_)[inner]
        value[t, at[~inner]] = conditions[~inner]  # a leaf has its value there
    return Trees(choices, feature, split, left, right, missing_left, value)
