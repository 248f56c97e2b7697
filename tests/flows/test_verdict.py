"""The checks of a candidate, one by one, without a model."""

from dataclasses import replace
from typing import Any

import pytest

from flows.evidence import Evidence, Shadow, Versus
from flows.gate import Comparison, Figures
from flows.verdict import is_new_reference, judge
from models.fit.leaks import Alone
from models.paired import Difference
from pipelines.contracts.stream import Promotion

LIMITS = Promotion()
NAN = float("nan")


def versus(ours: float, theirs: float, *, low: float = -0.1, high: float = 0.1, frauds: int = 100) -> Versus:
    same = Difference(0.4, 0.4, -0.1, 0.1)
    return Versus(Difference(ours, theirs, low, high), same, 50, frauds, learned=False, time=1.0)


HELD_OUT = Figures(
    100,
    10_000,
    0.005,
    0.005,
    {
        "logistic_regression": Comparison(0.70, 0.65, 100),
        "isolation_forest": Comparison(0.70, 0.30, 100),
    },
)
GOOD = Evidence(
    since_ms=0,
    until_ms=1,
    frauds=100,
    rows=10_000,
    finite=True,
    distinct=9_000,
    alert_rate=0.005,
    allowed_rate=0.005,
    drift=0.05,
    bias=1.1,
    reasons=0.95,
    formers={"champion": versus(0.70, 0.70), "reference": versus(0.70, 0.71)},
)


def beside(name: str, one: Versus) -> Evidence:
    return replace(GOOD, formers={**GOOD.formers, name: one})


def held_out(name: str, theirs: float) -> Figures:
    return replace(HELD_OUT, comparisons={**HELD_OUT.comparisons, name: Comparison(0.70, theirs, 100)})


@pytest.mark.parametrize(
    ("evidence", "failing"),
    [
        (GOOD, set()),
        (beside("champion", versus(0.70, 0.719)), set()),
        (beside("champion", versus(0.70, 0.721)), {"champion"}),
        (beside("champion", versus(0.90, 0.70, low=0.1, high=0.3)), set()),
        (beside("champion", versus(0.70, 0.71, low=-0.02, high=-0.001)), {"champion"}),
        (beside("champion", versus(NAN, 0.70)), {"champion"}),
        (beside("champion", replace(versus(0.7, 0.7), time=4.1)), {"time"}),
        (beside("champion", replace(versus(0.7, 0.7), precision=Difference(0.3, 0.4, -0.15, -0.05))), {"champion"}),
        (beside("reference", versus(0.70, 0.721)), {"reference"}),
        (replace(GOOD, formers={}, not_compared={"champion": "it is damaged"}), {"champion"}),
        (replace(GOOD, not_compared={"reference": "it was deleted"}), set()),
        (replace(GOOD, finite=False), {"scores"}),
        (replace(GOOD, distinct=1), {"scores"}),
        (replace(GOOD, alert_rate=0.0095), set()),
        (replace(GOOD, alert_rate=0.0097), {"alert budget"}),
        (replace(GOOD, alert_rate=0.0), {"alert budget"}),
        (replace(GOOD, alert_rate=0.0, rows=1_000), set()),
        (replace(GOOD, alert_rate=NAN), {"alert budget"}),
        (replace(GOOD, allowed_rate=NAN), {"alert budget"}),
        (replace(GOOD, drift=1.01), {"score drift"}),
        (replace(GOOD, drift=NAN), {"score drift"}),
        (replace(GOOD, leaks=("channel: it tells the label",)), {"leaks"}),
        (replace(GOOD, strongest=Alone("hint", 0.60)), set()),
        (replace(GOOD, strongest=Alone("hint", 0.73)), {"one field"}),
        (replace(GOOD, strongest=Alone("hint", 0.72)), set()),
        (replace(GOOD, strongest=Alone("hint", 0.61), formers={}), {"one field"}),
        (replace(GOOD, strongest=Alone("hint", NAN)), {"one field"}),
        (replace(GOOD, reasons=0.4), {"reasons"}),
        (replace(GOOD, reasons=None), set()),
        (replace(GOOD, bias=3.1), {"calibration"}),
        (replace(GOOD, bias=0.3), {"calibration"}),
        (replace(GOOD, bias=None), set()),
        (replace(GOOD, cost={"ours": 90.0, "no_alert": 100.0, "all_alert": 500.0}), set()),
        (replace(GOOD, cost={"ours": 101.0, "no_alert": 100.0, "all_alert": 500.0}), {"cost"}),
        (replace(GOOD, cost={"ours": 90.0, "no_alert": 100.0, "all_alert": 50.0}), {"cost"}),
        (replace(beside("champion", versus(0.1, 0.9)), frauds=29), set()),
        (replace(beside("champion", versus(0.1, 0.9, low=-0.9, high=-0.5)), frauds=29), {"champion"}),
        (replace(GOOD, frauds=29, formers={}, not_compared={"champion": "it is damaged"}), {"champion"}),
        (replace(GOOD, frauds=0, formers={}, shared=0.16), set()),
        (replace(GOOD, frauds=0, formers={}, shared=0.07), {"agreement"}),
        (replace(GOOD, frauds=0, alert_rate=0.5), {"alert budget"}),
        (replace(GOOD, frauds=0, distinct=1), {"scores"}),
    ],
)
def test_the_verdict_says_which_check_fails(evidence: Evidence, failing: set[str]) -> None:
    checks = judge(evidence, HELD_OUT, LIMITS)
    assert {name for name, one in checks.items() if not one.holds} == failing
    assert all(one.seen for one in checks.values())


@pytest.mark.parametrize(
    ("figures", "holds"),
    [
        (HELD_OUT, True),
        (held_out("logistic_regression", 0.719), True),
        (held_out("logistic_regression", 0.721), False),
        (held_out("isolation_forest", 0.721), False),
        (replace(HELD_OUT, comparisons={}), False),
        (None, False),
    ],
)
def test_a_model_must_reach_the_best_baseline(figures: Figures | None, holds: bool) -> None:
    assert judge(GOOD, figures, LIMITS)["baselines"].holds is holds


@pytest.mark.parametrize(
    ("shadow", "holds"),
    [
        (None, False),
        (Shadow(999, 0.005, 0.005, 0.9), False),
        (Shadow(1_000, 0.005, 0.005, 0.9), True),
        (Shadow(10_000, 0.0097, 0.005, 0.9), False),
        (Shadow(1_000, 0.005, 0.005, None), False),
    ],
)
def test_shadow_is_demanded_where_the_stream_file_says_so(shadow: Shadow | None, holds: bool) -> None:
    evidence: Any = replace(GOOD, shadow=shadow)
    assert "shadow" not in judge(evidence, HELD_OUT, LIMITS)
    assert judge(evidence, HELD_OUT, Promotion(shadow_events=1_000))["shadow"].holds is holds


def test_with_too_few_frauds_it_says_that_it_judged_without_labels() -> None:
    checks = judge(replace(GOOD, frauds=29), None, LIMITS)
    always = {"scores", "alert budget", "score drift", "leaks", "reasons", "labels"}
    assert set(checks) == always | {"champion", "reference"}
    assert checks["labels"].seen == "29 known frauds since then, 30 are needed: checked without labels"


def test_a_champion_that_has_learned_from_the_events_is_named_so() -> None:
    learned = beside("champion", replace(versus(0.7, 0.7), frauds=40, learned=True))
    assert "on the same 40 frauds, some of which it was trained on" in judge(learned, HELD_OUT, LIMITS)["champion"].seen


def test_ten_promotions_that_each_lose_a_little_are_stopped_before_they_add_up() -> None:
    champion, reference, promoted = 0.80, 0.80, 0
    for _ in range(10):
        ours = champion - 0.015
        evidence = replace(GOOD, formers={"champion": versus(ours, champion), "reference": versus(ours, reference)})
        checks = judge(evidence, HELD_OUT, LIMITS)
        assert checks["champion"].holds
        if all(one.holds for one in checks.values()):
            champion, promoted = ours, promoted + 1
            reference = ours if is_new_reference(evidence, LIMITS) else reference
    assert (promoted, reference) == (1, 0.80)


def test_only_what_is_as_good_on_enough_frauds_takes_the_reference_s_place() -> None:
    assert not is_new_reference(replace(GOOD, formers={}), LIMITS)
    assert not is_new_reference(replace(GOOD, formers={"reference": versus(0.9, 0.1, frauds=29)}), LIMITS)
    assert is_new_reference(beside("reference", versus(0.70, 0.70)), LIMITS)
    assert not is_new_reference(beside("reference", versus(0.70, 0.701)), LIMITS)
