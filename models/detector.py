"""A scikit-learn outlier detector for plain tables: rows without entities and without time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from models.cells import CellCoding, Cells
from models.fit.linear import head_logits, linear_head, pair_head
from models.fit.trees import boost
from models.net.encoder import Encoder
from models.score.blend import Blend, head_weights
from models.score.calibrate import TailCalibration
from models.score.outlying import Outlyingness
from models.score.trees import Trees
from models.ship.detector_graph import detector_graph
from models.table import Column, Table

N_FORESTS = 4  # every second one also reads the terms of the label-free score
USUAL = 2.3  # nats of the 10 % tail, where the log-odds of the prior are 0


class TableDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Detects anomalous rows by their neighbours and tails, and uses labels if they are given.

    With labels, a linear layer that starts from the label-free score, a pair network and boosted trees are added; how
    much each counts depends on the number of labelled anomalies. If every row has a label, there are trees only, beside
    the label-free score.

    `anomaly_score` and `predict_proba[:, 1]` are high for anomalies; `score_samples` and `decision_function` are
    low for them, as in scikit-learn.

    Args:
        contamination: expected share of anomalies, in (0, 0.5]. It is the alert budget of `predict`.
        contaminated: False = the training rows are known to contain no anomalies (one-class training).
        n_trees: boosted trees of each forest; they need labels.
        random_state: seed, a RandomState, or None.

    >>> X = np.random.default_rng(0).normal(size=(60, 3)); X[0] = 9
    >>> detector = TableDetector(random_state=0).fit(X)
    >>> int(np.argmax(detector.anomaly_score(X))), detector.predict(X).shape
    (0, (60,))
    """

    def __init__(
        self,
        *,
        contamination: float = 0.1,
        contaminated: bool = True,
        n_trees: int = 150,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.contamination = contamination
        self.contaminated = contaminated
        self.n_trees = n_trees
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
        n, d = array.shape
        columns = tuple(Column(f"x{i}", "numeric", of=f"x{i}") for i in range(d))
        coding = CellCoding.fit(Table(columns, array, np.zeros((n, 0), np.uint64), np.arange(n), {}))
        self.coding_ = coding
        cells = self._cells(array)
        self.free_ = Outlyingness.fit(coding, cells, contaminated=self.contaminated, seed=seed)
        nats = self.free_.score(cells)
        self.free_tail_ = TailCalibration.fit(nats)
        fraud, legitimate = _labels(y, n)
        self.heads_ = None
        if fraud.any() and not fraud.all():
            self.heads_ = self._fit_heads(cells, fraud, legitimate, seed)
            self.tail_ = TailCalibration.fit(self._nats(cells))
        else:
            self.tail_ = self.free_tail_
        self.offset_ = -float(np.quantile(self.tail_.apply(self._nats(cells)), 1 - self.contamination))
        return self

    def to_onnx(self) -> bytes:
        """The fitted `anomaly_score` as a serialised ONNX model: ``X, float64 (n, d) -> score, float32 (n,)``."""
        check_is_fitted(self)
        heads = self.heads_
        if heads is None:
            return detector_graph(self.coding_, self.free_, self.tail_)
        return detector_graph(
            self.coding_,
            self.free_,
            self.tail_,
            usual=USUAL,
            free_tail=self.free_tail_,
            encoders=heads.networks,
            forests=heads.forests,
            blend=heads.blend,
        )

    def _fit_heads(self, cells: Cells, fraud: NDArray[np.bool_], legitimate: NDArray[np.bool_], seed: int) -> _Heads:
        prior = self._prior(cells)
        known = float(legitimate.sum() / (~fraud).sum())
        weights = head_weights(int(fraud.sum()), known=known)
        networks: tuple[Encoder, ...] = ()
        if known < 1:
            linear = linear_head(self.coding_, cells, fraud, prior, known=legitimate, seed=seed)
            networks = linear.double(), pair_head(self.coding_, cells, fraud, seed=seed).double()
        inputs = [cells, _beside(cells, self.free_.terms(cells))]
        weight = np.where(fraud, np.sqrt((~fraud).sum() / fraud.sum()), 1.0)
        forests = tuple(
            boost(
                inputs[i % 2],
                fraud.astype(np.int8),
                np.full(len(fraud), np.log(np.average(fraud, weights=weight) / np.average(~fraud, weights=weight))),
                weight=weight,
                n_trees=self.n_trees,
                depth=6,
                rate=0.1,
                min_gain=0.0,
                ridge=1.0,
                seed=seed + i,
                row_share=0.6,
                column_share=0.6,
                min_weight=0.3,
            )
            for i in range(N_FORESTS)
        )
        heads = _Heads(networks, forests, None)
        kept = [weight for name, weight in weights.items() if networks or name in ("trees", "label_free")]
        return _Heads(networks, forests, Blend.fit(self._head_scores(heads, cells), np.array(kept)))

    def _head_scores(self, heads: _Heads, cells: Cells) -> NDArray[np.float64]:
        """Scores of the heads in the order of `head_weights`, **shape (n, n_heads)**."""
        inputs = [cells, _beside(cells, self.free_.terms(cells))]
        found = [head_logits(network, cells) for network in heads.networks]
        if found:
            found[0] += self._prior(cells)
        found.append(np.mean([trees.score(inputs[i % 2]) for i, trees in enumerate(heads.forests)], axis=0))
        return np.stack([*found, self.free_.score(cells)], axis=1)

    def _prior(self, cells: Cells) -> NDArray[np.float64]:
        """Log-odds of the label-free score, up to a constant, **shape (n,)**."""
        rank = self.free_tail_.apply(self.free_.score(cells))
        return np.asarray(-np.log(1 - np.minimum(rank, 1 - 1e-6)) - USUAL)

    def _nats(self, cells: Cells) -> NDArray[np.float64]:
        if self.heads_ is None:
            return self.free_.score(cells)
        assert self.heads_.blend is not None
        return self.heads_.blend.score(self._head_scores(self.heads_, cells))

    def _cells(self, array: NDArray[np.float64]) -> Cells:
        return self.coding_.transform(array, np.zeros((len(array), 0), np.uint64))

    def anomaly_score(self, X: ArrayLike) -> NDArray[np.float64]:
        """Rank among the training rows, in [0, 1], high = anomalous, **shape (n,)**."""
        check_is_fitted(self)
        array = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)
        return self.tail_.apply(self._nats(self._cells(array)))

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
        """Columns normal and anomalous, **shape (n, 2)**. They are ranks, not probabilities."""
        score = self.anomaly_score(X)
        return np.stack([1 - score, score], axis=1)


@dataclass(frozen=True)
class _Heads:
    """What labels add to the label-free score."""

    networks: tuple[Encoder, ...]  # the linear and the pair head; none if every row has a label
    forests: tuple[Trees, ...]
    blend: Blend | None


def _beside(cells: Cells, terms: NDArray[np.float64]) -> Cells:
    """Cells with the terms of the label-free score as further columns."""
    values = np.concatenate([cells.values, terms.astype(np.float32)], axis=1)
    present = np.concatenate([cells.present, np.ones(terms.shape, np.float32)], axis=1)
    return Cells(values, present, cells.codes)


def _labels(y: ArrayLike | None, n: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Known anomalies and known normal rows."""
    none = np.zeros(n, bool)
    if y is None:
        return none, none
    given = np.asarray(y).ravel()
    if given.shape != (n,) or given.dtype.kind not in "biuf" or not np.isin(given, (-1, 0, 1)).all():
        return none, none
    return given == 1, given == 0
