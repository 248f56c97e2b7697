"""Convert raw columns to network inputs. One numpy implementation, used in training and serving."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from models.table import Column, PickedRows, Table, TableError

LIMIT = 1e4  # scaled values are clipped to this, so that float32 products stay finite
FLOAT32 = float(np.finfo(np.float32).max)
MISSING, UNKNOWN = 0, 1  # codes of a categorical cell; codes of known values follow
CHUNK = 8192  # rows that are read and encoded at a time
TAILS = (0.0002, 0.001, 0.004, 0.015)
CONSTANT = 0.98  # a field that repeats in this share of consecutive events of an entity is context
OFTEN = 0.3  # so is a number that repeats in this share of them,
NARROW = 0.01  # if less than this share of its variance is within entities


class Cells(NamedTuple):
    """Input of the network: ``values`` and ``present`` (n, d_num), ``codes`` (n, d_cat)."""

    values: NDArray[np.float32]
    present: NDArray[np.float32]
    codes: NDArray[np.int64]

    def take(self, rows: slice | NDArray[np.int64]) -> Cells:
        """Select rows by a slice or by indices."""
        return Cells(self.values[rows], self.present[rows], self.codes[rows])


@dataclass(frozen=True)
class CellCoding:
    """Fitted scales, piecewise-linear edges and vocabularies of a table's columns.

    Args:
        columns: input columns, numeric ones first.
        center: medians, float64, **shape (d_num,)**.
        scale: robust standard deviations, float64, **shape (d_num,)**.
        edges: ascending bin edges of each numeric column on the scaled axis, padded with the last edge, float32,
            **shape (d_num, n_edges)**.
        vocabularies: for each categorical column, the sorted hashes that have their own code.
        whole: which numeric columns contain only whole numbers (hours, counts), bool, **shape (d_num,)**.
        context: fields that hardly vary within an entity, such as a home town: they are read, but not predicted.
    """

    columns: tuple[Column, ...]
    center: NDArray[np.float64]
    scale: NDArray[np.float64]
    edges: NDArray[np.float32]
    vocabularies: tuple[NDArray[np.uint64], ...]
    whole: NDArray[np.bool_]
    context: tuple[str, ...] = ()

    @classmethod
    def fit(cls, table: Table, *, n_bins: int = 16, max_vocabulary: int = 256, max_rows: int = 200_000) -> Self:
        """Fit on the rows of a table, or on an even subsample of a large one.

        Half of the edges are quantiles. The others are extra tail quantiles and edges of equal width, because plain
        quantiles do not resolve the tails, where frauds are. (Piecewise-linear encoding: arXiv 2203.05556;
        NOTE[DIFF]: the tail edges.)
        """
        step = max(1, len(table) // max_rows)
        numeric, categorical = table.numeric[::step], table.categorical[::step]
        d_num = table.d_num
        center, scale, whole = np.zeros(d_num), np.ones(d_num), np.zeros(d_num, bool)
        ladders: list[NDArray[np.float32]] = []
        for i in range(d_num):
            seen = numeric[:, i]
            seen = seen[np.isfinite(seen)]
            if seen.size == 0:
                ladders.append(np.array([0.0, 1.0], np.float32))
                continue
            center[i] = np.median(seen)
            whole[i] = np.array_equal(seen, np.rint(seen))
            scale[i] = _robust_scale(seen)
            scaled = np.clip((seen - center[i]) / scale[i], -LIMIT, LIMIT)
            ladders.append(_edges(scaled, n_bins))
        n_edges = max((len(ladder) for ladder in ladders), default=2)
        edges = (
            np.stack([np.pad(e, (0, n_edges - len(e)), mode="edge") for e in ladders]) if ladders else np.zeros((0, 2))
        )
        vocabularies = tuple(_vocabulary(categorical[:, j], max_vocabulary) for j in range(categorical.shape[1]))
        return cls(
            table.columns, center, scale, edges.astype(np.float32), vocabularies, whole, _context(table, max_rows)
        )

    @property
    def d_num(self) -> int:
        """Number of numeric columns."""
        return len(self.center)

    @cached_property
    def _limit(self) -> NDArray[np.float64]:
        """`LIMIT`, but not for columns from labels: the network does not read them, and they may have no scale yet."""
        return np.where([column.label_fed for column in self.columns[: self.d_num]], FLOAT32, LIMIT)

    @property
    def n_codes(self) -> tuple[int, ...]:
        """Number of codes of each categorical column: missing, unknown and the vocabulary."""
        return tuple(len(v) + 2 for v in self.vocabularies)

    def transform(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> Cells:
        """Scale numbers, mark missing values and look up hashes.

        Args:
            numeric: **shape (n, d_num)**, NaN or infinite = missing.
            categorical: hashes, **shape (n, d_cat)**, 0 = missing.

        Raises:
            TableError: a shape is wrong.
        """
        for name, width, wanted in (
            ("numeric", numeric.shape[1:], (self.d_num,)),
            ("categorical", categorical.shape[1:], (len(self.vocabularies),)),
        ):
            if width != wanted:
                raise TableError(f"{name} rows have shape {width}; the model was fitted on {wanted}")
        present = np.isfinite(numeric)
        scaled = (np.where(present, numeric, self.center) - self.center) / self.scale
        codes = np.empty(categorical.shape, np.int64)
        for j, vocabulary in enumerate(self.vocabularies):
            hashes = categorical[:, j]
            place = np.minimum(np.searchsorted(vocabulary, hashes), max(len(vocabulary) - 1, 0))
            known = vocabulary[place] == hashes if len(vocabulary) else np.zeros(len(hashes), bool)
            codes[:, j] = np.where(hashes == 0, MISSING, np.where(known, place + 2, UNKNOWN))
        return Cells(np.clip(scaled, -self._limit, self._limit).astype(np.float32), present.astype(np.float32), codes)

    def cells(self, table: Table, rows: NDArray[np.int64] | None = None) -> Cells:
        """Convert rows of a table to cells, reading `CHUNK` rows at a time.

        Args:
            table: a table with these columns.
            rows: which rows, in which order; None = all.
        """
        n = len(table) if rows is None else len(rows)
        shape = n, self.d_num
        values, present = np.empty(shape, np.float32), np.empty(shape, np.float32)
        codes = np.empty((n, len(self.vocabularies)), np.int64)
        for start in range(0, n, CHUNK):
            part = slice(start, start + CHUNK)
            chosen = part if rows is None else rows[part]
            chunk = self.transform(table.numeric[chosen], table.categorical[chosen])
            values[part], present[part], codes[part] = chunk
        return Cells(values, present, codes)

    def numeric_values(self, scaled: NDArray[np.floating]) -> NDArray[np.float64]:
        """Predicted, scaled values in their original units, clipped to the range of the training data, (n, d_num)."""
        values = np.clip(scaled, self.edges[:, 0], self.edges[:, -1]) * self.scale + self.center
        return np.where(self.whole, np.rint(values), values)


def _robust_scale(seen: NDArray[np.float64]) -> float:
    """Standard deviation estimated from the quartiles, or from wider quantiles if half of the values are equal."""
    for share, width in ((0.25, 1.349), (0.05, 3.29), (0.005, 5.152)):
        low, high = np.quantile(seen, [share, 1 - share])
        if high > low:
            return float((high - low) / width)
    deviation = float(np.std(seen))
    return deviation if deviation > 0 and np.isfinite(deviation) else 1.0


def _edges(scaled: NDArray[np.float64], n_bins: int) -> NDArray[np.float32]:
    body = np.quantile(scaled, np.linspace(0, 1, n_bins + 1))
    tails = np.quantile(scaled, [*TAILS, *(1 - t for t in TAILS)])
    even = np.linspace(tails[1], tails[-2], 5)[1:-1]
    edges = np.unique(np.concatenate([body[1:-1], tails, even]).astype(np.float32))
    return edges if len(edges) > 1 else np.array([edges[0] - 0.5, edges[0] + 0.5], np.float32)


def _vocabulary(hashes: NDArray[np.uint64], limit: int) -> NDArray[np.uint64]:
    found, counts = np.unique(hashes[hashes != 0], return_counts=True)
    return np.sort(found[np.argsort(-counts, kind="stable")[:limit]])


def _context(table: Table, max_rows: int) -> tuple[str, ...]:
    """Fields that hardly differ from those of the entity's previous event: a home town, an age. Reads the last rows."""
    if table.entity is None:
        return ()
    part = table.take(slice(max(0, len(table) - max_rows), None))
    assert part.entity is not None
    order = np.argsort(part.entity, kind="stable")
    again = part.entity[order][1:] == part.entity[order][:-1]
    found = []
    for i, column in enumerate(table.columns):
        if column.of != column.name or not again.any():
            continue
        seen = _column(part, i)[order]
        repeats = np.mean((seen[1:] == seen[:-1])[again])
        if repeats > CONSTANT or (i < table.d_num and repeats > OFTEN and _within(seen, again) < NARROW):
            found.append(column.name)
    return tuple(found)


def _within(seen: NDArray[np.float64], again: NDArray[np.bool_]) -> float:
    """Share of the variance of a number that is within entities, from consecutive events of an entity."""
    apart = np.diff(seen)[again]
    whole = float(np.nanvar(seen))
    return float(np.nanmean(apart**2)) / (2 * whole) if whole > 0 and np.isfinite(apart).any() else 0.0


def _column(table: Table, i: int) -> NDArray[Any]:
    if i >= table.d_num:
        return table.category(i - table.d_num)
    block = table.numeric
    return block.column(i) if isinstance(block, PickedRows) else block[:, i]
