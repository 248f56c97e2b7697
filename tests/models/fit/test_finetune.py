from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from models.baselines import compare
from models.fit.finetune import FinetuneConfig, TrainedModel, finetune
from models.score.budget import Budget, BudgetError
from models.table import TableError

QUICK = FinetuneConfig(budget=Budget(rate=0.02), n_trees=20, validation=0.2)


def ap(model, trained) -> float:
    return float(average_precision_score(trained.truth, model.score(trained.test.numeric, trained.test.categorical)))


def test_without_labels_it_beats_the_isolation_forest_and_with_labels_logistic_regression(trained) -> None:
    every = np.ones(len(trained.table), bool)
    peers = compare(trained.table, label=trained.label, known=every, test=trained.test, seed=0)
    forest = average_precision_score(trained.truth, peers["isolation_forest"])
    regression = average_precision_score(trained.truth, peers["logistic_regression"])
    assert ap(trained.day_zero, trained) > forest
    assert ap(trained.labelled, trained) > max(ap(trained.day_zero, trained), regression)


def test_without_labels_the_order_is_that_of_the_label_free_score(trained) -> None:
    fine_tuned = trained.day_zero.score(trained.test.numeric, trained.test.categorical)
    label_free = trained.pretrained.score(trained.test)
    order = np.argsort(label_free, kind="stable")
    assert (np.diff(fine_tuned[order]) >= -1e-6).all()
    assert ap(trained.day_zero, trained) == pytest.approx(average_precision_score(trained.truth, label_free), abs=1e-6)


def test_both_models_keep_their_alert_budget_on_the_next_period(trained) -> None:
    for model in (trained.day_zero, trained.labelled):
        scores = model.score(trained.test.numeric, trained.test.categorical)
        assert model.metrics["validation_alert_rate"] <= 0.02
        assert 0.01 < (scores > model.rules.threshold).mean() < 0.03
        assert ((scores >= 0) & (scores <= 1)).all()


def test_probabilities_match_the_prevalence_though_training_drew_frauds_more_often(trained) -> None:
    scores = trained.labelled.score(trained.test.numeric, trained.test.categorical)
    assert abs(scores.mean() - trained.truth.mean()) < 0.01


@pytest.mark.parametrize("frauds", [1, 3, 10, 40])
def test_few_labels_never_make_the_ranking_worse(trained, frauds: int) -> None:
    known = np.zeros(len(trained.table), bool)
    known[np.flatnonzero(trained.label == 1)[:frauds]] = True
    known[np.flatnonzero(trained.label == 0)[:2000]] = True
    model = finetune(trained.pretrained, trained.table, label=trained.label, known=known, config=QUICK, seed=0)
    assert model.metrics["has_head"] == 1
    assert ap(model, trained) > ap(trained.day_zero, trained) - 0.005


def reviewed(trained, share: float, *, confirmed: float = 1.0, seed: int = 0) -> TrainedModel:
    """Fine-tuned on the labels of the alerts of the label-free model and of a random share of all other events.

    Only a share of the frauds is ``confirmed``.
    """
    score = trained.day_zero.score(trained.table.numeric, trained.table.categorical)
    random = np.random.default_rng(seed)
    label = np.where(random.random(len(score)) < confirmed, trained.label, 0).astype(np.int8)
    known = (score > np.quantile(score, 0.98)) | (random.random(len(score)) < share)
    return finetune(trained.pretrained, trained.table, label=label, known=known, config=QUICK, seed=0)


@pytest.mark.parametrize("share", [0.01, 0.05])
def test_labels_of_alerts_with_many_false_alarms_improve_the_ranking(trained, share: float) -> None:
    models = [reviewed(trained, share, confirmed=0.3, seed=seed) for seed in range(3)]
    assert min(model.metrics["frauds"] for model in models) > 15
    assert np.mean([ap(model, trained) for model in models]) > ap(trained.day_zero, trained) + 0.01


def test_the_validation_figures_are_those_of_all_events_though_most_labels_are_of_alerts(trained) -> None:
    model, valid = reviewed(trained, 0.2), slice(len(trained.table) * 4 // 5, None)
    rows = trained.table.numeric[valid], trained.table.categorical[valid]
    fraud = trained.label[valid] == 1
    label_free = float(average_precision_score(fraud, trained.day_zero.score(*rows)))
    recall = float((model.score(*rows) > model.rules.threshold)[fraud].mean())
    # of the labelled rows alone: .88 for .59, and .86 for .58
    assert model.metrics["validation_ap_label_free"] == pytest.approx(label_free, abs=0.15)
    assert model.metrics["validation_recall_at_budget"] == pytest.approx(recall, abs=0.15)


def test_trees_do_not_rest_on_an_own_history_of_labels_that_most_entities_do_not_have(trained) -> None:
    random, history = np.random.default_rng(0), 4
    entity = random.integers(0, 200, len(trained.table)).astype(np.uint64)
    known, numeric = entity < 50, trained.table.numeric.copy()
    numeric[:, history] = np.where(known, trained.label, np.nan)  # tells all, where there is one
    table = replace(trained.table, numeric=numeric, entity=entity)
    model = finetune(trained.pretrained, table, label=trained.label, known=known, config=QUICK, seed=0)
    assert 0 < (model.trees.feature[:, 0] == history).mean() < 0.3  # 0.5 if trees see it in all rows


def test_if_only_frauds_are_known_the_other_rows_count_as_legitimate(trained) -> None:
    model = finetune(
        trained.pretrained, trained.table, label=trained.label, known=trained.label == 1, config=QUICK, seed=0
    )
    assert ap(model, trained) > ap(trained.day_zero, trained) + 0.1


def test_a_cost_budget_without_labels_needs_the_share_of_frauds_and_alerts_on_few(trained) -> None:
    none = np.zeros(len(trained.table), bool)
    for budget, share in ((Budget(cost=(100.0, 5.0)), None), (Budget(cost=(100.0, 5.0), fraud_rate=0.003), 0.0104)):
        config = replace(QUICK, budget=budget)
        with nullcontext() if share else pytest.raises(BudgetError, match="add your estimate of the share of fraud"):
            model = finetune(trained.pretrained, trained.table, label=trained.label, known=none, config=config, seed=0)
            assert share is not None
            assert 0 < model.metrics["validation_alert_rate"] <= share


def test_rows_after_the_last_known_one_change_nothing(trained) -> None:
    known = np.arange(len(trained.table)) < 8000
    models: list[TrainedModel] = []
    for numeric in (trained.table.numeric, trained.table.numeric.copy()):
        if models:
            numeric[8000:] = 123.0
        table = replace(trained.table, numeric=numeric)
        label = np.where(known, trained.label, len(models)).astype(np.int8)
        models.append(finetune(trained.pretrained, table, label=label, known=known, config=QUICK, seed=0))
    scores = [m.score(trained.test.numeric[:500], trained.test.categorical[:500]) for m in models]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert models[0].rules.threshold == models[1].rules.threshold


def test_a_missing_column_degrades_the_ranking_gently(trained) -> None:
    numeric = trained.test.numeric.copy()
    numeric[:, 1] = np.nan
    scores = trained.labelled.score(numeric, trained.test.categorical)
    assert np.isfinite(scores).all()
    assert average_precision_score(trained.truth, scores) > 0.6 * ap(trained.labelled, trained)


def test_a_table_of_other_columns_is_refused(trained) -> None:
    columns = (replace(trained.table.columns[0], name="price"), *trained.table.columns[1:])
    table = replace(trained.table, columns=columns)
    with pytest.raises(TableError, match=r"differ in .*price"):
        finetune(
            trained.pretrained,
            table,
            label=trained.label,
            known=np.zeros(len(table), bool),
            config=QUICK,
            seed=0,
        )


def test_validation_with_delayed_labels_is_that_of_a_model_which_does_not_know_them(trained) -> None:
    known, period_ms = np.ones(len(trained.table), bool), int(np.ptp(trained.table.time_ms))
    model = finetune(trained.pretrained, trained.table, label=trained.label, known=known, config=QUICK, seed=0)
    found = []
    for share in (0.05, 0.7):
        config = replace(QUICK, maturity_ms=int(share * period_ms))
        late = finetune(trained.pretrained, trained.table, label=trained.label, known=known, config=config, seed=0)
        np.testing.assert_array_equal(late.trees.feature, model.trees.feature)  # it is measured only
        found.append(late.metrics["validation_ap_delayed"])
    assert model.metrics["validation_ap"] + 0.05 > found[0] > found[1]
    assert "validation_ap_delayed" not in model.metrics
    config = replace(QUICK, maturity_ms=2 * period_ms)  # no fraud is known by then
    late = finetune(trained.pretrained, trained.table, label=trained.label, known=known, config=config, seed=0)
    assert "validation_ap_delayed" not in late.metrics
