"""Which rows are kept back to validate or to judge: always the last ones in time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Split(NamedTuple):
    """Row indices in time order: `train` to learn from, and `valid`, the last share of all."""

    train: NDArray[np.int64]
    valid: NDArray[np.int64]


def last_share(rows: NDArray[np.int64], share: float, *, at_least: int = 0) -> Split:
    """Keep back the last share of some rows.

    Args:
        rows: indices in time order, **shape (n,)**.
        share: of them, in [0, 1), rounded down.
        at_least: rows that are kept back whatever the share gives.

    >>> last_share(np.arange(10), 0.25)
    Split(train=array([0, 1, 2, 3, 4, 5, 6, 7]), valid=array([8, 9]))
    """
    cut = len(rows) - max(at_least, int(len(rows) * share))
    return Split(rows[: max(cut, 0)], rows[max(cut, 0) :])
