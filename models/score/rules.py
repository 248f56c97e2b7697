"""Rules: the fitted parts besides the networks, which turn logits and surprises into scores without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.cells import CellCoding
from models.masking import MaskedField, event_fields
from models.score.budget import Budget
from models.score.calibrate import LogitCalibration, TailCalibration
from models.score.evidence import Evidence
from models.score.prior import Prior
from models.table import Column


@dataclass(frozen=True)
class Rules:
    """Turns the outputs of a network into a score.

    Args:
        coding: scales, edges and vocabularies of the columns.
        evidence: combines surprises and columns into one label-free value.
        tail: label-free calibration.
        prior: log-odds of fraud before the trees; None = no labels, the score is the calibrated evidence.
        logit: calibration of the log-odds of a labelled model.
        threshold: an event raises an alert if score > threshold.
        budget: alert budget from which the threshold was computed.
        category_names: texts of category hashes, as far as known.
    """

    coding: CellCoding
    evidence: Evidence
    tail: TailCalibration
    prior: Prior | None
    logit: LogitCalibration
    threshold: float
    budget: Budget
    category_names: Mapping[int, str] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Input columns of the model."""
        return self.coding.columns

    @property
    def fields(self) -> tuple[MaskedField, ...]:
        """Fields of the event that are predicted."""
        return event_fields(self.coding.columns, self.coding.context)

    def score(
        self, logit: NDArray[np.float32], nats: NDArray[np.float32], numeric: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """Scores in [0, 1], high = anomalous.

        Args:
            logit: what the trees add, **shape (n,)**; ignored without labels.
            nats: surprises, **shape (n, n_fields)**, NaN = missing.
            numeric: raw numeric columns, **shape (n, d_num)**, NaN = missing.
        """
        return self.calibrated(self.raw(self.evidence_of(nats, numeric), logit, numeric))

    def evidence_of(self, nats: NDArray[np.float32], numeric: NDArray[np.float64]) -> NDArray[np.float64]:
        """The label-free value of rows in nats, **shape (n,)**."""
        return self.evidence.combine(numeric, nats.astype(np.float64))

    def raw(
        self, evidence: NDArray[np.float64], logit: NDArray[np.float32], numeric: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Log-odds before calibration; without labels the evidence itself, **shape (n,)**."""
        return evidence if self.prior is None else self.prior.log_odds(evidence, numeric) + logit

    def calibrated(self, raw: NDArray[np.float64]) -> NDArray[np.float32]:
        """Scores from the result of `raw`, **shape (n,)**."""
        return (self.tail if self.prior is None else self.logit).apply(raw).astype(np.float32)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays, for safetensors."""
        parts = {
            "coding.center": self.coding.center,
            "coding.scale": self.coding.scale,
            "coding.edges": self.coding.edges,
            "coding.whole": self.coding.whole,
            "tail.knots": self.tail.knots,
            "tail.tail": self.tail.tail,
        }
        parts |= {f"evidence.{name}": array for name, array in self.evidence.arrays().items()}
        parts |= {f"coding.vocabulary.{j}": v for j, v in enumerate(self.coding.vocabularies)}
        return {name: np.ascontiguousarray(array) for name, array in parts.items()}

    def config(self) -> dict[str, Any]:
        """The other settings, for JSON."""
        known = {int(h) for vocabulary in self.coding.vocabularies for h in vocabulary}
        return {
            "columns": [asdict(column) for column in self.columns],
            "context": list(self.coding.context),
            "evidence": self.evidence.config(),
            "prior": None if self.prior is None else self.prior.config(),
            "logit": asdict(self.logit),
            "threshold": self.threshold,
            "budget": asdict(self.budget),
            "category_names": {str(h): text for h, text in self.category_names.items() if h in known},
        }

    @classmethod
    def of_parts(cls, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Create rules from the results of `config` and `arrays`."""
        columns = tuple(Column(**column) for column in config["columns"])
        n_cat = sum(column.kind == "categorical" for column in columns)
        vocabularies = tuple(arrays[f"coding.vocabulary.{j}"] for j in range(n_cat))
        cost = config["budget"]["cost"]
        return cls(
            coding=CellCoding(
                columns,
                arrays["coding.center"],
                arrays["coding.scale"],
                arrays["coding.edges"],
                vocabularies,
                arrays["coding.whole"],
                tuple(config["context"]),
            ),
            evidence=Evidence.of_parts(
                config["evidence"],
                {k.removeprefix("evidence."): v for k, v in arrays.items() if k.startswith("evidence.")},
            ),
            tail=TailCalibration(arrays["tail.knots"], arrays["tail.tail"]),
            prior=None if config["prior"] is None else Prior.of_config(config["prior"]),
            logit=LogitCalibration(**config["logit"]),
            threshold=float(config["threshold"]),
            budget=Budget(**{**config["budget"], "cost": None if cost is None else (cost[0], cost[1])}),
            category_names={int(h): text for h, text in config["category_names"].items()},
        )
