"""The prior of a labelled model: what is known about an event without a trained head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.score.calibrate import LogitCalibration
from models.table import Column

NOTHING_KNOWN = 0.01  # smoothed fraud rate of an entity without labels
SURE = 2.0  # standard errors: frauds come in bursts with one cause, so that they say less than their number
FIRM = 1000.0  # the evidence is in nats already: a few frauds, perhaps of one cause, must not change its slope


@dataclass(frozen=True)
class Prior:
    """Log-odds of fraud from independent causes: the label-free evidence, and what labels say about the entities.

    The causes are combined by a noisy-or: an event is fraud if at least one cause makes it one.

    Args:
        evidence: from the value of `Evidence.combine` to a probability.
        rates: numeric columns with smoothed fraud rates.
        trust: share of each rate that came true among the labelled rows, less `SURE` standard errors, in [0, 1].
    """

    evidence: LogitCalibration
    rates: tuple[int, ...]
    trust: tuple[float, ...]

    @classmethod
    def fit(
        cls,
        columns: Sequence[Column],
        evidence: NDArray[np.float64],
        numeric: NDArray[np.float64],
        label: NDArray[np.int8],
        weight: NDArray[np.float64],
    ) -> Self:
        """Fit on labelled rows.

        Args:
            columns: input columns.
            evidence: label-free values, **shape (n,)**.
            numeric: raw numeric columns, **shape (n, d_num)**.
            label: 1 = fraud, **shape (n,)**.
            weight: how many rows each row stands for, **shape (n,)**.
        """
        rates = tuple(i for i, column in enumerate(columns) if column.stat == "smoothed_fraud_rate")
        trust = []
        for i in rates:
            raised = _raised(numeric[:, i])
            told = raised > 0.0
            seen = float(weight[told & (label == 1)].sum()) - NOTHING_KNOWN * float(weight[told].sum())
            sure = seen - SURE * float(np.sqrt((told & (label == 1)).sum()))
            trust.append(float(np.clip(sure / ((weight * raised).sum() + 1.0), 0.0, 1.0)))
        return cls(LogitCalibration.fit(evidence, label, weight, firm=FIRM), rates, tuple(trust))

    def log_odds(self, evidence: NDArray[np.float64], numeric: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-odds of fraud, **shape (n,)**."""
        legitimate = -np.logaddexp(0.0, np.clip(self.evidence.log_odds(evidence), -60.0, None))
        if self.rates:
            raised = np.stack([t * _raised(numeric[:, i]) for i, t in zip(self.rates, self.trust, strict=True)])
            legitimate = legitimate + np.log1p(-np.minimum(raised.max(axis=0), 0.95))
        return np.asarray(np.log(-np.expm1(legitimate)) - legitimate)

    def config(self) -> dict[str, Any]:
        """All settings, for JSON."""
        return asdict(self)

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Self:
        """Create it from the result of `config`."""
        return cls(LogitCalibration(**config["evidence"]), tuple(config["rates"]), tuple(config["trust"]))


def _raised(rate: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far a rate is above that of an entity without labels; 0 if it is missing."""
    return np.maximum(np.nan_to_num(rate, nan=NOTHING_KNOWN) - NOTHING_KNOWN, 0.0)
