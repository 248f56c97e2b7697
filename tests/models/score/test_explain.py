import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from models.fit.finetune import FinetuneConfig, finetune
from models.fit.pretrain import PretrainConfig, pretrain
from models.score.explain import explain, groups
from models.ship.artifact import ServedModel, load, save
from models.table import Column, Table


def test_an_odd_amount_is_the_first_reason_with_its_expected_value_and_a_lower_score(saved) -> None:
    for name in ("day_zero", "labelled"):
        served = load(saved[name][0])
        numeric = np.array([[300.0, 60.0, 5.0, 2.0, 0.0]])
        categorical = np.array([[22]], np.uint64)
        (explanation,) = served.explain(numeric, categorical)
        reason = explanation.reasons[0]
        assert (reason.field, reason.actual) == ("amount", 300.0)
        assert isinstance(reason.expected, float)
        assert 40 < reason.expected < 80
        assert reason.surprise > 8
        score = served.score(numeric, categorical)[0]
        assert reason.score_if_expected < score
        assert explanation.score_if_all_expected < score


def test_a_terminal_with_a_fraud_rate_is_named_by_its_history_column(saved) -> None:
    served = load(saved["labelled"][0])
    row = np.array([[60.0, 60.0, 1.0, 2.0, 0.8]]), np.array([[22]], np.uint64)
    (explanation,) = served.explain(*row)
    reason = explanation.reasons[0]
    assert (reason.field, reason.actual, reason.expected) == ("terminal_id.fraud_rate.7d", 0.8, 0.0)
    assert reason.score_if_expected < served.score(*row)[0]


def untrained(folder: Path, n_columns: int) -> ServedModel:
    random = np.random.default_rng(0)
    columns = tuple(Column(f"x{i}", "numeric", of=f"x{i}") for i in range(n_columns))
    table = Table(
        columns, random.normal(size=(1_000, n_columns)), np.zeros((1_000, 0), np.uint64), np.arange(1_000), {}
    )
    pretrained = pretrain(table, config=PretrainConfig(width=16, max_steps=2, min_steps=2, batch=64), seed=0)
    none = np.zeros(1_000, bool)
    model = finetune(pretrained, table, label=np.zeros(1_000, np.int8), known=none, config=FinetuneConfig(), seed=0)
    save(model, folder, lineage={})
    return load(folder)


@pytest.mark.parametrize("n_causes", [1, 3, 4, 7])
def test_every_cause_is_named_that_would_raise_the_alert_without_the_others(tmp_path: Path, n_causes: int) -> None:
    served, causes = untrained(tmp_path, 12), list(range(12 - n_causes, 12))

    def score(numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> NDArray[np.float32]:
        return np.where((numeric[:, causes] > 5).any(axis=1), np.float32(1), np.float32(0))

    row = np.where(np.isin(np.arange(12), causes), 6.0 + np.arange(12) / 10, 0.0)[None]
    (found,) = explain(served.rules, served.expect, score, row, np.zeros((1, 0), np.uint64))
    assert {reason.field for reason in found.reasons} == {f"x{i}" for i in causes}
    assert found.score_if_all_expected == 0


def test_an_alert_that_no_field_explains_names_no_field_at_random(tmp_path: Path) -> None:
    served = untrained(tmp_path, 12)

    def score(numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> NDArray[np.float32]:
        return np.ones(len(numeric), np.float32)

    row = np.where(np.arange(12) == 7, 6.0, 0.0)[None]
    (found,) = explain(served.rules, served.expect, score, row, np.zeros((1, 0), np.uint64))
    assert [reason.field for reason in found.reasons] == ["x7"]


def test_real_alerts_are_quiet_with_all_named_fields_as_expected(trained, saved) -> None:
    served = load(saved["labelled"][0])
    alerts = served.score(trained.test.numeric, trained.test.categorical) > served.threshold
    found = served.explain(trained.test.numeric[alerts], trained.test.categorical[alerts])
    assert len(found) > 50
    assert np.mean([one.score_if_all_expected <= served.threshold for one in found]) >= 0.95
    assert np.mean([len(one.reasons) for one in found]) < 2.5  # of five groups


@pytest.mark.parametrize(
    ("stats", "name"),
    [
        (("since_legit", "fraud_rate", "labelled_count"), "card.labels"),
        (("last_age", "last_hour", "last_value"), "card.last"),
    ],
)
def test_what_labels_or_the_last_events_say_of_an_entity_is_one_reason(stats: tuple[str, ...], name: str) -> None:
    columns = [Column(f"card.{stat}.7d", "numeric", None, name == "card.labels", "card", stat) for stat in stats]
    (group,) = groups((Column("amount", "numeric", "amount"), *columns, Column("card.count.7d", "numeric")))[1:2]
    assert (group.name, group.columns) == (name, (1, 2, 3))


def test_categories_are_shown_as_text_and_the_whole_is_json(saved) -> None:
    served = load(saved["day_zero"][0])
    (explanation,) = served.explain(np.array([[60.0, 60.0, 1.0, 2.0, 0.0]]), np.array([[33]], np.uint64))
    by_field = {r.field: r for r in explanation.reasons}
    assert json.loads(json.dumps(explanation.as_json()))["score_if_all_expected"] >= 0
    if "channel" in by_field:
        assert (by_field["channel"].actual, by_field["channel"].expected) == ("phone", "shop")


def test_a_thousand_alerts_of_forty_groups_are_explained_in_bounded_memory(tmp_path: Path) -> None:
    sizes: list[int] = []

    class Counted:
        def __init__(self, session: onnxruntime.InferenceSession) -> None:
            self.session = session

        def run(self, names: None, cells: dict[str, np.ndarray]) -> list[np.ndarray]:
            sizes.append(sum(part.nbytes for part in cells.values()))
            return list(self.session.run(names, cells))

    served = untrained(tmp_path, 40)
    numeric, categorical = np.random.default_rng(0).normal(size=(1_000, 40)), np.zeros((1_000, 0), np.uint64)
    counted = replace(served, scorer=Counted(served.scorer), expectation=Counted(served.expectation))
    whole = 1_000 * 40 * 8 * 40
    tracemalloc.start()
    explained = counted.explain(numeric, categorical)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert max(sizes) <= 4 * 1024 * 1024 < whole
    assert peak < 32 * 1024 * 1024
    (alone,) = served.explain(numeric[777:778], categorical[777:778])
    assert [r.field for r in explained[777].reasons] == [r.field for r in alone.reasons]
    assert len(explained) == 1_000


def test_explaining_rows_together_is_explaining_each_alone(trained, saved) -> None:
    served = load(saved["labelled"][0])
    numeric, categorical = trained.test.numeric[:20], trained.test.categorical[:20]
    together = served.explain(numeric, categorical)
    for i, explanation in enumerate(together):
        (alone,) = served.explain(numeric[i : i + 1], categorical[i : i + 1])
        assert [r.field for r in alone.reasons] == [r.field for r in explanation.reasons]
        assert abs(alone.score_if_all_expected - explanation.score_if_all_expected) < 1e-5
