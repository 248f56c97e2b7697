import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.calibrate import DAY_MS, Budget, BudgetError, LogitCalibration, TailCalibration, threshold_for

scores = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=200)


@given(scores, st.floats(0.001, 0.9))
def test_no_more_than_the_budgeted_share_alerts_ties_included(values: list[float], rate: float) -> None:
    found = np.array(values, np.float32)
    threshold = threshold_for(Budget(rate=rate), found, np.zeros(len(found), np.int64))
    assert (found > threshold).sum() <= rate * len(found)


@given(scores, st.floats(0.1, 50))
def test_no_more_than_the_budgeted_number_a_day_alerts(values: list[float], per_day: float) -> None:
    found = np.array(values, np.float32)
    time_ms = np.linspace(0, 3 * DAY_MS, len(found)).astype(np.int64)
    threshold = threshold_for(Budget(per_day=per_day), found, time_ms)
    assert (found > threshold).sum() <= per_day * 3 or (found > threshold).all()


def test_a_cost_budget_takes_the_cheapest_cut() -> None:
    found = np.array([0.1, 0.2, 0.3, 0.9], np.float32)
    label, known = np.array([0, 0, 1, 1], np.int8), np.ones(4, bool)
    threshold = threshold_for(Budget(cost=(100.0, 1.0)), found, np.zeros(4, np.int64), label, known)
    assert (found > threshold).tolist() == [False, False, True, True]


def test_a_cost_budget_without_labels_takes_scores_for_probabilities() -> None:
    assert threshold_for(Budget(cost=(100.0, 5.0)), np.zeros(3, np.float32), np.zeros(3, np.int64)) == 0.05


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({}, "exactly one of rate, per_day and cost"),
        ({"rate": 0.1, "per_day": 3.0}, "exactly one"),
        ({"rate": 5.0}, r"rate must be in \(0, 1\)"),
        ({"per_day": -1.0}, "per_day must be positive"),
        ({"cost": (0.0, 1.0)}, "both positive"),
    ],
)
def test_a_budget_that_does_not_say_one_thing_is_refused(given_: dict[str, object], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        Budget(**given_)  # type: ignore[arg-type]


def test_the_tail_calibration_is_uniform_on_its_period_and_keeps_the_order_of_extremes() -> None:
    raw = np.random.default_rng(0).exponential(size=20_000)
    calibration = TailCalibration.fit(raw)
    assert abs((calibration.apply(raw) > 0.99).mean() - 0.01) < 0.002
    far = calibration.apply(np.array([20.0, 200.0, 2000.0]))
    assert (np.diff(far) > 0).all()
    assert far.max() < 1


def test_the_logit_calibration_gives_the_prevalence_back() -> None:
    random = np.random.default_rng(0)
    label = (random.random(50_000) < 0.01).astype(np.int8)
    logit = 2.0 * label + random.normal(size=50_000) + 3.0
    assert abs(LogitCalibration.fit(logit, label).apply(logit).mean() - label.mean()) < 0.001
