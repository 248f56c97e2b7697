"""Baselines: isolation forest (without labels) and logistic regression, on the same features and split."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import QuantileTransformer, StandardScaler

from models.fit.split import last_share
from models.table import Table, TableError

FOREST_ROWS = (256, 1024, 4096)  # candidates for the rows per tree
PENALTIES = (0.01, 0.1, 1.0)  # candidates for the inverse strength
N_FIT = 200_000


def compare(
    table: Table,
    *,
    label: NDArray[np.int8],
    known: NDArray[np.bool_],
    test: Table,
    seed: int,
    validation: float = 0.1,
) -> dict[str, NDArray[np.float64]]:
    """Fit each baseline and score the test rows, high = anomalous. Without labels, only the forest.

    Args:
        table: rows to fit on.
        label, known: **shape (n,)**, as for `models.fit.finetune.finetune`, with the same validation rows.
        test: rows to score, with the same columns.
        seed: seed of the forest and of subsamples.
        validation: share of known rows, the last in time, used to choose the settings of each baseline.
    """
    train, valid = last_share(np.flatnonzero(known), validation)
    found = {"isolation_forest": isolation_forest(table, label=label, valid=valid, test=test, seed=seed)}
    if 0 < (label[train] == 1).sum() < len(train) and (label[valid] == 1).any():
        found["logistic_regression"] = logistic_regression(
            table, label=label, train=train, valid=valid, test=test, seed=seed
        )
    return found


def isolation_forest(
    table: Table,
    *,
    label: NDArray[np.int8],
    valid: NDArray[np.int64],
    test: Table,
    seed: int,
    n_trees: int = 100,
) -> NDArray[np.float64]:
    """Isolation forest (Liu et al., 2008) on the columns that are not built from labels.

    Args:
        table: unlabelled rows to fit on.
        label: **shape (n,)**, read only at ``valid``.
        valid: rows whose average precision chooses the rows per tree. If none of them is fraud, 256, the default of
            scikit-learn.
        test: rows to score.
        seed: seed of the forest.
        n_trees: number of trees; 100 is the default of scikit-learn.
    """
    fed = [i for i, column in enumerate(table.columns) if column.label_fed]  # numeric: the same index in the matrix
    x, judge, ask = (np.delete(_matrix(part, table), fed, axis=1) for part in (_thin(table), table.take(valid), test))
    truth = label[valid] == 1
    sizes = FOREST_ROWS if truth.any() and not truth.all() else FOREST_ROWS[:1]
    best: tuple[float, IsolationForest] | None = None
    for size in sizes:
        forest = IsolationForest(n_estimators=n_trees, max_samples=min(size, len(x)), random_state=seed).fit(x)
        ap = float(average_precision_score(truth, -forest.score_samples(judge))) if len(sizes) > 1 else 0.0
        if best is None or ap > best[0]:
            best = ap, forest
    assert best is not None
    return -np.asarray(best[1].score_samples(ask))


def logistic_regression(
    table: Table,
    *,
    label: NDArray[np.int8],
    train: NDArray[np.int64],
    valid: NDArray[np.int64],
    test: Table,
    seed: int,
) -> NDArray[np.float64]:
    """Logistic regression on all columns. The scaling and the penalty are chosen on ``valid``.

    Args:
        table: rows that ``train`` and ``valid`` index.
        label: 1 = fraud, **shape (n,)**.
        train, valid: rows to fit on and to choose settings on. Every fraud is kept; normal rows are subsampled if
            there are very many.
        test: rows to score.
        seed: seed of the subsample.

    Raises:
        TableError: the training rows have only one class.
    """
    truth = label[train] == 1
    if truth.all() or not truth.any():
        raise TableError(
            f"{truth.sum()} of {len(truth)} training rows are fraud; logistic regression needs both labels"
        )
    if len(train) > N_FIT:
        keep = np.random.default_rng(seed).random(len(train)) < N_FIT / len(train)
        train, truth = train[truth | keep], truth[truth | keep]
    x, judge, ask = (_matrix(part, table) for part in (table.take(train), table.take(valid), test))
    x, judge, ask = (np.concatenate([np.nan_to_num(a), np.isnan(a)], axis=1) for a in (x, judge, ask))
    best: tuple[float, NDArray[np.float64]] | None = None
    for scale in (
        StandardScaler(),
        QuantileTransformer(
            n_quantiles=min(1_000, len(x)), output_distribution="normal", subsample=50_000, random_state=seed
        ),
    ):
        fitted = scale.fit(x)
        inputs = [np.clip(fitted.transform(a), -20, 20) for a in (x, judge, ask)]
        for penalty in PENALTIES:
            model = LogisticRegression(C=penalty, max_iter=300).fit(inputs[0], truth)
            ap = float(average_precision_score(label[valid] == 1, model.decision_function(inputs[1])))
            if best is None or ap > best[0]:
                best = ap, np.asarray(model.decision_function(inputs[2]))
    assert best is not None
    return best[1]


def _matrix(part: Table, fitted: Table) -> NDArray[np.float64]:
    """Numeric columns unchanged (NaN = missing) and one column for each frequent category.

    Raises:
        TableError: the columns differ from those of `fitted`.
    """
    part.require(fitted.columns)
    blocks = [np.asarray(part.numeric)]
    for j in range(fitted.categorical.shape[1]):
        found, counts = np.unique(fitted.category(j), return_counts=True)
        frequent = found[np.argsort(-counts, kind="stable")[:32]]
        blocks.append((part.category(j)[:, None] == frequent).astype(np.float64))
    return np.concatenate(blocks, axis=1)


def _thin(table: Table) -> Table:
    return table.take(slice(None, None, max(1, len(table) // N_FIT)))
