from dataclasses import replace

import numpy as np
import pytest

from flows import gate
from flows.gate import Comparison, Figures, judge
from models.score.budget import DAY_MS, Budget

GOOD = Figures(
    frauds=100,
    rows=10_000,
    finite=True,
    distinct=9_000,
    alert_rate=0.005,
    allowed_rate=0.005,
    comparisons={
        "champion": Comparison(0.70, 0.70, 100),
        "reference": Comparison(0.70, 0.71, 100),
        "logistic_regression": Comparison(0.70, 0.65, 100),
        "isolation_forest": Comparison(0.70, 0.30, 100),
    },
)


def beside(name: str, ours: float, theirs: float) -> Figures:
    return replace(GOOD, comparisons={**GOOD.comparisons, name: Comparison(ours, theirs, 100)})


@pytest.mark.parametrize(
    ("figures", "failing"),
    [
        (GOOD, set()),
        (beside("champion", 0.70, 0.719), set()),
        (beside("champion", 0.70, 0.721), {"champion"}),
        (beside("champion", 0.90, 0.70), set()),
        (beside("champion", float("nan"), 0.70), {"champion"}),
        (beside("reference", 0.70, 0.721), {"reference"}),
        (beside("logistic_regression", 0.70, 0.721), {"floor"}),
        (beside("isolation_forest", 0.70, 0.721), {"floor"}),
        (replace(GOOD, comparisons={}), {"floor"}),
        (replace(GOOD, not_compared={"champion": "it has other columns"}), set()),
        (replace(GOOD, finite=False), {"scores"}),
        (replace(GOOD, distinct=1), {"scores"}),
        (replace(GOOD, alert_rate=0.0095), set()),
        (replace(GOOD, alert_rate=0.0097), {"alert budget"}),
        (replace(GOOD, alert_rate=0.95), {"alert budget"}),
        (replace(GOOD, alert_rate=0.0), {"alert budget"}),
        (replace(GOOD, alert_rate=0.0, rows=1_000), set()),
        (replace(GOOD, alert_rate=float("nan")), {"alert budget"}),
        (replace(GOOD, allowed_rate=float("nan")), {"alert budget"}),
        (replace(GOOD, cost={"ours": 90.0, "no_alert": 100.0, "all_alert": 500.0}), set()),
        (replace(GOOD, cost={"ours": 101.0, "no_alert": 100.0, "all_alert": 500.0}), {"cost"}),
        (replace(GOOD, cost={"ours": 90.0, "no_alert": 100.0, "all_alert": 50.0}), {"cost"}),
        (replace(GOOD, frauds=29, comparisons={}), set()),
        (replace(beside("champion", 0.1, 0.9), frauds=29), set()),
        (replace(GOOD, frauds=0, comparisons={}, alert_rate=0.5), {"alert budget"}),
        (replace(GOOD, frauds=0, comparisons={}, distinct=1), {"scores"}),
    ],
)
def test_the_gate_says_which_check_fails(figures: Figures, failing: set[str]) -> None:
    checks = judge(figures)
    assert {name for name, (_, holds) in checks.items() if not holds} == failing
    assert all(seen for seen, _ in checks.values())


def test_with_too_few_frauds_it_says_that_it_judged_without_labels() -> None:
    checks = judge(replace(GOOD, frauds=29))
    assert set(checks) == {"scores", "alert budget", "labels"}
    assert checks["labels"][0] == "29 known frauds were held out, 30 are needed: checked without labels"


def test_a_champion_that_has_learned_from_the_slice_is_named_so() -> None:
    learned = replace(GOOD, comparisons={**GOOD.comparisons, "champion": Comparison(0.7, 0.7, 40, learned=True)})
    assert judge(learned)["champion"][0].endswith("on the same 40 frauds, some of which it was trained on")


def test_ten_promotions_that_each_lose_a_little_are_stopped_before_they_add_up() -> None:
    champion, reference, promoted = 0.80, 0.80, 0
    for _ in range(10):
        challenger = champion - 0.015
        comparisons = {
            "champion": Comparison(challenger, champion, 100),
            "reference": Comparison(challenger, reference, 100),
            "isolation_forest": Comparison(challenger, 0.30, 100),
        }
        figures = replace(GOOD, comparisons=comparisons)
        assert judge(figures)["champion"][1]
        if all(holds for _, holds in judge(figures).values()):
            champion, promoted = challenger, promoted + 1
            reference = challenger if gate.is_new_reference(figures) else reference
    assert (promoted, reference) == (1, 0.80)


def test_only_what_is_as_good_on_enough_frauds_takes_the_reference_s_place() -> None:
    assert not gate.is_new_reference(replace(GOOD, comparisons={}))
    assert not gate.is_new_reference(replace(GOOD, comparisons={"reference": Comparison(0.9, 0.1, 29)}))
    assert gate.is_new_reference(beside("reference", 0.70, 0.70))
    assert not gate.is_new_reference(beside("reference", 0.70, 0.701))


def test_figures_come_back_from_their_tags_and_others_are_none() -> None:
    figures = replace(GOOD, cost={"ours": 1.5, "no_alert": 2.0, "all_alert": 9.0}, not_compared={"champion": "gone"})
    tags = figures.tags()
    assert tags["gate_frauds"] == "100"
    assert Figures.of_tags(tags | {"digest": "abc"}) == figures
    for odd in ({}, {"gate_frauds": "x"}, {"gate_comparisons": "7"}, {"gate_comparisons": '{"champion": {"a": 1}}'}):
        assert Figures.of_tags(tags | odd if odd else {}) is None


def test_the_newest_labels_and_the_newest_events_are_kept_back() -> None:
    known = np.arange(1000) < 600
    slices = gate.keep_back(known)
    assert np.flatnonzero(slices.labelled).tolist() == list(range(540, 600))
    assert np.flatnonzero(slices.newest).tolist() == list(range(900, 1000))
    assert not gate.keep_back(np.zeros(1000, bool)).labelled.any()


def test_the_champion_is_compared_on_events_after_its_own_training_where_those_suffice() -> None:
    label = (np.arange(1000) % 10 == 0).astype(np.int8)
    time_ms = np.arange(1000, dtype=np.int64)
    ours = np.where(time_ms >= 500, label, 1 - label).astype(float)  # right only in the second half
    theirs = 1 - ours
    later = gate.compare(ours, theirs, label, time_ms, learned_until_ms=500)
    assert (later.ours, later.frauds, later.learned) == (1.0, 50, False)
    assert later.theirs < 0.2
    for until in (900, None):
        whole = gate.compare(ours, theirs, label, time_ms, learned_until_ms=until)
        assert (whole.frauds, whole.learned) == (100, True)
        assert whole.ours < 0.8


def test_what_each_budget_allows_and_what_alerts_cost() -> None:
    time_ms = np.linspace(0, 2 * DAY_MS, 1000).astype(np.int64)
    shares = [
        gate.allowed_share(budget, time_ms, validation_alert_rate=0.03)
        for budget in (Budget(rate=0.01), Budget(per_day=20), Budget(per_day=1e6), Budget(cost=(9.0, 1.0)))
    ]
    assert shares == [0.01, 0.04, 1.0, 0.03]
    scores, label = np.array([0.1, 0.9, 0.8, 0.2]), np.array([0, 1, 0, 1], np.int8)
    assert gate.cost_of(Budget(rate=0.01), scores, label, 0.5) == {}
    assert gate.cost_of(Budget(cost=(9.0, 1.0)), scores, label, 0.5) == {
        "ours": 11.0,
        "no_alert": 18.0,
        "all_alert": 4.0,
    }
