"""How far a row lies from the training rows: neighbours in small samples, and the tails of the columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.cells import MISSING, CellCoding, Cells
from models.score.blend import tail_ladder

N_SAMPLES, SAMPLE = 48, 32  # contaminated rows: samples, and rows of each
N_CLEAN, K_CLEAN = 8192, 5  # clean rows: reference rows, and neighbours
N_KNOTS = 64
TINY = 1e-9
CANCELLED = 1e-12  # of the squared length of a row: a smaller squared distance is a rounding error
N_FIT = 4096  # rows that fit the distributions of the four terms
CHUNK_ROWS = 512
TERMS = ("linear neighbours", "logarithmic neighbours", "all tails", "largest tail")
WEIGHTS = {True: (0.25, 0.25, 0.5, 0.0), False: (0.25, 0.25, 0.25, 0.25)}


@dataclass(frozen=True)
class Outlyingness:
    """A label-free score for rows without an entity and without time.

    The score is a mean of four terms. Each is the negative logarithm of the share of training rows at least as
    extreme (nats), so that the terms have one scale and rare extremes count most.

    1. Distance to the nearest rows, with z-scored columns.
    2. The same with ``asinh`` of the robustly scaled columns, so that one heavy-tailed column does not decide alone.
    3. The sum over the columns of the smaller tail's nats (ECOD, arXiv 2201.00382).
    4. The largest of them. Its weight is 0 if the training rows are contaminated, because then it ranks noise.

    With contaminated training rows the distance is the mean, over many small samples, of that to the nearest row
    (arXiv 1807.06572): in a small sample clustered anomalies find no neighbour. With clean training rows it is the
    mean distance to the nearest five of many rows.

    A category is a number, the nats of its share. A missing cell, and a column computed from labels, deviates by 0.

    Args:
        use: 1 = the column is read, float64, **shape (d,)**; d counts the numeric columns, then the categorical ones.
        code_nats: numbers of the codes of each categorical column, padded, **shape (d_cat, n_codes)**.
        center: mean and median of the columns, **shape (2, d)**.
        deviation: standard deviation of the columns, **shape (d,)**.
        knots, tails: nats of the smaller tail as a piecewise-linear function of each column, **shape (d, n_knots)**.
        near: reference rows in both scales, **shape (2, n_samples, n_rows, d)**.
        n_near: how many of the nearest rows of a sample count, int64, **shape ()**.
        term_knots, term_nats: nats of a term as a piecewise-linear function of its value, **shape (4, n_ladder)**.
        weight: weights of the terms, **shape (4,)**.
    """

    use: NDArray[np.float64]
    code_nats: NDArray[np.float64]
    center: NDArray[np.float64]
    deviation: NDArray[np.float64]
    knots: NDArray[np.float64]
    tails: NDArray[np.float64]
    near: NDArray[np.float64]
    n_near: NDArray[np.int64]
    term_knots: NDArray[np.float64]
    term_nats: NDArray[np.float64]
    weight: NDArray[np.float64]

    @classmethod
    def fit(cls, coding: CellCoding, cells: Cells, *, contaminated: bool = True, seed: int = 0) -> Self:
        """Fit on training rows.

        Args:
            coding: the coding of the cells. Columns computed from labels are not read.
            cells: training rows, at least one.
            contaminated: False = the rows are known to contain no anomalies.
            seed: seed of the samples.

        >>> from models.table import Column, Table
        >>> x = np.random.default_rng(0).normal(size=(500, 2))
        >>> table = Table((Column("a", "numeric"), Column("b", "numeric")), x, np.zeros((500, 0), np.uint64),
        ...     np.arange(500), {})
        >>> coding = CellCoding.fit(table)
        >>> fitted = Outlyingness.fit(coding, coding.cells(table))
        >>> bool(np.argmax(fitted.score(coding.cells(table))) in np.argsort(-np.abs(x).sum(1))[:5])
        True
        """
        random = np.random.default_rng(seed)
        use = np.array([0.0 if column.label_fed else 1.0 for column in coding.columns])
        code_nats = np.zeros((len(coding.n_codes), max(coding.n_codes, default=1)))
        for j, (codes, n_codes) in enumerate(zip(cells.codes.T, coding.n_codes, strict=True)):
            counts = np.bincount(codes[codes != MISSING], minlength=n_codes) + 1.0
            code_nats[j, :n_codes] = -np.log(counts / counts.sum())
        x, shown = _numbers(cells, code_nats)
        n, d = x.shape
        center, deviation = np.zeros((2, d)), np.ones(d)
        knots, tails = np.zeros((d, N_KNOTS)), np.zeros((d, N_KNOTS))
        for j in range(d):
            seen = np.sort(x[shown[:, j], j])
            if use[j] and len(seen) and seen[0] < seen[-1]:
                center[:, j], deviation[j] = (seen.mean(), seen[len(seen) // 2]), seen.std()
                knots[j], tails[j] = _tail_nats(seen)
        if contaminated:
            rows = np.stack([random.permutation(n)[:SAMPLE] for _ in range(N_SAMPLES)])
        else:
            rows = random.permutation(n)[None, :N_CLEAN]
        n_near = 1 if contaminated else min(K_CLEAN, rows.shape[1])
        scales = np.stack([_linear(x, shown * use, center, deviation), _logarithmic(x, shown * use, center)])
        some = random.permutation(n)[:N_FIT]
        fitted = cls(
            *(use, code_nats, center, deviation, knots, tails, scales[:, rows], np.array(n_near)),
            *(np.zeros((len(TERMS), 1)), np.zeros((len(TERMS), 1)), np.array(WEIGHTS[contaminated])),
        )
        # a row is no neighbour of its own; in small samples this is rare enough to be ignored
        own = np.zeros(len(some), bool) if contaminated else np.isin(some, rows)
        values = np.concatenate(
            [fitted._values(cells.take(some[mine]), skip=skip) for mine, skip in ((own, 1), (~own, 0))]
        )
        ladders = [tail_ladder(np.sort(term)) for term in values.T]
        term_knots, term_nats = (np.stack(part) for part in zip(*ladders, strict=True))
        return replace(fitted, term_knots=term_knots, term_nats=term_nats)

    def score(self, cells: Cells) -> NDArray[np.float64]:
        """Nats, **shape (n,)**, high = anomalous. `TailCalibration` turns them into ranks."""
        return self.terms(cells) @ self.weight

    def terms(self, cells: Cells) -> NDArray[np.float64]:
        """Nats of each of the `TERMS`, **shape (n, 4)**."""
        found = self._values(cells)
        for value, knots, nats in zip(found.T, self.term_knots, self.term_nats, strict=True):
            # beyond the training rows the tail falls like 1/x, so that extreme rows keep their order
            value[:] = np.interp(value, knots, nats) + np.log(np.maximum(value / max(knots[-1], TINY), 1.0))
        return found

    def column_nats(self, cells: Cells) -> NDArray[np.float64]:
        """Nats of the smaller tail of each column, **shape (n, d)**, 0 = missing or not read."""
        x, shown = _numbers(cells, self.code_nats)
        found = np.zeros(x.shape)
        for j in np.flatnonzero(self.use):
            found[:, j] = np.interp(x[:, j], self.knots[j], self.tails[j]) * shown[:, j]
        return found

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays, for safetensors."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Create it from the result of `arrays`."""
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})

    def _values(self, cells: Cells, *, skip: int = 0) -> NDArray[np.float64]:
        """Values of the terms, **shape (n, 4)**, without the ``skip`` nearest rows."""
        found = np.zeros((len(cells.values), len(TERMS)))
        for start in range(0, len(found), CHUNK_ROWS):
            at = slice(start, start + CHUNK_ROWS)
            part = cells.take(at)
            x, shown = _numbers(part, self.code_nats)
            read = shown * self.use
            scales = _linear(x, read, self.center, self.deviation), _logarithmic(x, read, self.center)
            for j, (rows, near) in enumerate(zip(scales, self.near, strict=True)):
                found[at, j] = _distance(rows, near, int(self.n_near), skip)
            nats = self.column_nats(part)
            found[at, 2], found[at, 3] = nats.sum(axis=1), nats.max(axis=1)
        return found


def _numbers(cells: Cells, code_nats: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """All columns as numbers, and which cells are shown, **shape (n, d)**."""
    coded = [code_nats[j, codes] for j, codes in enumerate(cells.codes.T)]
    x = np.concatenate([cells.values.astype(np.float64), *(column[:, None] for column in coded)], axis=1)
    return x, np.concatenate([cells.present > 0, cells.codes != MISSING], axis=1)


def _linear(
    x: NDArray[np.float64], read: NDArray[np.float64], center: NDArray[np.float64], deviation: NDArray[np.float64]
) -> NDArray[np.float64]:
    return (x - center[0]) / deviation * read


def _logarithmic(x: NDArray[np.float64], read: NDArray[np.float64], center: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.arcsinh(x - center[1]) * read


def _distance(rows: NDArray[np.float64], near: NDArray[np.float64], n_near: int, skip: int) -> NDArray[np.float64]:
    """Mean distance to the nearest rows of each sample, averaged over the samples, **shape (n,)**."""
    n_samples, n_rows, d = near.shape
    square = (near**2).sum(axis=2).ravel() - 2 * rows @ near.reshape(-1, d).T
    square = square.reshape(len(rows), n_samples, n_rows) + (rows**2).sum(axis=1)[:, None, None]
    last = min(n_near + skip, n_rows)
    nearest = np.sort(np.partition(square, last - 1, axis=2)[..., :last], axis=2)[..., min(skip, last - 1) :]
    nearest[nearest < CANCELLED * (1 + (rows**2).sum(axis=1))[:, None, None]] = 0.0
    return np.sqrt(nearest).mean(axis=(1, 2))


def _tail_nats(seen: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nats of the smaller tail at `N_KNOTS` values, from ascending values that are not all equal."""
    n = len(seen)
    found = np.unique(seen)
    if len(found) > N_KNOTS - 2:
        ends = np.geomspace(1 / n, 0.02, 12)
        found = np.unique(np.quantile(seen, [0, *ends, *np.linspace(0.02, 0.98, N_KNOTS - 28), *(1 - ends), 1]))
    below = np.searchsorted(seen, found, "right")
    above = n - np.searchsorted(seen, found, "left")
    nats = -np.log((np.minimum(below, above) + 1) / (n + 1))
    step = (found[-1] - found[0]) * 1e-3  # outside all training values
    knots = np.concatenate([[found[0] - step], found, [found[-1] + step]])
    nats = np.concatenate([[np.log(n + 1)], nats, [np.log(n + 1)]])
    pad = N_KNOTS - len(knots)
    return np.pad(knots, (0, pad), mode="edge"), np.pad(nats, (0, pad), mode="edge")
