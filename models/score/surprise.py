"""Surprises of the event's fields -> one label-free score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

BODY = (0.90, 0.98)  # the null tail goes through these points; up to 2 % anomalies leave it alone
TIE = 0.01  # weight of the null's own nats, which order what shows no excess
N_KNOTS = 200
EVIDENCE = 0.9995
SLICES, SLICE_ROWS = 4, 2000


@dataclass(frozen=True)
class SurpriseScale:
    """Per field: how much rarer a surprise would be under ordinary events than it really is.

    A field's surprises (nats) have a body, whose tail is continued as a Weibull through its 90 % and 98 %
    points: the null. Where the training rows hold more large surprises than the null allows, something else
    than ordinary noise makes them; the excess (null nats - empirical nats) is the score's evidence. Fields of
    pure noise, such as the weekday, show no excess and so cannot dilute the others: on the handbook stream the
    amount alone reaches AP .323, this rule .321, and sums, maxima or ECDFs of all fields .09-.28. The null is
    the most tolerant one of four slices of time: a surprise that merely drifts (a calendar guessed from growing
    counts) is no evidence; with one null for all time the scorer fell to .184 and alerted on nine times its
    budget in the next week.
    Source: the empirical null of Efron (2004), on tails and in nats.

    A missing field says nothing: it enters neither a field's scale nor a score.

    Args:
        point: surprise at 98 %, **shape (n_fields,)**.
        power: Weibull exponent, **shape (n_fields,)**.
        knots: rising surprises, **shape (n_fields, n_knots)**.
        excess: excess there, not falling, **shape (n_fields, n_knots)**.
        weight: a field's excess at its 99.95 % point beside the strongest field's, at least .05, **shape
            (n_fields,)**: what little excess noise shows must not blur the field that holds the evidence.
    """

    point: NDArray[np.float64]
    power: NDArray[np.float64]
    knots: NDArray[np.float64]
    excess: NDArray[np.float64]
    weight: NDArray[np.float64]

    @classmethod
    def fit(cls, nats: NDArray[np.float64]) -> Self:
        """Fit on the surprises of rows in time order, **shape (n, n_fields)**; NaN = the field was missing.

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
            # at or below the point the null says nothing: a bounded field's last value is an atom, not a tail
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
        """One label-free number a row, **shape (n,)**, high = anomalous; a missing field adds nothing."""
        total = np.zeros(len(nats))
        for j, (knots, excess) in enumerate(zip(self.knots, self.excess, strict=True)):
            present = np.isfinite(nats[:, j])
            column = np.maximum(np.where(present, nats[:, j], 0.0), 0.0)
            null = _null(column, self.point[j], self.power[j])
            beyond = np.maximum(null - _null(knots[-1:], self.point[j], self.power[j]), 0.0)
            total += present * self.weight[j] * (TIE * null + np.interp(column, knots, excess) + beyond)
        return total


def _null(nats: NDArray[np.float64], point: float, power: float) -> NDArray[np.float64]:
    """Surprises as the null sees them, comparable between fields."""
    low_nats, high_nats = -np.log1p(-np.array(BODY))
    knee = point * (low_nats / high_nats) ** (1.0 / power)
    # linear inside the body: a power below 1 is infinitely steep at 0, where only rounding differs
    return np.asarray(np.where(nats < knee, low_nats * nats / knee, high_nats * (nats / point) ** power))
