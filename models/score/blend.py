"""Blend the scores of several heads on one scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

N_KNOTS = 200


@dataclass(frozen=True)
class Blend:
    """A weighted mean of scores, each as nats: the negative logarithm of the share of training rows at or above it.

    Heads with other scales, such as trees, a linear layer and a label-free score, so count by how rare a value is, and
    none decides alone by its confidence. Beyond the training rows the nats go on with the slope of the upper tenth.

    Args:
        knots, nats: nats as a piecewise-linear function of each score, **shape (n_heads, n_knots)**.
        slope: nats per unit of the score beyond the last knot, **shape (n_heads,)**.
        weight: weights of the heads, **shape (n_heads,)**.
    """

    knots: NDArray[np.float64]
    nats: NDArray[np.float64]
    slope: NDArray[np.float64]
    weight: NDArray[np.float64]

    @classmethod
    def fit(cls, scores: NDArray[np.floating], weight: NDArray[np.floating]) -> Self:
        """Fit on the scores of all training rows, **shape (n, n_heads)**, and the heads' weights.

        >>> blend = Blend.fit(np.random.default_rng(0).normal(size=(1000, 2)) * [1, 50], np.array([0.5, 0.5]))
        >>> a, b = blend.score(np.array([[3.0, 0.0], [0.0, 150.0]]))
        >>> bool(abs(a - b) < 1)
        True
        """
        ladders = [tail_ladder(np.sort(column.astype(np.float64))) for column in scores.T]
        knots, nats = (np.stack(part) for part in zip(*ladders, strict=True))
        rise = nats[:, -1] - np.log(10)
        run = knots[:, -1] - [np.interp(np.log(10), n, k) for k, n in zip(knots, nats, strict=True)]
        slope = np.divide(rise, run, out=np.zeros_like(run), where=(run > 0) & (rise > 0))
        return cls(knots, nats, slope, weight / weight.sum())

    def score(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Blended nats, **shape (n,)**, high = anomalous."""
        total = np.zeros(len(scores))
        for j, (knots, nats) in enumerate(zip(self.knots, self.nats, strict=True)):
            beyond = np.maximum(scores[:, j] - knots[-1], 0.0) * self.slope[j]
            total += self.weight[j] * (np.interp(scores[:, j], knots, nats) + beyond)
        return total


def head_weights(n_frauds: int, *, known: float) -> dict[str, float]:
    """Weights of the linear head with its prior, the pair head, the trees and the label-free score; their sum is 1.

    While the background is unknown, some of it are frauds: trees learn those rows by heart, a penalised linear layer
    and a pair network hardly. Where the background is known, trees take over as frauds become many; where all of it
    is, they have only the label-free score beside them, which matters for one or two frauds and for equal scores.

    Args:
        n_frauds: known frauds.
        known: share of the other training rows that are known to be legitimate, in [0, 1].

    >>> {name: round(weight, 2) for name, weight in head_weights(4, known=0.0).items()}
    {'linear': 0.45, 'pairs': 0.23, 'trees': 0.23, 'label_free': 0.09}
    >>> {name: round(weight, 2) for name, weight in head_weights(400, known=1.0).items()}
    {'linear': 0.0, 'pairs': 0.0, 'trees': 1.0, 'label_free': 0.0}
    >>> {name: round(weight, 2) for name, weight in head_weights(1, known=1.0).items()}
    {'linear': 0.0, 'pairs': 0.0, 'trees': 0.52, 'label_free': 0.48}
    """
    heads = {"linear": 2.0 * (1.0 - known), "pairs": 1.0 - known, "trees": 1.0 + known * n_frauds / 10}
    heads["label_free"] = 0.5 * (1.0 - known) / (1.0 + n_frauds / 16) + known / n_frauds**3
    total = sum(heads.values())
    return {name: weight / total for name, weight in heads.items()}


def tail_ladder(ranked: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nats of the share of ascending values at or above a value: `N_KNOTS` ascending knots, and nats at them."""
    n = len(ranked)
    rank = np.unique(np.geomspace(1, n, N_KNOTS).astype(np.int64))[::-1]  # from the top, largest first
    knots, first = np.unique(ranked[n - rank], return_index=True)
    nats, pad = -np.log((rank[first] - 0.5) / n), N_KNOTS - len(knots)
    return np.pad(knots, (pad, 0), mode="edge"), np.pad(nats, (pad, 0), mode="edge")
