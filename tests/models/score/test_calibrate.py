from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.score.budget import DAY_MS, Budget, BudgetError, threshold_for
from models.score.calibrate import LogitCalibration, TailCalibration
from models.score.prior import Prior

Period = tuple[NDArray[np.float32], NDArray[np.int64]]
SECOND_MS = 1000


@st.composite
def periods(draw: st.DrawFn) -> Period:
    """Scores, many of them equal, and event times over seconds to months."""
    n = draw(st.integers(1, 200))
    levels = draw(st.sampled_from([2, 5, 1000]))
    found = np.array(draw(st.lists(st.integers(0, levels), min_size=n, max_size=n)), np.float32) / np.float32(levels)
    length = draw(st.sampled_from([0, SECOND_MS, 3_600_000, DAY_MS - 1, DAY_MS, 3 * DAY_MS, 90 * DAY_MS]))
    times = draw(st.lists(st.integers(0, length), min_size=n, max_size=n))
    start = draw(st.integers(0, 2_000_000_000_000))
    return found, start + np.sort(np.array(times, np.int64))


def full_days(time_ms: NDArray[np.int64]) -> tuple[NDArray[np.bool_], float]:
    """The events that count for `per_day`, and over how many days."""
    days = (time_ms[-1] - time_ms[0]) / DAY_MS
    if days < 1:
        return np.ones(len(time_ms), bool), float(days)
    return time_ms >= time_ms[-1] - int(days) * DAY_MS, int(days)


def check_lowest(found: NDArray[np.float32], threshold: float, allowed: float) -> None:
    """At most `allowed` alert, and with the events at the threshold it would be more."""
    assert (found > threshold).sum() <= allowed
    assert threshold == 0.0 or (found >= threshold).sum() > allowed


@given(periods(), st.floats(0.001, 0.9))
def test_no_more_than_the_budgeted_share_alerts(period: Period, rate: float) -> None:
    found, time_ms = period
    check_lowest(found, threshold_for(Budget(rate=rate), found, time_ms), rate * len(found))


@given(periods(), st.floats(0.1, 50))
def test_no_more_than_the_budgeted_number_a_day_alerts_however_short_the_period(period: Period, per_day: float) -> None:
    found, time_ms = period
    inside, days = full_days(time_ms)
    check_lowest(found[inside], threshold_for(Budget(per_day=per_day), found, time_ms), per_day * days)


@pytest.mark.parametrize(("hours", "alerts"), [(1, 2), (12, 25), (24, 50), (36, 50), (240, 500)])
def test_fifty_a_day_are_two_in_an_hour(hours: int, alerts: int) -> None:
    found = np.linspace(1, 0, 10_000, dtype=np.float32)  # the highest come first: in 36 hours before the full day
    time_ms = np.linspace(0, hours * 3_600_000, len(found)).astype(np.int64)
    threshold = threshold_for(Budget(per_day=50), found, time_ms)
    assert (found[full_days(time_ms)[0]] > threshold).sum() == alerts


def cost_of(
    found: NDArray[np.float32], fraud: NDArray[np.bool_], threshold: float, costs: tuple[float, float]
) -> float:
    missed, review = costs
    return missed * float((fraud & (found <= threshold)).sum()) + review * float((found > threshold).sum())


@given(periods(), st.data(), st.floats(0.1, 1000), st.floats(0.1, 1000))
def test_no_other_threshold_would_have_cost_an_event_less(
    period: Period, data: st.DataObject, missed: float, review: float
) -> None:
    found, time_ms = period
    n = len(found)
    n_known, n_frauds = (data.draw(st.integers(1, n)), data.draw(st.integers(1, n)))
    known, label = np.arange(n) < n_known, (np.arange(n) < n_frauds).astype(np.int8)
    order = np.array(data.draw(st.permutations(range(n))))
    found = found[order]
    threshold = threshold_for(Budget(cost=(missed, review)), found, time_ms, label, known)
    cost = cost_of(found[known], label[known] == 1, threshold, (missed, review))
    best = min(cost_of(found[known], label[known] == 1, cut, (missed, review)) for cut in (-1.0, *found.tolist()))
    assert cost <= best + 1e-6 * n * max(missed, review)


@given(periods(), st.data())
def test_an_event_that_stands_for_several_costs_as_much_as_these(period: Period, data: st.DataObject) -> None:
    found, time_ms = period
    n = len(found)
    label = np.array(data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)), np.int8)
    label[0], every = 1, np.ones(n, bool)
    times = np.array(data.draw(st.lists(st.integers(1, 9), min_size=n, max_size=n)))
    budget = Budget(cost=(8.0, 1.0))
    all_of_them = [np.repeat(part, times) for part in (found, time_ms, label, every)]
    weighted = threshold_for(budget, found, time_ms, label, every, times.astype(np.float64))
    assert weighted == threshold_for(budget, *all_of_them)


@given(periods(), st.floats(0.1, 1000), st.floats(0.1, 1000), st.floats(0.0001, 0.2))
def test_without_known_frauds_a_cost_budget_alerts_on_no_more_than_reviews_can_pay(
    period: Period, missed: float, review: float, fraud_rate: float
) -> None:
    found, time_ms = period
    threshold = threshold_for(Budget(cost=(missed, review), fraud_rate=fraud_rate), found, time_ms)
    alerts, frauds = float((found > threshold).sum()), fraud_rate * len(found)
    check_lowest(found, threshold, frauds * max((missed / review) ** 0.5 - 1, 0.0))
    assert alerts * review <= frauds * missed
    assert alerts * review <= (review / missed) ** 0.5 * frauds * missed


def test_a_cost_budget_without_known_frauds_or_a_stated_rate_is_refused() -> None:
    found, none = np.linspace(0, 1, 1000, dtype=np.float32), np.zeros(1000, bool)
    label = np.ones(1000, np.int8)
    budget = Budget(cost=(100.0, 5.0))
    with pytest.raises(BudgetError, match=r"cost = \{ missed = 100, review = 5, fraud_rate = 0.002 \}"):
        threshold_for(budget, found, np.zeros(1000, np.int64), label, none)
    threshold = threshold_for(replace(budget, fraud_rate=0.002), found, np.zeros(1000, np.int64), label, none)
    assert (found > threshold).mean() == 0.006  # 0.002 * (sqrt(20) - 1), where 0.95 alerted on ranks read as chances


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({}, "exactly one of rate, per_day and cost; none is given"),
        ({"rate": 0.1, "per_day": 3.0}, "exactly one .*; rate and per_day are given"),
        ({"rate": 5.0}, "rate is 5.0; it must be between 0 and 1"),
        ({"per_day": -1.0}, "per_day is -1.0; it must be greater than 0"),
        ({"cost": (0.0, 1.0)}, "both greater than 0"),
        ({"cost": (9.0, 1.0), "fraud_rate": 1.0}, "fraud_rate is 1.0 .* must be between 0 and 1"),
        ({"rate": 0.1, "fraud_rate": 0.1}, "cost is None; fraud_rate must be .* and needs a cost"),
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


def test_very_odd_events_keep_their_order_through_the_prior_and_the_probability() -> None:
    prior = Prior(LogitCalibration(1.0, -5.0), (0,), (0.5,))
    evidence = np.linspace(0.0, 60.0, 200)
    log_odds = prior.log_odds(evidence, np.full((200, 1), 0.0))
    assert log_odds == pytest.approx(evidence - 5.0, abs=1e-6)
    scores = LogitCalibration(1.0, 0.0).apply(log_odds).astype(np.float32)
    assert (np.diff(scores) > 0).all()
    assert scores[-1] < 1
    assert prior.log_odds(np.zeros(1), np.ones((1, 1)))[0] > log_odds[0] + 4, "a rate alone can be the cause"
