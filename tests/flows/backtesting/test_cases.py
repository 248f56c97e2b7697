"""Alerts of one key within the time of the stream file are one case, as the scorer publishes them."""

from types import SimpleNamespace

import msgspec
import numpy as np

from flows.backtesting.cases import cases_of, warm_up_ms
from flows.streams.shipped import load
from pipelines.contracts.stream import DAY_MS, StormRules

MINUTE_MS = 60_000


def cases(rules: StormRules, minutes: list[int], entities: list[int], scores: list[float]) -> list[int]:
    stream = msgspec.structs.replace(load("payments"), storms=rules)
    n = len(minutes)
    clock_ms = 20_000 * DAY_MS + np.array(minutes) * MINUTE_MS
    table = SimpleNamespace(
        partition=np.zeros(n, np.int32), offset=np.arange(n), entity=np.array(entities, np.uint64),
        time_ms=clock_ms, clock_ms=clock_ms,
    )  # fmt: skip
    score = np.array(scores, np.float32)
    return cases_of(stream, table, range(n), score, score > 0.5).tolist()  # type: ignore[arg-type]


def test_without_rules_each_alert_is_a_case() -> None:
    assert cases(StormRules(), [0, 1, 2], [7, 7, 7], [0.9, 0.1, 0.8]) == [0, -1, 2]


def test_a_group_takes_the_alerts_of_its_key_until_its_time_is_over() -> None:
    rules = StormRules(within_ms=60 * MINUTE_MS)
    assert cases(rules, [0, 10, 20, 59, 60, 61], [7, 8, 7, 7, 7, 8], [0.9] * 6) == [0, 1, 0, 0, 4, 1]


def test_beyond_the_cap_an_alert_is_only_listed_but_joins_an_open_group() -> None:
    rules = StormRules(within_ms=60 * MINUTE_MS, per_day=2)
    assert cases(rules, [0, 1, 2, 3, 1_441], [1, 2, 3, 1, 3], [0.9] * 5) == [0, 1, -1, 0, 4]


def test_groups_and_caps_are_followed_from_before_the_period() -> None:
    stream = load("payments")
    noon = 20_000 * DAY_MS + DAY_MS // 2
    assert warm_up_ms(stream, noon) == noon
    capped = msgspec.structs.replace(stream, storms=StormRules(per_day=2))
    assert warm_up_ms(capped, noon) == 20_000 * DAY_MS
    grouped = msgspec.structs.replace(stream, storms=StormRules(within_ms=2 * DAY_MS))
    assert warm_up_ms(grouped, noon) == noon - 2 * DAY_MS
