"""Figures of groups, budgets and calibration against plain counts."""

import numpy as np
import pytest

from models.evaluation import (
    Budgets,
    Share,
    calibration_bins,
    calibration_error,
    concerns,
    groups_of,
    with_known_fraud,
)
from models.table import Column, Table

RNG = np.random.default_rng(3)
N = 4_000
CHANNEL = RNG.choice(np.array([0, 11, 22], np.uint64), N, p=[0.1, 0.6, 0.3])
LABEL = (RNG.random(N) < 0.05).astype(np.int8)
COLUMNS = (
    Column("amount", "numeric", of="amount"),
    Column("card.fraud_rate.7d", "numeric", label_fed=True, entity="card", stat="fraud_rate"),
    Column("channel", "categorical", of="channel"),
)


def table_of(channel: np.ndarray = CHANNEL) -> Table:
    numeric = np.stack([np.ones(len(channel)), np.full(len(channel), np.nan)], axis=1)
    return Table(COLUMNS, numeric, channel[:, None], np.arange(len(channel)), {11: "web", 22: "shop"})


def concerns_of(alert: np.ndarray) -> list[str]:
    fraud = LABEL == 1
    recall = Share(int((alert & fraud).sum()), int(fraud.sum()))
    false = Share(int((alert & ~fraud).sum()), int((~fraud).sum()))
    return concerns(groups_of(table_of(), LABEL, alert, ["channel"]), recall=recall, false_alarms=false)


def test_groups_count_what_a_plain_loop_counts_and_add_up() -> None:
    alert = RNG.random(N) < 0.1
    groups = groups_of(table_of(), LABEL, alert, ["channel"])
    assert [g.value for g in groups] == ["web", "shop", "missing"]
    assert sum(g.events for g in groups) == N
    web = CHANNEL == 11
    assert (groups[0].frauds, groups[0].caught) == (LABEL[web].sum(), LABEL[web & alert].sum())
    assert groups[0].precision.value == pytest.approx(LABEL[web & alert].mean())


def test_many_values_are_shown_as_the_most_frequent_ones_and_one_group_of_the_others() -> None:
    channel = np.repeat(np.arange(1, 41, dtype=np.uint64), np.arange(40, 0, -1))
    none = np.zeros(len(channel), np.int8)
    groups = groups_of(table_of(channel), none, none == 1, ["channel"])
    assert (len(groups), groups[-1].value) == (12, "other (29 values)")
    assert sum(g.events for g in groups) == len(channel)


def test_a_group_whose_frauds_are_not_seen_is_named_and_one_that_is_seen_as_well_is_not() -> None:
    seen = RNG.random(N) < np.where(LABEL == 1, 0.6, 0.01)
    assert concerns_of(seen) == []
    (said,) = concerns_of(seen & ~((CHANNEL == 22) & (LABEL == 1)))
    assert said.startswith("channel shop: only 0%")


def test_a_group_with_many_false_alarms_is_named() -> None:
    often = (CHANNEL == 0) & (LABEL == 0) & (RNG.random(N) < 0.2)
    (said,) = concerns_of((RNG.random(N) < np.where(LABEL == 1, 0.6, 0.01)) | often)
    assert said.startswith("channel missing: ")
    assert "of its ordinary events raise an alert" in said


def test_of_20_models_that_treat_all_groups_alike_at_most_2_have_a_group_that_is_named() -> None:
    named = [bool(concerns_of(RNG.random(N) < np.where(LABEL == 1, 0.5, 0.02))) for _ in range(20)]
    assert sum(named) <= 2


@pytest.mark.parametrize("p", [0.02, 0.4])
def test_the_interval_of_a_share_contains_the_truth_in_19_of_20_draws(p: float) -> None:
    drawn = [Share(int(k), 60) for k in RNG.binomial(60, p, 2_000)]
    assert np.mean([share.low <= p <= share.high for share in drawn]) == pytest.approx(0.95, abs=0.03)


def test_budgets_count_frauds_and_money_of_the_highest_scores_and_an_unknown_value_is_no_money() -> None:
    found = Budgets.of(np.array([1, 0, 1, 1]), np.array([0.2, 0.9, 0.8, 0.1]), np.array([5.0, 7.0, 30.0, np.nan]))
    assert found.precision.tolist() == [0.0, 0.5, 2 / 3, 0.75]
    assert found.recall.tolist() == [0.0, 1 / 3, 2 / 3, 1.0]
    assert found.value is not None
    assert (found.value.tolist(), found.total_value) == ([0.0, 30.0, 35.0, 35.0], 35.0)


def test_calibrated_scores_have_a_small_error_and_scores_twice_as_high_a_large_one() -> None:
    score = RNG.beta(1, 15, 20_000)
    label = (RNG.random(20_000) < score).astype(np.int8)
    right, wrong = (calibration_error(calibration_bins(label, s)) for s in (score, np.minimum(2 * score, 1.0)))
    assert right < 0.01 < wrong


def test_a_known_fraud_is_told_from_the_columns_of_labels_only() -> None:
    table = table_of()
    known = with_known_fraud(table)
    assert known is not None
    assert not known.any()
    np.asarray(table.numeric)[:3, 1] = [0.0, 0.2, np.nan]
    known = with_known_fraud(table)
    assert known is not None
    assert np.flatnonzero(known).tolist() == [1]
    none = np.zeros((1, 0), np.uint64)
    assert with_known_fraud(Table(COLUMNS[:1], np.ones((1, 1)), none, np.zeros(1, np.int64), {})) is None
