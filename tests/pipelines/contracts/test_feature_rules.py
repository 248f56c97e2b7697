"""Which features can be computed, and how windows are cut."""

import pytest

from pipelines.contracts.feature_rules import Panes, WindowError, fault_of
from pipelines.contracts.stream import (
    ALL_TIME_STATS,
    HASHED_STATS,
    LABEL_STATS,
    LAST_STATS,
    LEGIT_STATS,
    LIFETIME_STATS,
    NO_WINDOW_STATS,
    STATS,
    VALUE_STATS,
    Feature,
    Reports,
)

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def customer(stat: str, window_ms: int | None = HOUR_MS, *, field: str | None = None, last: int = 0) -> Feature:
    return Feature("", stat, "customer", field, window_ms, last=last)


def fault(feature: Feature, *, reports: Reports | None = None) -> str:
    hashed = ["country", "customer", "shop"]
    return str(fault_of(feature, entities=["customer", "shop"], numbers=["amount"], hashed=hashed, reports=reports))


@pytest.mark.parametrize(
    ("feature", "said"),
    [
        (customer("median", field="amount"), "stats is 'median', which is not a statistic; known names: count, sin"),
        (Feature("x", "count", "card", None, HOUR_MS), "entity is 'card', which is not an entity; it must be one of"),
        (customer("sum", field="country"), "field is 'country', which is not a number; it must be a field of type in"),
        (customer("sum"), "field is missing; it must be a field of type int"),
        (customer("distinct", field="amount"), "field is 'amount', which cannot be counted; it must be a category or"),
        (customer("distinct", field="customer"), "field is 'customer', which cannot be counted; it must be a categor"),
        (customer("count", field="amount"), "field is 'amount', which is not used; count does not take a field"),
        (customer("distinct", None, field="country"), "windows is 'all', which distinct does not have; it needs a wi"),
        (customer("share", field="country"), "windows is '3600000ms', which share does not have; its only window is "),
        (customer("share", None, field="amount"), "field is 'amount', which cannot be counted; it must be a category"),
        (customer("hour_share", None, field="amount"), "field is 'amount', which is not used; hour_share does not ta"),
        (customer("since_last"), "windows is '3600000ms', which is not used; since_last takes no window"),
        (customer("last_age", last=1), "windows is '3600000ms', which is not used; last_age takes no window"),
        (customer("last_value", None, field="country", last=1), "field is 'country', which is not a number; it must b"),
        (customer("last_hour", None), "last is missing; last_hour needs it, as in last = 4"),
        (customer("fraud_rate"), "stats is 'fraud_rate', which needs labels; add a [labels] table"),
        (customer("count", 101), "windows is '101ms', which cannot be cut evenly; it must be a whole number of milli"),
    ],
)
def test_a_feature_that_cannot_be_computed_is_at_fault(feature: Feature, said: str) -> None:
    assert fault(feature).startswith(said)


@pytest.mark.parametrize("stat", STATS)
def test_every_statistic_has_a_form_that_can_be_computed(stat: str) -> None:
    field = "amount" if stat in VALUE_STATS else "shop" if stat in HASHED_STATS else None
    window_ms = None if stat in (*NO_WINDOW_STATS, *LIFETIME_STATS) else DAY_MS
    reports: Reports | None = "both" if stat in LEGIT_STATS else "frauds" if stat in LABEL_STATS else None
    last = 1 if stat in LAST_STATS else 0
    assert fault(customer(stat, window_ms, field=field, last=last), reports=reports) == "None"
    all_time = fault(customer(stat, None, field=field, last=last), reports="both")
    assert (all_time == "None") == (stat in (*ALL_TIME_STATS, *NO_WINDOW_STATS))


@pytest.mark.parametrize("stat", LEGIT_STATS)
def test_what_is_known_legitimate_needs_reports_of_it(stat: str) -> None:
    said = f'stats is {stat!r}, which needs reports of legitimate events; set reports = "both" in [labels]'
    assert fault(customer(stat, None), reports="frauds").startswith(said)


def test_panes_are_finer_for_shorter_windows() -> None:
    assert [Panes.of(ms).count for ms in (HOUR_MS, DAY_MS, 7 * DAY_MS, 30 * DAY_MS)] == [12, 24, 28, 30]


def test_every_window_of_whole_seconds_can_be_cut() -> None:
    windows = [*range(1, 4000), *range(86_000, 90_000), *(86_400 * days for days in range(1, 3661))]
    for seconds in windows:
        panes = Panes.of(1000 * seconds)
        assert panes.count * panes.width_ms == 1000 * seconds
        assert 6 <= panes.count <= 30


@pytest.mark.parametrize(("window_ms", "near_ms"), [(1, 12), (0, 12), (-5, 12), (101, 96), (HOUR_MS + 7, 3_600_000)])
def test_a_window_that_cannot_be_cut_names_one_that_can(window_ms: int, near_ms: int) -> None:
    with pytest.raises(WindowError, match=f'such as "{near_ms}ms"'):
        Panes.of(window_ms)
    assert Panes.of(near_ms)
