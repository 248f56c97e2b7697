"""Trees as bit vectors: many rows take all splits of a tree at once, without branches.

Source: QuickScorer (Lucchese et al., SIGIR 2015), its vectorised form (SIGIR 2016).
"""

# mypy: disable-error-code="no-untyped-def"
# The compiled functions are typed by numba, from their first call.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numba.cpython.unsafe.numbers import trailing_zeros
from numpy.typing import NDArray

MAX_LEAVES = 64  # bits of a word
_TILE = 64  # rows at a time: their inputs and words stay in the first-level cache


@dataclass(frozen=True)
class TreeBits:
    """The splits of an ensemble in tree order. The leaves of a tree are numbered from the left; a leaf is one bit.

    Args:
        n_inputs: inputs of the trees. Each is given twice: input i with missing values at -inf, i + n_inputs at inf.
        at: the input of each split, as given, int64, **shape (n_splits,)**.
        split: a row goes left if its input is smaller, float32, same shape.
        left_leaves: the leaves that a row to the right cannot reach, uint32 or uint64, same shape.
        first: the first split of each tree, and the end, int64, **shape (n_trees + 1,)**.
        value: of each leaf, float64, **shape (n_trees, most leaves)**.
    """

    n_inputs: int
    at: NDArray[np.int64]
    split: NDArray[np.float32]
    left_leaves: NDArray[np.unsignedinteger[Any]]
    first: NDArray[np.int64]
    value: NDArray[np.float64]

    def score(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Sum of the leaf values, **shape (n,)**, of inputs **(n, n_inputs)**, NaN = missing."""
        n, d = x.shape
        given = np.empty((2 * d, n + -n % _TILE), np.float32)
        given[:, n:] = 0.0
        missing = np.isnan(x.T)
        given[:d, :n], given[d:, :n] = np.where(missing, -np.inf, x.T), np.where(missing, np.inf, x.T)
        total = np.zeros(given.shape[1])
        _add_leaves(given, self.at, self.split, self.left_leaves, self.first, self.value, total)
        return total[:n]


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call, and cache the machine code on disk if a folder is writable."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # a read-only install without NUMBA_CACHE_DIR
        return numba.njit(nogil=True)(function)


@_compiled
def _add_leaves(given, at, split, left_leaves, first, value, total):
    gone = np.empty(_TILE, left_leaves.dtype)  # leaves that a row cannot reach
    none = left_leaves.dtype.type(0)
    for start in range(0, given.shape[1], _TILE):
        for tree in range(len(first) - 1):
            gone[:] = none
            for node in range(first[tree], first[tree + 1]):
                x, limit, left = given[at[node], start : start + _TILE], split[node], left_leaves[node]
                for row in range(_TILE):
                    gone[row] |= none if x[row] < limit else left
            for row in range(_TILE):
                total[start + row] += value[tree, trailing_zeros(~gone[row])]  # type: ignore[call-arg]
