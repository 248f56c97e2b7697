"""The model as a scikit-learn outlier detector."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from models.fit.finetune import FinetuneConfig, finetune
from models.fit.pretrain import PretrainConfig, pretrain
from models.score.budget import Budget
from models.table import Column, Table


class MaskedFeatureDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Detects anomalies by the prediction errors of masked features, and uses labels if they are given.

    `anomaly_score` and `predict_proba[:, 1]` are high for anomalies; `score_samples` and `decision_function` are
    low for them, as in scikit-learn.

    Args:
        contamination: expected share of anomalies, in (0, 0.5]. It is the alert budget of `predict`.
        max_steps: optimiser steps of pretraining and of each risk network.
        width: units of a hidden layer.
        random_state: seed, a RandomState, or None.

    >>> X = np.random.default_rng(0).normal(size=(60, 3)); X[0] = 9
    >>> detector = MaskedFeatureDetector(max_steps=20, width=16, random_state=0).fit(X)
    >>> detector.predict(X).shape
    (60,)
    """

    def __init__(
        self,
        *,
        contamination: float = 0.1,
        max_steps: int = 800,
        width: int = 128,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.contamination = contamination
        self.max_steps = max_steps
        self.width = width
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        """Missing values are allowed: they are masked cells."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Fit.

        Args:
            X: **shape (n, d)**, NaN = missing.
            y: 1 = anomaly, 0 = normal, -1 = unknown, **shape (n,)**. None, or any other values, means no labels.
        """
        if not 0 < self.contamination <= 0.5:
            raise ValueError(f"contamination is {self.contamination}; it must be greater than 0 and at most 0.5")
        array = validate_data(
            self,
            X,
            dtype=np.float64,
            ensure_all_finite="allow-nan",
            ensure_min_samples=2,
            ensure_min_features=1,
        )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        n = len(array)
        label, known = _labels(y, n)
        order = np.random.default_rng(seed).permutation(n)  # rows have no time, so the validation rows are random
        columns = tuple(Column(f"x{i}", "numeric", of=f"x{i}") for i in range(array.shape[1]))
        if n < 20:
            order = np.resize(order, 20)
        table = Table(columns, array[order], np.zeros((len(order), 0), np.uint64), np.arange(len(order)), {})
        pre_config = PretrainConfig(
            width=self.width,
            max_steps=self.max_steps,
            min_steps=min(self.max_steps, PretrainConfig.min_steps),
            batch=min(512, max(64, n)),
            epochs=50.0,
            lr=1e-3,
        )
        config = FinetuneConfig(
            budget=Budget(rate=min(self.contamination, 0.499)),
            validation=0.25,
        )
        pretrained = pretrain(table, config=pre_config, seed=seed)
        model = finetune(pretrained, table, label=label[order], known=known[order], config=config, seed=seed)
        # in double precision a score does not depend on the other rows of the batch, as scikit-learn requires
        model = replace(model, expectation=deepcopy(model.expectation).double())
        scores = model.score(array, np.zeros((n, 0), np.uint64))
        threshold = float(np.quantile(scores, 1 - self.contamination))
        self.model_ = replace(model, rules=replace(model.rules, threshold=threshold))
        self.offset_ = -threshold
        return self

    def anomaly_score(self, X: ArrayLike) -> NDArray[np.float64]:
        """Calibrated score in [0, 1], high = anomalous, **shape (n,)**."""
        check_is_fitted(self)
        array = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)
        return self.model_.score(array, np.zeros((len(array), 0), np.uint64)).astype(np.float64)

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """``-anomaly_score``: low = anomalous, **shape (n,)**."""
        return -self.anomaly_score(X)

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """``score_samples - offset_``: negative = anomalous, **shape (n,)**."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """-1 for anomalies, +1 for the rest, **shape (n,)**."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Columns normal and anomalous, **shape (n, 2)**: probabilities if labels were given, otherwise ranks."""
        score = self.anomaly_score(X)
        return np.stack([1 - score, score], axis=1)


def _labels(y: ArrayLike | None, n: int) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    if y is None:
        return np.zeros(n, np.int8), np.zeros(n, bool)
    given = np.asarray(y).ravel()
    if given.shape != (n,) or given.dtype.kind not in "biuf" or not np.isin(given, (-1, 0, 1)).all():
        return np.zeros(n, np.int8), np.zeros(n, bool)
    return (given == 1).astype(np.int8), given != -1
