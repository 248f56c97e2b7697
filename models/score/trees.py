"""Boosted trees as plain arrays: scoring without the library that trained them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.cells import MISSING, Cells
from models.score.tree_bits import MAX_LEAVES, TreeBits

LEAF = -1
MAX_CHOICES = 32  # texts of a categorical column that have an input of their own


@dataclass(frozen=True)
class Trees:
    """An ensemble of binary trees whose leaf values are added.

    The inputs are the numeric cells, then one 0/1 input for each frequent text. A missing cell takes the default side.

    Args:
        choices: categorical column and code of each 0/1 input, int64, **shape (m, 2)**.
        feature: input of each node, `LEAF` at a leaf, int64, **shape (n_trees, n_nodes)**, padded with leaves of 0.
        split: a row goes left if its input is smaller, float32, same shape.
        left, right: the nodes below, int64, same shape. A leaf has itself.
        missing_left: whether a missing input goes left, bool, same shape.
        value: value of a leaf, float32, same shape.
    """

    choices: NDArray[np.int64]
    feature: NDArray[np.int64]
    split: NDArray[np.float32]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    missing_left: NDArray[np.bool_]
    value: NDArray[np.float32]

    @cached_property
    def _bits(self) -> TreeBits:
        """Raises ValueError: a tree has more than `MAX_LEAVES` leaves, or its nodes are no tree."""
        n_inputs = 1 + int(self.feature.max(initial=LEAF))
        walks = [_Walk(self, tree, n_inputs) for tree in range(len(self.feature))]
        splits = [split for walk in walks for split in walk.splits]
        n_leaves = max((len(walk.values) for walk in walks), default=1)
        value = np.zeros((len(walks), n_leaves))
        for row, walk in zip(value, walks, strict=True):
            row[: len(walk.values)] = walk.values
        return TreeBits(
            n_inputs,
            np.array([at for at, _, _ in splits], np.int64),
            np.array([split for _, split, _ in splits], np.float32),
            np.array([leaves for _, _, leaves in splits], np.dtype(np.uint32 if n_leaves <= 32 else np.uint64)),
            np.cumsum([0, *(len(walk.splits) for walk in walks)]),
            value,
        )

    def score(self, cells: Cells) -> NDArray[np.float64]:
        """Sum of the leaf values of each row, **shape (n,)**."""
        return self._bits.score(inputs(cells, self.choices)[:, : self._bits.n_inputs])

    def times(self, weight: float) -> Trees:
        """Trees that say a share of what these say."""
        return replace(self, value=self.value * np.float32(weight))

    def __add__(self, other: Trees) -> Trees:
        """Trees that say what both say. They must have the same inputs."""
        assert np.array_equal(self.choices, other.choices)
        n_nodes = max(self.feature.shape[1], other.feature.shape[1])
        parts = [part._padded(n_nodes).arrays() for part in (self, other)]
        both = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "choices"}
        return Trees(choices=self.choices, **both)

    def _padded(self, n_nodes: int) -> Trees:
        """The same trees with arrays of more nodes."""
        more = n_nodes - self.feature.shape[1]
        itself = np.tile(np.arange(n_nodes - more, n_nodes), (len(self.feature), 1))
        sides = {name: np.hstack([getattr(self, name), itself]) for name in ("left", "right")}
        plain = {name: np.pad(getattr(self, name), ((0, 0), (0, more))) for name in ("split", "missing_left", "value")}
        feature = np.pad(self.feature, ((0, 0), (0, more)), constant_values=LEAF)
        return replace(self, feature=feature, **sides, **plain)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays, for safetensors."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class _Walk:
    """The splits of one tree, from the root down to the left, and the values of its leaves from the left."""

    def __init__(self, trees: Trees, tree: int, n_inputs: int) -> None:
        self.splits: list[tuple[int, float, int]] = []
        self.values: list[float] = []
        self._trees, self._tree, self._n_inputs = trees, tree, n_inputs
        self._leaves_below(0, 0)

    def _leaves_below(self, node: int, depth: int) -> int:
        trees, tree = self._trees, self._tree
        if depth >= MAX_LEAVES or len(self.values) == MAX_LEAVES:
            raise ValueError(f"tree {tree} has more than {MAX_LEAVES} leaves, or its nodes are no tree")
        feature = int(trees.feature[tree, node])
        if feature == LEAF:
            self.values.append(float(trees.value[tree, node]))
            return 1 << (len(self.values) - 1)
        if not 0 <= feature < self._n_inputs:
            raise ValueError(f"tree {tree} reads input {feature}; there are {self._n_inputs}")
        place, at = len(self.splits), feature if trees.missing_left[tree, node] else feature + self._n_inputs
        self.splits.append((0, 0.0, 0))
        left = self._leaves_below(int(trees.left[tree, node]), depth + 1)
        self.splits[place] = at, float(trees.split[tree, node]), left
        return left | self._leaves_below(int(trees.right[tree, node]), depth + 1)


def inputs(cells: Cells, choices: NDArray[np.int64]) -> NDArray[np.float32]:
    """The inputs of the trees, float32, **shape (n, d_num + m)**, NaN = missing.

    >>> cells = Cells(np.float32([[0.5]]), np.float32([[0]]), np.array([[7]]))
    >>> inputs(cells, np.array([[0, 7], [0, 8]]))
    array([[nan,  1.,  0.]], dtype=float32)
    """
    values = np.where(cells.present > 0, cells.values, np.float32(np.nan))
    codes = cells.codes[:, choices[:, 0]]
    chosen = np.where(codes == MISSING, np.float32(np.nan), (codes == choices[:, 1]).astype(np.float32))
    return np.concatenate([values, chosen], axis=1)


def frequent_choices(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Categorical column and code of the most frequent texts, **shape (m, 2)**.

    >>> frequent_choices(np.array([[2], [3], [3], [0]])).tolist()
    [[0, 3], [0, 2]]
    """
    found = []
    for j in range(codes.shape[1]):
        counts = np.bincount(codes[:, j])
        counts[MISSING] = 0
        order = np.argsort(-counts, kind="stable")[:MAX_CHOICES]
        found += [(j, int(code)) for code in order if counts[code] > 0]
    return np.array(found, np.int64).reshape(-1, 2)
