"""Capacity, cases and money on small arrays: every fraud is caught, beyond the capacity or below the threshold."""

from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.backtesting.review import NEVER_MS, NO_CASE, Events, Review, by_capacity, daily, review, totals
from pipelines.contracts.stream import DAY_MS

START_MS = 20_000 * DAY_MS
HOUR_MS = 3_600_000


@st.composite
def reviewed(draw: st.DrawFn) -> tuple[Events, Review, np.ndarray]:
    """Events of up to four days, some alerts joined to an earlier one, some only listed; scores have ties."""
    n = draw(st.integers(1, 60))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    arrival_ms = START_MS + np.sort(random.integers(0, 4 * DAY_MS, n))
    score = (random.integers(0, 6, n) / 5).astype(np.float32)
    is_alert = score > draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    case = np.where(is_alert, np.arange(n), NO_CASE)
    for at in np.flatnonzero(is_alert):
        if draw(st.integers(0, 3)) == 0:
            earlier = np.unique(case[:at][case[:at] != NO_CASE])
            case[at] = random.choice([*earlier, NO_CASE])
    events = Events(
        arrival_ms=arrival_ms,
        time_ms=arrival_ms - random.integers(0, HOUR_MS, n),
        is_fraud=random.random(n) < 0.3,
        is_judged=random.random(n) < 0.8,
        reported_ms=np.where(random.random(n) < 0.5, arrival_ms + DAY_MS, NEVER_MS),
        value=random.random(n).round(2) * 100,
    )
    capacity = draw(st.none() | st.integers(1, 8))
    return events, review(score, is_alert, events.day, case=case, capacity=capacity), score


@given(reviewed())
def test_every_fraud_and_its_money_is_counted_once_and_no_day_has_more_reviews_than_people_have_time_for(made) -> None:
    events, found, score = made
    days = daily(events, found)
    assert (days["caught"] + days["beyond"] + days["below"]).equals(days["frauds"].rename("caught"))
    money = days["value_caught"] + days["value_beyond"] + days["value_below"]
    np.testing.assert_allclose(money, days["value"])
    assert days["frauds"].sum() == (events.is_fraud & events.is_judged).sum()
    assert (days["events"].sum(), days["alerts"].sum()) == (len(events), found.is_alert.sum())
    assert (days["right"] <= days["judged"]).all()
    assert (days["judged"] <= days["reviewed"]).all()
    expected = days["cases"] if found.capacity is None else days["cases"].clip(upper_bound=found.capacity)
    assert days["reviewed"].equals(expected.rename("reviewed"))
    assert days["reported"].is_sorted()
    figures = totals(events, found, days, score)
    assert figures["caught"] == days["caught"].sum()
    assert figures["lead_hours"] in (None, 24.0)


@given(reviewed())
def test_a_higher_capacity_reviews_the_same_cases_and_more(made) -> None:
    _, found, _ = made
    before = np.zeros(len(found.case), bool)
    for capacity in (1, 2, 3, 5, 100, None):
        now = Review(found.is_alert, found.case, found.rank, capacity).is_reviewed
        assert now[before].all()
        before = now
    assert np.array_equal(before, found.case != NO_CASE)


@given(reviewed())
def test_the_curve_of_capacities_says_what_each_capacity_would_do(made) -> None:
    events, found, score = made
    for row in by_capacity(events, found).rows(named=True):
        with_it = Review(found.is_alert, found.case, found.rank, row["capacity"])
        figures = totals(events, with_it, daily(events, with_it), score)
        assert row["caught"] == figures["caught"]
        assert row["reviewed"] == figures["reviewed_per_day"]
        assert figures["precision"] == (None if np.isnan(row["precision"]) else pytest.approx(row["precision"]))


def test_of_equal_scores_the_earlier_case_is_reviewed_first_and_each_day_begins_anew() -> None:
    score = np.array([0.7, 0.9, 0.9, 0.9, 0.2, 0.6], np.float32)
    day = np.array([0, 0, 0, 0, 1, 1])
    found = review(score, score > 0.5, day, capacity=2)
    assert found.rank.tolist() == [4, 1, 2, 3, 0, 1]
    assert found.is_reviewed.tolist() == [False, True, True, False, False, True]


def test_an_alert_that_joins_a_case_is_reviewed_with_it_and_one_that_is_only_listed_never() -> None:
    """Day 1: a case of two alerts, the second of which is the fraud. Day 2: a fraud that is only listed."""
    hour = np.array([1, 2, 3, 30])
    events = Events(
        arrival_ms=START_MS + hour * HOUR_MS,
        time_ms=START_MS + hour * HOUR_MS - 5_000,
        is_fraud=np.array([False, False, True, True]),
        is_judged=np.ones(4, bool),
        reported_ms=np.array([0, 0, START_MS + 50 * HOUR_MS, START_MS + 31 * HOUR_MS]),
        value=np.array([1.0, 2.0, 30.0, 400.0]),
    )
    score = np.array([0.9, 0.8, 0.7, 0.95], np.float32)
    found = review(score, score > 0.5, events.day, case=np.array([0, 1, 0, NO_CASE]), capacity=1)
    days = daily(events, found)
    assert days.rows(named=True) == [
        {
            "day": date(2024, 10, 4), "events": 3, "final": 3, "alerts": 3, "cases": 2, "reviewed": 1,
            "judged": 1, "right": 1, "frauds": 1, "caught": 1, "beyond": 0, "below": 0, "reported": 0,
            "value": 30.0, "value_caught": 30.0, "value_beyond": 0.0, "value_below": 0.0,
        },
        {
            "day": date(2024, 10, 5), "events": 1, "final": 1, "alerts": 1, "cases": 0, "reviewed": 0,
            "judged": 0, "right": 0, "frauds": 1, "caught": 0, "beyond": 1, "below": 0, "reported": 1,
            "value": 400.0, "value_caught": 0.0, "value_beyond": 400.0, "value_below": 0.0,
        },
    ]  # fmt: skip
    figures = totals(events, found, days, score)
    assert [figures[k] for k in ("lead_hours", "delay_s", "precision", "recall")] == [47.0, 5.0, 1.0, 0.5]
    assert figures["value_per_review"] == 30.0
    assert figures["value_recall"] == pytest.approx(30 / 430)


def test_an_event_without_a_final_label_is_work_and_nothing_else() -> None:
    at = np.array([START_MS])
    yes, no = np.array([True]), np.array([False])
    events = Events(at, at, is_fraud=yes, is_judged=no, reported_ms=at)
    found = review(np.array([0.9], np.float32), yes, events.day)
    days = daily(events, found)
    assert days.select("reviewed", "judged", "frauds", "caught").rows() == [(1, 0, 0, 0)]
    assert totals(events, found, days, np.array([0.9], np.float32))["precision"] is None
