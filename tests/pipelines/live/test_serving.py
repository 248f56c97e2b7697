"""A model that changes while events come: between two batches, each score names its model, bad ones are returned."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.kafka import topics
from pipelines.live import trial
from pipelines.live.control import Order, Orders, order_of, send_order
from pipelines.live.serving import MIN_SCORED, TRIAL_SCORED, Serving
from tests.patience import wait_until
from tests.pipelines.live.live_scorer import Linear
from tests.pipelines.live.rig import Rig, running


class Named(Linear):
    """A model by name that raises about `share` of the events."""

    def __init__(self, rig: Rig, digest: str, share: float = 0.005) -> None:
        super().__init__(rig.stream)
        self.digest, self.alert_rate, self.share, self._n = digest, 0.005, share, 0
        self.threshold = 0.5

    def score(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> NDArray[np.float32]:
        every = round(1 / self.share) if self.share else 10**9
        rows = np.arange(self._n, self._n + len(numeric))
        self._n += len(numeric)
        return np.where(rows % every == 0, 0.75, 0.25).astype(np.float32)


@pytest.fixture
def rig(kafka: str, tmp_path: Path) -> Rig:
    return Rig(kafka, tmp_path)


def test_models_change_under_load_and_every_event_is_scored_once_by_the_model_it_names(rig: Rig) -> None:
    scorer = rig.scorer()
    with running(scorer):
        for number in range(20):
            scorer.serving.swap(Named(rig, f"model-{number}"))
            rig.send(100)
            rig.wait_until_out()
    scores = rig.scores()
    assert len({score["event_id"] for score in scores}) == len(scores) == 2_000
    by_model = Counter(score["model"] for score in scores)
    assert set(by_model) >= {f"model-{number}" for number in range(20)}
    scores.sort(key=lambda score: (score["source"]["partition"], score["source"]["offset"]))
    models = [score["model"] for score in scores]
    changes = sum(a != b for a, b in pairwise(models))
    assert changes < 2 * 20 + 2  # in each partition a model is used until the next one is


@pytest.mark.parametrize("share", [0.5, 0.0])
def test_a_model_that_raises_far_too_many_or_no_alerts_is_returned(rig: Rig, share: float) -> None:
    good, bad = Named(rig, "good"), Named(rig, "bad", share)
    scorer = rig.scorer(model=good)
    with running(scorer):
        rig.send(1_000)
        rig.wait_until_out()
        scorer.serving.swap(bad)
        while scorer.model is bad:
            rig.send(500)
            rig.wait_until_out()
        rig.send(200)
        rig.wait_until_out()
    assert "raised an alert; expected are" in scorer.serving.refused["bad"]
    scores = rig.scores()
    assert len({score["event_id"] for score in scores}) == len(scores)
    assert scores[-1]["model"] == "good"
    assert sum(score["model"] == "bad" for score in scores) <= (3_000 if share else 8_000)


def test_a_model_with_the_usual_rate_stays_and_its_trial_ends(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "ENOUGH", 0)
    first, second = Named(rig, "first"), Named(rig, "second")
    serving = Serving(first)
    serving.count(first, 10_000, 60)
    serving.swap(second)
    serving.count(first, MIN_SCORED, MIN_SCORED)  # its last batches do not count for the second
    for _ in range(TRIAL_SCORED // 100):
        serving.count(second, 100, 1)
        assert serving.verdict() is None
    assert serving.previous is None
    serving.count(second, MIN_SCORED, MIN_SCORED)  # no longer on trial: its drift is for the monitor
    assert serving.verdict() is None


def test_orders_are_read_from_the_first_on_and_then_as_they_come(rig: Rig) -> None:
    topics.create_topics(rig.connection, {rig.stream.topic("control"): 1}, config=topics.KEEP_FOR_EVER)
    send_order(rig.connection, rig.stream, order_of("use", "a", why="promoted", by="ann"))
    orders = Orders(rig.connection, rig.stream)
    assert [order.digest for order in orders.past()] == ["a"]
    rig.send_raw(b"{", None, kind="control", partition=0)
    order = order_of("return", "a", why="too many alerts", by="replica", refused="b")
    send_order(rig.connection, rig.stream, order)
    found: list[Order] = []

    def has_come() -> bool:
        found.extend(orders.new())
        return bool(found)

    wait_until(has_come)
    assert [(order.kind, order.digest, order.refused) for order in found] == [("return", "a", "b")]
    orders.close()
