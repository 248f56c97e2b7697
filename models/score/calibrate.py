"""Calibration of scores to [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

HIGH = 8.0  # log-odds above which a probability in float32 would soon be 1


@dataclass(frozen=True)
class TailCalibration:
    """Maps a label-free value to the share of normal events below it.

    Args:
        knots: ascending values, **shape (k,)**.
        tail: share of events at or above each knot, descending from 1, **shape (k,)**. Beyond the last knot it
            decreases as 1/x, so that extreme values keep their order.
    """

    knots: NDArray[np.float64]
    tail: NDArray[np.float64]

    @classmethod
    def fit(cls, raw: NDArray[np.float64]) -> Self:
        """Fit on unlabelled rows, **shape (n,)**.

        >>> TailCalibration.fit(np.arange(1000.0)).apply(np.array([500.0])).round(2)
        array([0.5])
        """
        smallest = max(1e-4, min(0.5, 5 / len(raw)))
        shares = np.concatenate([np.linspace(1, 0.1, 19)[:-1], np.geomspace(0.1, min(smallest, 0.09), 25)])
        knots, first = np.unique(np.quantile(raw, 1 - shares), return_index=True)
        return cls(knots.astype(np.float64), shares[first].astype(np.float64))

    def apply(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrated score in [0, 1), **shape (n,)**."""
        last = max(abs(self.knots[-1]), 1e-9)
        tail = np.exp(np.interp(raw, self.knots, np.log(self.tail)))
        return 1.0 - tail * last / (last + np.maximum(raw - self.knots[-1], 0.0))


@dataclass(frozen=True)
class LogitCalibration:
    """Maps a logit to a probability: ``sigmoid(slope * logit + shift)`` (Platt, 1999, with smoothed targets).

    Above log-odds of `HIGH`, one minus the probability decreases as 1/x, so that extreme scores keep their order.
    """

    slope: float
    shift: float

    @classmethod
    def fit(
        cls,
        logit: NDArray[np.float64],
        label: NDArray[np.int8],
        weight: NDArray[np.float64] | None = None,
        *,
        firm: float = 1.0,
    ) -> Self:
        """Fit by Newton steps on logits and labels, both **shape (n,)**.

        ``weight`` is how many rows each row stands for, **shape (n,)**; None = one. ``firm`` is how firmly the slope
        is believed to be 1 (precision of its normal prior).

        >>> fitted = LogitCalibration.fit(np.array([-2.0, -1.0, 1.0, 2.0] * 50), np.int8([0, 0, 1, 1] * 50))
        >>> bool(fitted.apply(np.array([2.0]))[0] > 0.9)
        True
        """
        fraud = label == 1
        weight = np.ones(len(logit)) if weight is None else weight
        n_one, n_zero = float(weight[fraud].sum()), float(weight[~fraud].sum())
        target = np.where(fraud, (n_one + 1) / (n_one + 2), 1 / (n_zero + 2))
        x = np.stack([logit, np.ones_like(logit)], axis=1)
        prior = np.array([1.0, 0.0])
        weights = np.array([1.0, np.log((n_one + 1) / (n_zero + 1)) - np.log(max(_odds(logit, weight), 1e-12))])
        ridge = np.diag([firm, 1e-3])
        for _ in range(50):
            p = _sigmoid(x @ weights)
            gradient = x.T @ (weight * (p - target)) + ridge @ (weights - prior)
            hessian = (x * (weight * p * (1 - p))[:, None]).T @ x + ridge
            step = np.linalg.solve(hessian, gradient)
            weights = weights - np.clip(step, -2, 2)
            if np.abs(step).max() < 1e-8:
                break
        return cls(float(max(weights[0], 0.05)), float(weights[1]))

    def log_odds(self, logit: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-odds, without a limit, **shape (n,)**."""
        return self.slope * logit + self.shift

    def apply(self, logit: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability, **shape (n,)**.

        >>> high = LogitCalibration(1.0, 0.0).apply(np.array([30.0, 31.0])).astype(np.float32)
        >>> bool(high[0] < high[1] < 1)
        True
        """
        x = self.log_odds(logit)
        return np.where(x > HIGH, 1.0 - _sigmoid(np.array(-HIGH)) * HIGH / np.maximum(x, HIGH), _sigmoid(x))


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -60, 60))))


def _odds(logit: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    mean = float(np.average(_sigmoid(logit), weights=weight))
    return mean / max(1 - mean, 1e-12)
