"""Hold-out splits: always the last rows in time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Split(NamedTuple):
    """Row indices in time order: `train`, and `valid`, the last share of all."""

    train: NDArray[np.int64]
    valid: NDArray[np.int64]


def last_share(rows: NDArray[np.int64], share: float, *, at_least: int = 0) -> Split:
    """Hold out the last share of some rows.

    Args:
        rows: indices in time order, **shape (n,)**.
        share: share to hold out, in [0, 1), rounded down.
        at_least: minimum number of rows to hold out.

    >>> last_share(np.arange(10), 0.25)
    Split(train=array([0, 1, 2, 3, 4, 5, 6, 7]), valid=array([8, 9]))
    """
    cut = len(rows) - max(at_least, int(len(rows) * share))
    return Split(rows[: max(cut, 0)], rows[max(cut, 0) :])
