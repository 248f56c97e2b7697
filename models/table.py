"""Model inputs: columns, and tables of rows in time order, in memory or on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError


@dataclass(frozen=True)
class Column:
    """An input column of the model.

    Args:
        name: name, such as ``"amount"``, ``"hour"`` or ``"customer_id.amount.ratio.7d"``.
        kind: numeric (float64, NaN = missing) or categorical (64-bit hash of the text, 0 = missing).
        of: the field of *this* event from which the column is computed. Masking a field masks every column with the
            same ``of``. None: history before the event, or context.
        label_fed: whether it is built from labels (a matured fraud rate). The label-free score does not read it.
        entity: the entity whose past it describes; None for a field of the event.
        stat: the statistic, such as ``"ratio"``, or ``"hour"`` and ``"weekday"``; None for a field of the event.
        window_ms: how far the window reaches back; None: the entity's whole past, or no window.

    >>> Column("customer_id.amount.ratio.7d", "numeric", "amount", False, "customer_id", "ratio", 604_800_000).of
    'amount'
    """

    name: str
    kind: Literal["numeric", "categorical"]
    of: str | None = None
    label_fed: bool = False
    entity: str | None = None
    stat: str | None = None
    window_ms: int | None = None


class PickedRows:
    """A lazy selection of rows of a matrix, which may be a memory-mapped file. Rows are read on access.

    Args:
        matrix: **shape (m, d)**.
        rows: indices of the selected rows, in any order, **shape (n,)**.

    >>> picked = PickedRows(np.arange(6.0).reshape(3, 2), np.array([2, 0]))
    >>> picked.shape, picked[:1]
    ((2, 2), array([[4., 5.]]))
    """

    def __init__(self, matrix: NDArray[Any], rows: NDArray[np.int64]) -> None:
        self.matrix, self.rows = matrix, rows

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d)."""
        return len(self.rows), self.matrix.shape[1]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | NDArray[Any]) -> NDArray[Any]:
        """Read the rows selected by a slice, a mask or indices."""
        return np.asarray(self.matrix[self.rows[rows]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)

    def column(self, index: int) -> NDArray[Any]:
        """Read one column, **shape (n,)**."""
        return np.asarray(self.matrix[self.rows, index])

    def pick(self, rows: slice | NDArray[Any]) -> PickedRows:
        """Select rows by a slice, a mask or indices, without reading them."""
        return PickedRows(self.matrix, self.rows[rows])


class TableError(ModelError, ValueError):
    """A table does not have the required form."""


@dataclass(frozen=True)
class Table:
    """Rows in time order; the numeric columns come first, then the categorical ones.

    Args:
        columns: descriptions of the columns of both arrays.
        numeric: float64, **shape (n, d_num)**; NaN is a masked cell. An array, or `PickedRows` of a larger one.
        categorical: uint64 hashes, **shape (n, d_cat)**; 0 is a masked cell. An array or `PickedRows`.
        time_ms: event time, int64, **shape (n,)**, in ascending order.
        category_names: texts of category hashes, as far as known.
        entity: hash of the key entity of each row, uint64, **shape (n,)**; None = rows without entities.

    Raises:
        TableError: a shape, the order of rows or the kind of a column is wrong.

    >>> amount = Column("amount", "numeric", of="amount")
    >>> table = Table((amount,), np.array([[1.0], [2.0]]), np.zeros((2, 0), np.uint64), np.array([5, 9]), {})
    >>> len(table), table.d_num
    (2, 1)
    """

    columns: tuple[Column, ...]
    numeric: NDArray[np.float64] | PickedRows
    categorical: NDArray[np.uint64] | PickedRows
    time_ms: NDArray[np.int64]
    category_names: Mapping[int, str]
    entity: NDArray[np.uint64] | None = None

    def __post_init__(self) -> None:
        kinds = [column.kind for column in self.columns]
        d_num = kinds.count("numeric")
        if kinds != ["numeric"] * d_num + ["categorical"] * (len(kinds) - d_num):
            raise TableError(f"numeric columns must come before categorical ones; sort the columns (kinds: {kinds})")
        names = [column.name for column in self.columns]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise TableError(f"column names must be unique; rename {twice}")
        n = len(self.time_ms)
        for name, got, want in (
            ("numeric", self.numeric.shape, (n, d_num)),
            ("categorical", self.categorical.shape, (n, len(kinds) - d_num)),
        ):
            if got != want:
                raise TableError(f"{name} has shape {got}; it must be {want} (rows, columns of that kind)")
        falls = self.time_ms[1:] < self.time_ms[:-1]
        if falls.any():
            row = int(np.argmax(falls)) + 1
            raise TableError(f"row {row} is earlier than the row before it; sort the rows by time")

    def __len__(self) -> int:
        return len(self.time_ms)

    @property
    def d_num(self) -> int:
        """Number of numeric columns."""
        return self.numeric.shape[1]

    def require(self, columns: tuple[Column, ...]) -> None:
        """Check that the table has these columns, in this order.

        Raises:
            TableError: the columns differ. The message names the difference.
        """
        if self.columns != columns:
            ours, theirs = [c.name for c in self.columns], [c.name for c in columns]
            odd = sorted({*ours} ^ {*theirs}) or [
                name for name, other in zip(ours, theirs, strict=True) if name != other
            ]
            raise TableError(
                f"the columns of the table and of the model differ in {odd}; "
                "use a table of the stream that the model was trained on"
            )

    def category(self, index: int) -> NDArray[np.uint64]:
        """One categorical column, **shape (n,)**."""
        block = self.categorical
        return block.column(index) if isinstance(block, PickedRows) else block[:, index]

    def arranged(self, columns: tuple[Column, ...]) -> Table:
        """The same rows with other columns, by name; a column that is not there is missing. All rows are read.

        >>> one, two = Column("a", "numeric"), Column("b", "numeric")
        >>> table = Table((one,), np.array([[1.0]]), np.zeros((1, 0), np.uint64), np.array([5]), {})
        >>> table.arranged((two, one)).numeric
        array([[nan,  1.]])
        """
        if columns == self.columns:
            return self
        have = {column.name: at for at, column in enumerate(self.columns)}
        parts: list[NDArray[Any]] = []
        for kind, matrix, missing, first in (
            ("numeric", np.asarray(self.numeric[:]), np.nan, 0),
            ("categorical", np.asarray(self.categorical[:]), 0, self.d_num),
        ):
            names = [column.name for column in columns if column.kind == kind]
            picked = np.full((len(self), len(names)), missing, matrix.dtype)
            for at, name in enumerate(names):
                if name in have and self.columns[have[name]].kind == kind:
                    picked[:, at] = matrix[:, have[name] - first]
            parts.append(picked)
        return replace(self, columns=columns, numeric=parts[0], categorical=parts[1])

    def take(self, rows: slice | NDArray[np.bool_] | NDArray[np.int64]) -> Self:
        """Select rows by a slice, a mask or ascending indices. Rows on disk are not read."""
        numeric, categorical = self.numeric, self.categorical
        return type(self)(
            self.columns,
            numeric.pick(rows) if isinstance(numeric, PickedRows) else numeric[rows],
            categorical.pick(rows) if isinstance(categorical, PickedRows) else categorical[rows],
            self.time_ms[rows],
            self.category_names,
            None if self.entity is None else self.entity[rows],
        )
