"""Model inputs: what a column is, and a table of rows in time order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError


@dataclass(frozen=True)
class Column:
    """One input of the model.

    Args:
        name: e.g. ``"amount"``, ``"hour"`` or ``"customer_id.amount.ratio.7d"``.
        kind: numeric (float64, NaN = missing) or categorical (64-bit hash of the text, 0 = missing).
        of: the raw field of *this* event whose value the column reveals; masking a field masks every column
            with the same ``of``. None: history before the event, or context.
        label_fed: built from labels (a matured fraud rate); the label-free score never reads it.

    >>> Column("customer_id.amount.ratio.7d", "numeric", of="amount").of
    'amount'
    """

    name: str
    kind: Literal["numeric", "categorical"]
    of: str | None = None
    label_fed: bool = False


class TableError(ModelError, ValueError):
    """A table does not have the form that the model needs."""


@dataclass(frozen=True)
class Table:
    """Rows in time order; the numeric columns come first, then the categorical ones.

    Args:
        columns: their descriptions, in the order of the arrays' columns.
        numeric: float64, **shape (n, d_num)**; NaN is a masked cell.
        categorical: uint64 hashes, **shape (n, d_cat)**; 0 is a masked cell.
        time_ms: event time, int64, **shape (n,)**, not falling.
        category_names: hash -> text, as far as known.

    Raises:
        TableError: a shape, an order or a kind does not fit.

    >>> amount = Column("amount", "numeric", of="amount")
    >>> table = Table((amount,), np.array([[1.0], [2.0]]), np.zeros((2, 0), np.uint64), np.array([5, 9]), {})
    >>> len(table), table.d_num
    (2, 1)
    """

    columns: tuple[Column, ...]
    numeric: NDArray[np.float64]
    categorical: NDArray[np.uint64]
    time_ms: NDArray[np.int64]
    category_names: Mapping[int, str]

    def __post_init__(self) -> None:
        kinds = [column.kind for column in self.columns]
        d_num = kinds.count("numeric")
        if kinds != ["numeric"] * d_num + ["categorical"] * (len(kinds) - d_num):
            raise TableError(f"numeric columns must come before categorical ones, however: kinds={kinds}; sort them")
        names = [column.name for column in self.columns]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise TableError(f"column names must be unique, however: twice={twice}; rename them")
        n = len(self.time_ms)
        for name, got, want in (
            ("numeric", self.numeric.shape, (n, d_num)),
            ("categorical", self.categorical.shape, (n, len(kinds) - d_num)),
        ):
            if got != want:
                raise TableError(f"{name} must have shape {want} (rows, columns of that kind), however: {got}")
        if n and np.any(np.diff(self.time_ms) < 0):
            row = int(np.flatnonzero(np.diff(self.time_ms) < 0)[0]) + 1
            raise TableError(
                f"rows must be in time order, however: row {row} is earlier than the one before; sort them"
            )

    def __len__(self) -> int:
        return len(self.time_ms)

    @property
    def d_num(self) -> int:
        """How many numeric columns there are."""
        return self.numeric.shape[1]

    def take(self, rows: slice | NDArray[np.bool_] | NDArray[np.int64]) -> Self:
        """The rows that a slice, a mask or rising indices name."""
        return type(self)(
            self.columns, self.numeric[rows], self.categorical[rows], self.time_ms[rows], self.category_names
        )
