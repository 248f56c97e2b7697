"""What a plan refuses and what it costs."""

import pytest

from pipelines.contracts.stream import Feature
from pipelines.errors import StreamFileError
from pipelines.features.plan import FeaturePlan

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def customer(stat: str, window_ms: int | None = HOUR_MS, *, field: str | None = None) -> Feature:
    return Feature(f"customer.{stat}.{field}.{window_ms}", stat, "customer", field, window_ms)


def test_a_feature_that_cannot_be_computed_is_refused_with_its_name() -> None:
    with pytest.raises(StreamFileError, match=r"country\.3600000': field is 'country', which is not a num"):
        FeaturePlan.of(
            [customer("sum", field="country")],
            entities=["customer"], numbers=["amount"], hashed=["country"], maturity_ms=None,
        )  # fmt: skip


def test_a_plan_says_what_an_entity_costs_and_when_it_is_forgotten() -> None:
    features = [
        customer("count"),
        Feature("terminal.fraud_rate.1d", "fraud_rate", "terminal", None, DAY_MS),
        Feature("card.mean.all", "mean", "card", "amount", None),
    ]
    plan = FeaturePlan.of(
        features, entities=["customer", "terminal", "card"], numbers=["amount"], hashed=[], maturity_ms=DAY_MS
    )
    assert plan.row_bytes == (8 * (6 + 1), 8 * (6 + 1), 8 * (6 + 3))
    assert plan.block_bytes == (8 * 14, 8 * (24 + 24 + 2), 0)
    assert plan.idle_ms == (HOUR_MS + HOUR_MS // 12, 2 * DAY_MS + 2 * HOUR_MS, 400 * DAY_MS)
    assert plan.lifetime_ms == plan.idle_ms  # no entity has windows and all-time features


def test_lifetime_facts_are_kept_for_as_long_as_was_said_and_at_least_as_long_as_the_windows() -> None:
    features = [customer("count"), customer("mean", None, field="amount")]

    def plan(lifetime_ms: int) -> FeaturePlan:
        return FeaturePlan.of(
            features, entities=["customer"], numbers=["amount"], hashed=[], maturity_ms=None, lifetime_ms=lifetime_ms
        )

    assert plan(DAY_MS).lifetime_ms == (DAY_MS,)
    assert plan(HOUR_MS).lifetime_ms == plan(HOUR_MS).idle_ms == (HOUR_MS + HOUR_MS // 12,)
    assert plan(DAY_MS).row_bytes == (8 * (6 + 3 + 1),)
