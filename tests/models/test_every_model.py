"""Every model passes the same battery."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from models.baselines import isolation_forest, logistic_regression
from models.detector import TableDetector
from models.fit.finetune import FinetuneConfig, TrainedModel, finetune
from models.fit.pretrain import PretrainConfig, Pretrained, pretrain
from models.score.budget import Budget
from models.ship.artifact import ServedModel, load, save
from models.ship.pretrained import load_pretrained, save_pretrained
from models.table import Column, Table
from tests.models.battery import CHECKS, D_NUM, Candidate, Score
from tests.models.conftest import COLUMNS, NAMES, stream

TABLE, LABEL = stream(2_500, seed=1)
EVERY = np.ones(len(TABLE), bool)
SHORT = PretrainConfig(width=16, max_steps=20, min_steps=20, batch=64)
QUICK = FinetuneConfig(budget=Budget(rate=0.02), n_trees=30, validation=0.2)


def table_of(columns: Sequence[Column], numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> Table:
    return Table(tuple(columns), numeric, categorical, np.arange(len(numeric)), NAMES)


def pretrained() -> Pretrained:
    return pretrain(TABLE, config=SHORT, seed=0)


def trained() -> TrainedModel:
    model = finetune(pretrained(), TABLE, label=LABEL, known=EVERY, config=QUICK, seed=0)
    assert len(model.trees.feature)
    return model


def served(model: TrainedModel, folder: Path) -> ServedModel:
    save(model, folder, lineage={})
    return load(folder)


def by_place(score: Score) -> Callable[..., NDArray[np.floating]]:
    """Of a model that knows no names: whoever calls it arranges the columns by name, as `ColumnsByName` does."""

    def named(columns: Sequence[Column], numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> NDArray:
        names = [column.name for column in columns]
        return score(numeric[:, [names.index(column.name) for column in COLUMNS[:D_NUM]]], categorical)

    return named


def label_free(folder: Path) -> Candidate:
    model = pretrained()

    def scores(model: Pretrained) -> Score:
        return lambda numeric, categorical: model.score(table_of(COLUMNS, numeric, categorical))

    def reloaded(folder: Path) -> Score:
        save_pretrained(model, folder)
        return scores(load_pretrained(folder))

    return Candidate(
        scores(model), lambda *named: model.score(table_of(*named)), lambda: scores(pretrained()), reloaded
    )


def fine_tuned(folder: Path) -> Candidate:
    model = trained()
    return Candidate(
        model.score,
        by_place(model.score),
        lambda: trained().score,
        lambda folder: served(model, folder).score,
    )


def onnx(folder: Path) -> Candidate:
    model = served(trained(), folder)
    return Candidate(
        model.score,
        by_place(model.score),
        lambda: served(trained(), folder / "again").score,
        lambda _: load(folder).score,
    )


def detector(folder: Path) -> Candidate:
    names = [column.name for column in COLUMNS[:D_NUM]]

    def fitted() -> TableDetector:
        model = TableDetector(n_trees=5, random_state=0)
        return model.fit(pd.DataFrame(np.asarray(TABLE.numeric[:400]), columns=names), LABEL[:400])

    def scores(model: TableDetector) -> Score:
        return lambda numeric, _: model.anomaly_score(pd.DataFrame(numeric, columns=names[: numeric.shape[1]]))

    def named(columns: Sequence[Column], numeric: NDArray[np.float64], _: NDArray[np.uint64]) -> NDArray:
        return model.anomaly_score(pd.DataFrame(numeric, columns=[column.name for column in columns[:D_NUM]]))

    model = fitted()
    return Candidate(
        scores(model), named, lambda: scores(fitted()), lambda _: scores(pickle.loads(pickle.dumps(model))),
        scores_nothing=False,
    )  # fmt: skip


def baseline(name: str) -> Callable[[Path], Candidate]:
    table, label = TABLE.take(slice(0, 1_000)), LABEL[:1_000]
    train, valid = np.arange(800), np.arange(800, 1_000)

    def score(test: Table) -> NDArray[np.float64]:
        if name == "isolation_forest":
            return isolation_forest(table, label=label, valid=valid, test=test, seed=0, n_trees=10)
        return logistic_regression(table, label=label, train=train, valid=valid, test=test, seed=0)

    def unnamed(numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> NDArray[np.float64]:
        return score(table_of(COLUMNS, numeric, categorical))

    one = Candidate(
        unnamed, lambda *named: score(table_of(*named)), lambda: unnamed, None, bounded=False, scores_nothing=False
    )
    return lambda _: one


CANDIDATES: dict[str, Callable[[Path], Candidate]] = {
    "label-free": label_free,
    "fine-tuned": fine_tuned,
    "served": onnx,
    "detector": detector,
    "isolation forest": baseline("isolation_forest"),
    "logistic regression": baseline("logistic_regression"),
}


@pytest.fixture(scope="module", params=CANDIDATES)
def candidate(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    return CANDIDATES[request.param](tmp_path_factory.mktemp("model"))


@pytest.mark.filterwarnings("ignore:.*did not converge|lbfgs failed")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_model(candidate: Candidate, check: Callable[[Candidate, Path], None], tmp_path: Path) -> None:
    check(candidate, tmp_path)
