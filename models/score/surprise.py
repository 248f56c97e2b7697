"""Combine the surprises of the fields of an event into one label-free score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

BODY = (0.90, 0.98)  # quantiles that define the null tail; up to 2 % of anomalies do not affect it
TIE = 0.01  # weight of the nats under the null, which order events without excess
N_KNOTS = 200
EVIDENCE = 0.9995
SLICES, SLICE_ROWS = 4, 2000


@dataclass(frozen=True)
class SurpriseScale:
    """For each field, how much more frequent large surprises are than expected from normal events.

    The null is the distribution of a field's surprises (nats) under normal events: a Weibull tail through the 90 %
    and 98 % quantiles. If the training rows have more large surprises than the null predicts, they are not noise.
    The excess (null nats - empirical nats) is the evidence of the score. Fields of pure noise, such as the weekday,
    have no excess, so they do not weaken the others. On the handbook stream the amount alone has an average precision
    of .323, this rule .321, and sums, maxima or ECDFs of all fields .09 to .28.

    The null is the most tolerant one of four time slices, because a drifting surprise (a calendar predicted from
    growing counts) is not evidence. With one null for all rows, the average precision was .184 and there were nine
    times as many alerts as the budget allows in the following week.

    Source: the empirical null of Efron (2004), applied to tails and in nats.

    Missing fields are ignored, both in fitting and in scoring.

    Args:
        point: surprise at the 98 % quantile, **shape (n_fields,)**.
        power: Weibull exponent, **shape (n_fields,)**.
        knots: ascending surprises, **shape (n_fields, n_knots)**.
        excess: excess at the knots, not decreasing, **shape (n_fields, n_knots)**.
        weight: excess of a field at its 99.95 % quantile relative to the field with the largest excess, at least .05,
            **shape (n_fields,)**. It keeps the small excess of noise from hiding the real evidence.
    """

    point: NDArray[np.float64]
    power: NDArray[np.float64]
    knots: NDArray[np.float64]
    excess: NDArray[np.float64]
    weight: NDArray[np.float64]

    @classmethod
    def fit(cls, nats: NDArray[np.float64]) -> Self:
        """Fit on the surprises of rows in time order, **shape (n, n_fields)**; NaN = missing field.

        >>> scale = SurpriseScale.fit(np.random.default_rng(0).exponential(size=(5000, 2)))
        >>> bool(scale.combine(np.array([[30.0, 0.1]]))[0] > scale.combine(np.array([[1.0, 1.0]]))[0])
        True
        """
        low_nats, high_nats = -np.log1p(-np.array(BODY))
        points, powers, ladders, excesses, evidence = [], [], [], [], []
        for column in nats.T:
            inorder = column[np.isfinite(column)]
            if inorder.size == 0:
                inorder = np.zeros(1)
            seen = np.sort(inorder)
            bodies = []
            for part in np.array_split(inorder, max(1, min(SLICES, inorder.size // SLICE_ROWS))):
                low, high = np.quantile(part, BODY)
                low, high = max(low, 1e-9), max(high, 1e-6)
                bodies.append((high, np.log(high_nats / low_nats) / np.log(max(high / low, 1.05))))
            high, power = max(h for h, _ in bodies), min(p for _, p in bodies)
            where = np.unique(np.geomspace(1, seen.size, N_KNOTS).astype(np.int64))  # rows from the top
            knots = seen[seen.size - where][::-1]
            empirical = -np.log(where[::-1] / (seen.size + 1))
            # no evidence at or below the point: the last value of a bounded field is an atom, not a tail
            excess = np.where(knots > high * 1.001, np.maximum(_null(knots, high, power) - empirical, 0.0), 0.0)
            evidence.append(float(np.interp(np.quantile(seen, EVIDENCE), knots, np.maximum.accumulate(excess))))
            pad = N_KNOTS - len(where)
            points.append(high)
            powers.append(power)
            ladders.append(np.pad(knots, (pad, 0), mode="edge"))
            excesses.append(np.pad(np.maximum.accumulate(excess), (pad, 0), mode="edge"))
        strongest = max(evidence)
        weight = np.maximum(np.array(evidence) / strongest, 0.05) if strongest > 0 else np.ones(len(evidence))
        return cls(np.array(points), np.array(powers), np.array(ladders), np.array(excesses), weight)

    def combine(self, nats: NDArray[np.float64]) -> NDArray[np.float64]:
        """One label-free value per row, **shape (n,)**, high = anomalous. Missing fields add nothing."""
        total = np.zeros(len(nats))
        for j, (knots, excess) in enumerate(zip(self.knots, self.excess, strict=True)):
            present = np.isfinite(nats[:, j])
            column = np.maximum(np.where(present, nats[:, j], 0.0), 0.0)
            null = _null(column, self.point[j], self.power[j])
            beyond = np.maximum(null - _null(knots[-1:], self.point[j], self.power[j]), 0.0)
            total += present * self.weight[j] * (TIE * null + np.interp(column, knots, excess) + beyond)
        return total


def _null(nats: NDArray[np.float64], point: float, power: float) -> NDArray[np.float64]:
    """Surprises under the null, comparable between fields."""
    low_nats, high_nats = -np.log1p(-np.array(BODY))
    knee = point * (low_nats / high_nats) ** (1.0 / power)
    # linear below the knee: a power below 1 is infinitely steep at 0 and would amplify rounding errors
    return np.asarray(np.where(nats < knee, low_nats * nats / knee, high_nats * (nats / point) ** power))
