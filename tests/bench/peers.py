"""Detectors to compare with, small and from their papers, and how the benchmarks choose their settings.

Rows are float64 matrices of shape (n, d), NaN = missing; a score is high for anomalies. Every method has a default and
a random search space. `fit_tuned` tries the default and random settings on validation rows, equally often for every
method with labels. Trees use `N_THREADS` threads, `OMP_NUM_THREADS` if it is set.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors

from tests.bench.tables import BenchError

Matrix = NDArray[np.float64]
Scorer = Callable[[Matrix], NDArray[np.float64]]
Settings = dict[str, Any]
N_THREADS = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
PACKAGES = ("xgboost", "lightgbm", "catboost")


@dataclass(frozen=True)
class Rows:
    """Training rows with labels: `x` (n, d), `y` 1 = anomaly (n,), `weight` of each row (n,)."""

    x: Matrix
    y: NDArray[np.int8]
    weight: NDArray[np.float64]

    @property
    def has_both(self) -> bool:
        """Whether there is an anomaly and a normal row."""
        return 0 < int(self.y.sum()) < len(self.y)


@dataclass(frozen=True)
class Unsupervised:
    """A method without labels: `fit(rows, seed)`."""

    name: str
    fit: Callable[[Matrix, int], Scorer]


@dataclass(frozen=True)
class Supervised:
    """A method with labels: `fit(rows, settings, seed)`. `space`: {name: {choice, log, int or real: values}}."""

    name: str
    fit: Callable[[Rows, Settings, int], Scorer]
    default: Settings
    space: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Tuned:
    """A fitted method: what was chosen, its validation AP (None = nothing to choose by), and seconds."""

    score: Scorer
    settings: Settings
    variant: str
    validation_ap: float | None
    search_s: float
    fit_s: float


def draw(space: Mapping[str, Mapping[str, Any]], random: np.random.Generator) -> Settings:
    """Random settings from a space.

    >>> draw({"depth": {"choice": [3]}}, np.random.default_rng(0))
    {'depth': 3}
    """
    found: Settings = {}
    for name, ((kind, values),) in ((name, tuple(one.items())) for name, one in space.items()):
        if kind == "choice":
            found[name] = values[int(random.integers(len(values)))]
        elif kind == "int":
            found[name] = int(random.integers(values[0], values[1] + 1))
        elif kind == "real":
            found[name] = float(random.uniform(*values))
        else:
            found[name] = float(np.exp(random.uniform(math.log(values[0]), math.log(values[1]))))
    return found


def fit_tuned(
    method: Supervised,
    parts: Mapping[str, Rows],
    whole: Mapping[str, Rows],
    valid: Rows | None,
    *,
    trials: int,
    seed: int,
) -> Tuned:
    """Choose settings and variant by average precision on validation rows, then fit on all training rows.

    Args:
        parts: for each variant of the training rows, those before the validation rows.
        whole: the same variants with the validation rows.
        valid: validation rows. Without an anomaly among them, the default and the first variant are taken.
        trials: number of trials: the default with each variant, then random settings with random variants.
        seed: seed of the trials and of the method.

    A method without an anomaly or without a normal row to train on scores every row alike.
    """
    began = time.monotonic()
    random = np.random.default_rng((seed, *method.name.encode()))
    plans = [(variant, method.default) for variant in parts][:trials]
    plans += [
        (list(parts)[int(random.integers(len(parts)))], method.default | draw(method.space, random))
        for _ in range(trials - len(plans))
    ]
    best, best_ap = plans[0], -1.0
    if valid is not None and valid.has_both and trials > 1:
        for plan in plans:
            if parts[plan[0]].has_both:
                found = method.fit(parts[plan[0]], plan[1], seed)(valid.x)
                ap = float(average_precision_score(valid.y, found, sample_weight=valid.weight))
                if ap > best_ap:
                    best, best_ap = plan, ap
    searched = time.monotonic()
    rows = whole[best[0]]
    score: Scorer = method.fit(rows, best[1], seed) if rows.has_both else lambda x: np.zeros(len(x))
    return Tuned(
        score,
        best[1],
        best[0],
        best_ap if best_ap >= 0 else None,
        searched - began,
        time.monotonic() - searched,
    )


# --- without labels ---


def _z_scored(x: Matrix) -> Callable[[Matrix], Matrix]:
    """Standardise columns by the rows `x`; missing becomes 0, the mean."""
    seen = np.isfinite(x)
    n = np.maximum(seen.sum(0), 1)
    mean = np.where(seen, x, 0).sum(0) / n
    deviation = np.sqrt((np.where(seen, x - mean, 0) ** 2).sum(0) / n)
    deviation[deviation == 0] = 1

    def scaled(rows: Matrix) -> Matrix:
        return np.nan_to_num((rows - mean) / deviation, nan=0.0, posinf=0.0, neginf=0.0)

    return scaled


def _isolation_forest(x: Matrix, seed: int) -> Scorer:
    """Isolation forest (ICDM 2008), 200 trees of 256 rows."""
    scaled = _z_scored(x)
    forest = IsolationForest(n_estimators=200, random_state=seed, n_jobs=1).fit(scaled(x))
    return lambda rows: -forest.score_samples(scaled(rows))


def _ecod(x: Matrix, seed: int) -> Scorer:
    """ECOD (arXiv 2201.00382): sum over columns of -log of the smaller tail probability, as in the authors' code."""
    scaled = _z_scored(x)
    ranked = np.sort(scaled(x), axis=0)
    n = len(ranked)

    def score(rows: Matrix) -> NDArray[np.float64]:
        rows = scaled(rows)
        total = np.zeros(len(rows))
        for j in range(rows.shape[1]):
            below = np.searchsorted(ranked[:, j], rows[:, j], "right")
            above = n - np.searchsorted(ranked[:, j], rows[:, j], "left")
            total -= np.log((np.minimum(below, above) + 1) / (n + 1))
        return total

    return score


def _pca(x: Matrix, seed: int) -> Scorer:
    """Distances to the principal axes, each divided by its share of the variance (after Shyu and others, 2003).

    This is the form that PyOD and therefore ADBench measure; it is stronger here than the error of a reconstruction.
    """
    scaled = _z_scored(x)
    fitted = PCA(svd_solver="full").fit(scaled(x))
    kept = fitted.explained_variance_ratio_ > 1e-6
    axes, share = fitted.components_[kept], fitted.explained_variance_ratio_[kept]

    def score(rows: Matrix) -> NDArray[np.float64]:
        rows = scaled(rows)
        distance = (rows**2).sum(1, keepdims=True) - 2 * rows @ axes.T + 1
        return (np.sqrt(np.maximum(distance, 0)) / share).sum(1)

    return score


def _knn(x: Matrix, seed: int) -> Scorer:
    """Distance to the fifth neighbour among at most 10,000 z-scored rows (Ramaswamy and others, 2000)."""
    scaled = _z_scored(x)
    kept = np.random.default_rng(seed).permutation(len(x))[:10_000]
    near = NearestNeighbors(n_neighbors=min(5, len(kept)), n_jobs=1).fit(scaled(x[kept]))
    return lambda rows: near.kneighbors(scaled(rows))[0][:, -1]


def _bagged_neighbours(x: Matrix, seed: int) -> Scorer:
    """Mean distance to the nearest of 64 z-scored rows, over 30 random samples (aNNE's idea, arXiv 1807.06572)."""
    scaled, random = _z_scored(x), np.random.default_rng(seed)
    kept = scaled(x)
    samples = [kept[random.permutation(len(kept))[:64]] for _ in range(30)]

    def score(rows: Matrix) -> NDArray[np.float64]:
        rows, total = scaled(rows), np.zeros(len(rows))
        square = (rows**2).sum(1, keepdims=True)
        for sample in samples:
            distance = square - 2 * rows @ sample.T + (sample**2).sum(1)
            total += np.sqrt(np.maximum(distance.min(1), 0))
        return total / len(samples)

    return score


# --- with labels ---


def _lr_ple(rows: Rows, settings: Settings, seed: int) -> Scorer:
    """Balanced logistic regression on a piecewise-linear encoding (arXiv 2203.05556), with a flag for missing cells."""
    shares = np.linspace(0, 1, settings["edges"])
    edges = []
    for column in rows.x.T:
        seen = column[np.isfinite(column)]
        edges.append(np.unique(np.quantile(seen, shares)) if len(seen) else np.zeros(1))

    def encoded(x: Matrix) -> NDArray[np.float32]:
        parts = []
        for column, at in zip(x.T, edges, strict=True):
            seen = np.isfinite(column)
            parts.append((~seen[:, None]).astype(np.float32))
            if len(at) > 1:
                share = (np.where(seen, column, at[0])[:, None] - at[:-1]) / np.diff(at)
                parts.append(np.clip(share, 0, 1).astype(np.float32))
        return np.concatenate(parts, axis=1)

    model = LogisticRegression(C=settings["C"], class_weight="balanced", max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged after 200 steps is good enough
        model.fit(encoded(rows.x), rows.y)
    return lambda x: np.concatenate([np.zeros(0), *(model.decision_function(encoded(part)) for part in _parts(x))])


def _parts(x: Matrix) -> list[Matrix]:
    return [x[start : start + 20_000] for start in range(0, len(x), 20_000)]


def _weights(rows: Rows, balance: float) -> NDArray[np.float64]:
    """Row weights, anomalies times (normal / anomalous weight) to the power `balance`."""
    positive = rows.weight[rows.y == 1].sum()
    ratio = (rows.weight.sum() - positive) / positive
    return rows.weight * np.where(rows.y == 1, ratio**balance, 1.0)


def _xgboost(rows: Rows, settings: Settings, seed: int) -> Scorer:
    """XGBoost (KDD 2016) with exact splits: bins blur the thin tails where frauds are."""
    from xgboost import XGBClassifier

    given = {name: value for name, value in settings.items() if name != "balance"}
    model = XGBClassifier(**given, tree_method="exact", random_state=seed, n_jobs=N_THREADS, verbosity=0)
    model.fit(rows.x, rows.y, sample_weight=_weights(rows, settings["balance"]))
    return lambda x: model.predict(x, output_margin=True).astype(np.float64)


def _lightgbm(rows: Rows, settings: Settings, seed: int) -> Scorer:
    """LightGBM (NeurIPS 2017)."""
    import lightgbm

    given = {name: value for name, value in settings.items() if name not in ("balance", "n_estimators")}
    given |= {"objective": "binary", "verbosity": -1, "seed": seed, "num_threads": N_THREADS, "bagging_freq": 1}
    data = lightgbm.Dataset(rows.x, rows.y, weight=_weights(rows, settings["balance"]))
    model = lightgbm.train(given, data, num_boost_round=settings["n_estimators"])
    return lambda x: np.asarray(model.predict(x, raw_score=True), np.float64)


def _catboost(rows: Rows, settings: Settings, seed: int) -> Scorer:
    """CatBoost (NeurIPS 2018)."""
    from catboost import CatBoostClassifier

    given = {name: value for name, value in settings.items() if name != "balance"}
    quiet = {"verbose": False, "allow_writing_files": False, "thread_count": N_THREADS}
    model = CatBoostClassifier(**given, **quiet, random_seed=seed)
    model.fit(rows.x, rows.y, sample_weight=_weights(rows, settings["balance"]))
    return lambda x: np.asarray(model.predict(x, prediction_type="RawFormulaVal"), np.float64)


def _hidden(d: int, width: int) -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(d, width), torch.nn.ReLU())


def _as_tensor(scaled: Callable[[Matrix], Matrix], x: Matrix) -> torch.Tensor:
    return torch.from_numpy(np.clip(scaled(x), -20, 20).astype(np.float32))


def _prenet(rows: Rows, settings: Settings, seed: int) -> Scorer:
    """PReNet (arXiv 1910.13601): regress pairs of rows to 8 (two anomalies), 4 (one) or 0, by absolute error.

    The score is the mean prediction for pairs with known anomalies and with other rows.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(N_THREADS)
    random, scaled = np.random.default_rng(seed), _z_scored(rows.x)
    anomalies, others = _as_tensor(scaled, rows.x[rows.y == 1]), _as_tensor(scaled, rows.x[rows.y == 0])
    width, batch = settings["width"], 512
    hidden, relation = _hidden(rows.x.shape[1], width), torch.nn.Linear(2 * width, 1)
    parameters = [*hidden.parameters(), *relation.parameters()]
    optimizer = torch.optim.RMSprop(parameters, lr=settings["lr"], weight_decay=settings["weight_decay"])
    target = torch.cat([torch.full((batch // 4,), 8.0), torch.full((batch // 4,), 4.0), torch.zeros(batch // 2)])
    for _ in range(settings["steps"]):
        a = anomalies[random.integers(0, len(anomalies), 3 * batch // 4)]
        u = others[random.integers(0, len(others), 5 * batch // 4)]
        q = batch // 4
        first, second = torch.cat([a[:q], a[q : 2 * q], u[: 2 * q]]), torch.cat([a[2 * q :], u[2 * q :]])
        found = relation(torch.cat([hidden(first), hidden(second)], dim=1))[:, 0]
        loss = (found - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def score(x: Matrix) -> NDArray[np.float64]:
        # the relation is linear in both halves, so the mean over pairs is the prediction for the mean of the partners
        with torch.no_grad():
            partner = hidden(anomalies[random.integers(0, len(anomalies), 30)]).mean(0)
            other = hidden(others[random.integers(0, len(others), 30)]).mean(0)
            h = hidden(_as_tensor(scaled, x))
            pairs = torch.cat([partner.expand_as(h), h], dim=1), torch.cat([h, other.expand_as(h)], dim=1)
            return (relation(pairs[0]) + relation(pairs[1]))[:, 0].double().numpy() / 2

    return score


def _devnet(rows: Rows, settings: Settings, seed: int) -> Scorer:
    """DevNet (arXiv 1911.08623): normal rows score like a standard normal sample, anomalies 5 deviations above."""
    torch.manual_seed(seed)
    torch.set_num_threads(N_THREADS)
    random, scaled = np.random.default_rng(seed), _z_scored(rows.x)
    anomalies, others = _as_tensor(scaled, rows.x[rows.y == 1]), _as_tensor(scaled, rows.x[rows.y == 0])
    network = _hidden(rows.x.shape[1], settings["width"]).append(torch.nn.Linear(settings["width"], 1))
    optimizer = torch.optim.RMSprop(network.parameters(), lr=settings["lr"], weight_decay=settings["weight_decay"])
    half = 256
    for _ in range(settings["steps"]):
        a, u = random.integers(0, len(anomalies), half), random.integers(0, len(others), half)
        found = network(torch.cat([anomalies[a], others[u]]))[:, 0]
        reference = torch.from_numpy(random.standard_normal(5000).astype(np.float32))
        deviation = (found - reference.mean()) / reference.std()
        loss = (torch.relu(5 - deviation[:half]) + deviation[half:].abs()).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def score(x: Matrix) -> NDArray[np.float64]:
        with torch.no_grad():
            return network(_as_tensor(scaled, x))[:, 0].double().numpy()

    return score


UNSUPERVISED = (
    Unsupervised("isolation forest", _isolation_forest),
    Unsupervised("ECOD", _ecod),
    Unsupervised("PCA", _pca),
    Unsupervised("KNN-z", _knn),
    Unsupervised("bagNN64-z", _bagged_neighbours),
)
_BALANCE: dict[str, Any] = {"choice": [0.0, 0.5, 1.0]}
_NETWORK = {"lr": 1e-3, "weight_decay": 1e-2, "width": 20, "steps": 1000}
_NETWORK_SPACE: dict[str, Mapping[str, Any]] = {
    "lr": {"log": [3e-4, 1e-2]},
    "weight_decay": {"log": [1e-5, 1e-1]},
    "width": {"choice": [20, 64, 128]},
    "steps": {"choice": [300, 1000, 2000]},
}
SUPERVISED = (
    Supervised(
        "LR-ple", _lr_ple, {"C": 0.1, "edges": 16}, {"C": {"log": [0.003, 3.0]}, "edges": {"choice": [8, 16, 32]}}
    ),
    Supervised(
        "XGBoost exact",
        _xgboost,
        {"n_estimators": 150, "max_depth": 4, "learning_rate": 0.1, "balance": 0.0},
        {
            "n_estimators": {"choice": [50, 100, 150, 250]},
            "max_depth": {"int": [2, 6]},
            "learning_rate": {"log": [0.03, 0.3]},
            "min_child_weight": {"log": [0.1, 10.0]},
            "subsample": {"real": [0.6, 1.0]},
            "colsample_bytree": {"real": [0.5, 1.0]},
            "reg_lambda": {"log": [0.1, 10.0]},
            "balance": _BALANCE,
        },
    ),
    Supervised(
        "LightGBM",
        _lightgbm,
        {"n_estimators": 200, "learning_rate": 0.1, "num_leaves": 31, "min_data_in_leaf": 20, "balance": 0.0},
        {
            "n_estimators": {"choice": [50, 100, 200, 400]},
            "num_leaves": {"choice": [4, 8, 16, 31, 63]},
            "learning_rate": {"log": [0.02, 0.2]},
            "min_data_in_leaf": {"choice": [1, 5, 20, 50]},
            "bagging_fraction": {"real": [0.6, 1.0]},
            "feature_fraction": {"real": [0.5, 1.0]},
            "lambda_l2": {"log": [0.01, 10.0]},
            "balance": _BALANCE,
        },
    ),
    Supervised(
        "CatBoost",
        _catboost,
        {"iterations": 500, "depth": 6, "balance": 0.0},
        {
            "iterations": {"choice": [200, 500]},
            "depth": {"int": [3, 7]},
            "learning_rate": {"log": [0.02, 0.2]},
            "l2_leaf_reg": {"log": [0.5, 10.0]},
            "random_strength": {"log": [0.1, 3.0]},
            "balance": _BALANCE,
        },
    ),
    Supervised("PReNet", _prenet, _NETWORK, _NETWORK_SPACE),
    Supervised("DevNet", _devnet, _NETWORK, _NETWORK_SPACE),
)


def spaces() -> dict[str, Any]:
    """Default and search space of every method with labels, for the JSON."""
    return {method.name: {"default": method.default, "space": method.space} for method in SUPERVISED}


def check_packages() -> None:
    """Raises BenchError if packages of the extra `bench` are not installed."""
    from importlib.util import find_spec

    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise BenchError(f"{', '.join(missing)} not installed: pip install 'unmask[train,bench]'")
