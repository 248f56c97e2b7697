"""Budgets as text, and thresholds from what was known before the period."""

import numpy as np
import pytest

from flows.backtesting.budgets import Window, budget_of
from models.score.budget import BudgetError
from pipelines.contracts.stream import DAY_MS
from pipelines.errors import UnmaskError


@pytest.mark.parametrize(
    "text", ["", "own", "40", "1.5", "40/week", "cost:100", "cost:200:5:0.1:9", "cost:a:b", "-1/day"]
)
def test_a_budget_that_is_not_one_says_what_to_write(text: str) -> None:
    with pytest.raises((UnmaskError, BudgetError), match=r"cost:200:5|must be"):
        budget_of(text)


def test_thresholds_are_set_by_the_events_of_the_window_and_the_labels_known_at_its_end() -> None:
    clock_ms = np.arange(100) * DAY_MS // 10
    score = (np.arange(100) / 100).astype(np.float32)
    label, known = (np.arange(100) >= 97).astype(np.int8), np.arange(100) < 99
    window = Window(0, 10 * DAY_MS, clock_ms, label, known)

    def raised(text: str, since_ms: int) -> int:
        budget = budget_of(text)
        assert budget is not None
        part = window.since(since_ms, clock_ms)
        return int((score[100 - len(part.time_ms) :] > part.threshold(budget, score[100 - len(part.time_ms) :])).sum())

    assert raised("0.05", 0) == 5
    assert raised("0.1", 5 * DAY_MS) == 5  # of the last fifty only
    assert raised("2/day", 0) == 18  # of nine full days
    assert raised("cost:200:5", 0) == 3  # the two known frauds, and the unknown one above them
