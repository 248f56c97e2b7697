"""A registered model, loaded by MLflow, gives the scores and reasons of the scorer's model."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from flows.local.servers import Servers
from flows.serve.pyfunc import NotServedError, Scorer, serving_of
from models.ship import artifact, registry
from models.ship.artifact import ServedModel
from models.table import Column, Table
from pipelines.contracts.contract import hashes_of
from tests.flows.serve.cached import trained

COLUMNS = (
    Column("amount", "numeric", of="amount"),
    Column("card.amount.mean.7d", "numeric", entity="card", stat="mean"),
    Column("channel", "categorical", of="channel"),
)
NAMES = {int(hashes_of([text])[0]): text for text in ("web", "7", "true")}
N = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("draft") / "saved"
    artifact.save(trained(COLUMNS), target, lineage={})
    return target


@pytest.fixture(scope="module")
def model(folder: Path) -> ServedModel:
    return artifact.load(folder)


def rows() -> tuple[NDArray[np.float64], NDArray[np.uint64], list[dict[str, float | str | None]]]:
    """Rows for the model, and the same rows as features."""
    random = np.random.default_rng(3)
    numeric = random.gamma(2.0, 4.0, (N, 2))
    numeric[0, 0] = numeric[1, 1] = np.nan
    texts = [None, "never seen", *random.choice(list(NAMES.values()), N - 2)]
    features: list[dict[str, float | str | None]] = [
        {"amount": None if np.isnan(a) else a, "card.amount.mean.7d": None if np.isnan(b) else b, "channel": text}
        for (a, b), text in zip(numeric.tolist(), texts, strict=True)
    ]
    return numeric, hashes_of(texts)[:, None], features


def test_a_registered_model_is_loaded_by_mlflow_with_signature_example_and_equal_scores_and_reasons(
    folder: Path, model: ServedModel, servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    numeric, categorical, features = rows()
    table = Table(COLUMNS, numeric, categorical, np.arange(N), NAMES)
    uri = servers.mlflow_uri
    with registry.open_run("pyfunc/finetune", tracking_uri=uri, run_name="r") as run:
        registry.register("pyfunc-scorer", run, folder, digest=model.digest, tags={}, serving=serving_of(model, table))
    registry.set_alias("pyfunc-scorer", "champion", 1, tracking_uri=uri)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        mlflow.set_tracking_uri(uri)
        loaded = mlflow.pyfunc.load_model("models:/pyfunc-scorer@champion")
    assert [(c.name, c.type.name, c.required) for c in loaded.metadata.signature.inputs] == [
        ("amount", "double", False),
        ("card.amount.mean.7d", "double", False),
        ("channel", "string", False),
    ]
    assert loaded.input_example["amount"].tolist()[1:] == numeric[1:3, 0].tolist()
    found = loaded.predict(pd.DataFrame(features), params={"explain": "all"})
    np.testing.assert_allclose(found["score"], model.score(numeric, categorical), atol=1e-5)
    for told, ours in zip(found["reasons"], model.explain(numeric, categorical), strict=True):
        assert [r["field"] for r in told] == [r.field for r in ours.reasons]
        assert [r["expected"] for r in told] == [asdict(r)["expected"] for r in ours.reasons]
    # what the scorer loads is the model's own files, without those of MLflow
    resolved = registry.resolve("pyfunc-scorer", "champion", tracking_uri=uri, cache=tmp_path / "cache")
    assert {f.name for f in resolved.folder.iterdir()} == {f.name for f in folder.iterdir()}
    assert artifact.load(resolved.folder, expect=model.digest).digest == model.digest


def test_only_alerts_are_explained_unless_asked_and_an_unknown_category_keeps_its_text(model: ServedModel) -> None:
    _, _, features = rows()
    scorer, frame = Scorer(model), pd.DataFrame(features)
    found = scorer.predict(frame)
    assert found["alert"].tolist() == (found["score"] > np.float32(model.threshold)).tolist()
    assert [bool(reasons) for reasons in found["reasons"]] == found["alert"].tolist()
    assert not any(scorer.predict(frame, {"explain": "none"})["reasons"])
    actual = {r["actual"] for r in scorer.predict(frame, {"explain": "all"})["reasons"][1] if r["field"] == "channel"}
    assert actual <= {"never seen"}
    with pytest.raises(NotServedError, match="explain is 'some'; it must be one of alerts, all, none"):
        scorer.predict(frame, {"explain": "some"})


def test_features_that_are_not_sent_are_missing_and_texts_are_read_as_the_contract_does(model: ServedModel) -> None:
    scorer = Scorer(model)
    one = scorer.predict(pd.DataFrame([{"amount": 5}]))["score"]
    assert one.tolist() == scorer.predict(pd.DataFrame([{"amount": 5.0, "channel": None, "more": 1}]))["score"].tolist()
    number, text = (scorer.predict(pd.DataFrame([{"amount": 5.0, "channel": c}]))["score"] for c in (7, "7"))
    assert number.tolist() == text.tolist()
