"""Few labels never make the score worse than the label-free one that it starts from."""

import pytest

from flows.streams import shipped
from pipelines.contracts.stream import DAY_MS
from tests.detection.draws import N_DRAWS, Draws, not_below, simulated
from tests.detection.logins import START_MS


@pytest.fixture(scope="module")
def draws() -> Draws:
    return Draws(simulated(seed=21), shipped.load("payments"), START_MS + 45 * DAY_MS, START_MS + 60 * DAY_MS)


@pytest.mark.parametrize("n_frauds", [5, pytest.param(50, marks=pytest.mark.bench)])
def test_draws_of_few_labels_are_not_below_the_label_free_score(draws: Draws, n_frauds: int) -> None:
    results = list(draws.results(n_frauds, N_DRAWS))
    assert not_below(results) >= N_DRAWS - 1, results
