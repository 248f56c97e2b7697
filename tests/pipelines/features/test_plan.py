"""What a plan refuses, what it costs, and what its digest covers."""

import pytest

from pipelines.contracts.stream import Feature
from pipelines.errors import StreamFileError
from pipelines.features.plan import FeaturePlan, Panes

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def customer(stat: str, window_ms: int | None = HOUR_MS, *, field: str | None = None) -> Feature:
    return Feature(f"customer.{stat}.{field}.{window_ms}", stat, "customer", field, window_ms)


@pytest.mark.parametrize(
    ("feature", "complaint"),
    [
        (customer("median", field="amount"), "stat must be one of count, distinct"),
        (Feature("x", "count", "card", None, HOUR_MS), "entity must be one of customer"),
        (customer("sum", field="country"), "field must be one of the numbers amount"),
        (customer("distinct", field="amount"), "field must be one of country"),
        (customer("count", field="amount"), "count takes no field"),
        (customer("distinct", None, field="country"), "distinct has no all-time form, give it a window"),
        (customer("since_last"), "since_last takes no window"),
        (customer("fraud_rate"), "fraud_rate needs a maturity"),
        (customer("count", 100), "must be a whole multiple of 12 ms, however: 100 ms; take 96 ms"),
    ],
)
def test_a_feature_that_cannot_be_computed_is_refused_with_its_reason(feature: Feature, complaint: str) -> None:
    with pytest.raises(StreamFileError, match=complaint):
        FeaturePlan.of([feature], entities=["customer"], numbers=["amount"], hashed=["country"], maturity_ms=None)


def test_panes_are_finer_for_shorter_windows() -> None:
    assert [Panes.of(ms).count for ms in (HOUR_MS, DAY_MS, 7 * DAY_MS, 30 * DAY_MS)] == [12, 24, 28, 30]


def test_a_plan_says_what_an_entity_costs_and_when_it_is_forgotten() -> None:
    features = [
        customer("count"),
        Feature("terminal.fraud_rate.1d", "fraud_rate", "terminal", None, DAY_MS),
        Feature("card.mean.all", "mean", "card", "amount", None),
    ]
    plan = FeaturePlan.of(
        features, entities=["customer", "terminal", "card"], numbers=["amount"], hashed=[], maturity_ms=DAY_MS
    )
    assert plan.bytes_per_entity == (8 * (3 + 2 + 14), 8 * (3 + 1 + 24 + 24 + 2), 8 * (3 + 3))
    assert plan.idle_ms == (HOUR_MS + HOUR_MS // 12, 2 * DAY_MS + 2 * HOUR_MS, 400 * DAY_MS)
    assert plan.lifetime_ms == plan.idle_ms  # no entity has windows and all-time features
    assert plan.bytes_per_dormant == (0, 0, 0)


def test_lifetime_facts_are_kept_for_as_long_as_was_said_and_at_least_as_long_as_the_windows() -> None:
    features = [customer("count"), customer("mean", None, field="amount")]

    def plan(lifetime_ms: int) -> FeaturePlan:
        return FeaturePlan.of(
            features, entities=["customer"], numbers=["amount"], hashed=[], maturity_ms=None, lifetime_ms=lifetime_ms
        )

    assert plan(DAY_MS).lifetime_ms == (DAY_MS,)
    assert plan(HOUR_MS).lifetime_ms == plan(HOUR_MS).idle_ms == (HOUR_MS + HOUR_MS // 12,)
    assert plan(DAY_MS).bytes_per_dormant == (8 * (1 + 3 + 3),)
