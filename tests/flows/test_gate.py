import numpy as np

from flows import gate
from flows.gate import Comparison, Figures
from models.score.budget import DAY_MS, Budget


def test_figures_come_back_from_their_tags_and_others_are_none() -> None:
    figures = Figures(100, 10_000, 0.004, 0.005, {"label_free": Comparison(0.7, 0.4, 100)})
    tags = figures.tags()
    assert tags["gate_frauds"] == "100"
    assert Figures.of_tags(tags | {"digest": "abc"}) == figures
    for odd in ({}, {"gate_frauds": "x"}, {"gate_comparisons": "7"}, {"gate_comparisons": '{"label_free": {"a": 1}}'}):
        assert Figures.of_tags(tags | odd if odd else {}) is None


def test_the_newest_labels_and_the_newest_events_are_kept_back() -> None:
    known = np.arange(1000) < 600
    slices = gate.keep_back(known)
    assert np.flatnonzero(slices.labelled).tolist() == list(range(540, 600))
    assert np.flatnonzero(slices.newest).tolist() == list(range(900, 1000))
    assert not gate.keep_back(np.zeros(1000, bool)).labelled.any()


def test_what_each_budget_allows_and_what_alerts_cost() -> None:
    time_ms = np.linspace(0, 2 * DAY_MS, 1000).astype(np.int64)
    shares = [
        gate.allowed_share(budget, time_ms, validation_alert_rate=0.03)
        for budget in (Budget(rate=0.01), Budget(per_day=20), Budget(per_day=1e6), Budget(cost=(9.0, 1.0)))
    ]
    assert shares == [0.01, 0.04, 1.0, 0.03]
    scores, label = np.array([0.1, 0.9, 0.8, 0.2]), np.array([0, 1, 0, 1], np.int8)
    assert gate.cost_of(Budget(rate=0.01), scores, label, 0.5) == {}
    assert gate.cost_of(Budget(cost=(9.0, 1.0)), scores, label, 0.5) == {
        "ours": 11.0,
        "no_alert": 18.0,
        "all_alert": 4.0,
    }
