"""A challenger in shadow scores what was published from the same features, and whatever it does holds up nothing."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.kafka import topics
from pipelines.kafka.topics import KEEP_FOR_EVER
from pipelines.live import shadow as shadows
from pipelines.live.serving import Serving
from pipelines.live.shadow import Shadow
from tests.patience import wait_until
from tests.pipelines.live.live_scorer import Linear
from tests.pipelines.live.rig import N_PARTITIONS, Rig, running


class Challenger(Linear):
    """A linear model of another name."""

    digest = "challenger-1"

    def score(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> NDArray[np.float32]:
        return super().score(numeric, categorical) / np.float32(2)


@pytest.fixture
def rig(kafka: str, tmp_path: Path) -> Rig:
    rig = Rig(kafka, tmp_path)
    topics.create_topics(rig.connection, {rig.stream.topic("shadow"): N_PARTITIONS}, config=KEEP_FOR_EVER)
    return rig


def serving_with(rig: Rig, challenger: Linear | None) -> tuple[Serving, Shadow]:
    serving = Serving(Linear(rig.stream))
    serving.shadow = shadow = Shadow(rig.connection, rig.stream)
    shadow.use(challenger)
    return serving, shadow


def in_shadow(rig: Rig) -> list[dict[str, Any]]:
    return [json.loads(line) for record in rig.published("shadow") for line in (record.value or b"").splitlines()]


def test_the_same_events_are_scored_in_shadow_from_the_same_features(rig: Rig) -> None:
    serving, shadow = serving_with(rig, Challenger(rig.stream))
    with running(rig.scorer(serving=serving)):
        rig.send(1_500)
        rig.send_raw(b"{", b"c")
        rig.wait_until_out()
        wait_until(lambda: shadow.n_scored >= 1_500, seen=lambda: shadow.n_scored)
        shadow.use(None)
        rig.send(100)
        rig.wait_until_out()
    shadow.stop()
    scores = {score["event_id"]: score for score in rig.scores()}
    found = in_shadow(rig)
    assert len(found) == len({one["event_id"] for one in found}) == 1_500
    assert {one["model"] for one in found} == {"challenger-1"}
    for one in found:
        other = scores[one["event_id"]]
        assert (one["features_hash"], one["source"]) == (other["features_hash"], other["source"])
        assert np.float32(one["score"]) == np.float32(other["score"]) / 2
    assert (shadow.n_dropped, shadow.n_failed) == (0, 0)


class Failing(Challenger):
    """A challenger that cannot score."""

    def score(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> NDArray[np.float32]:
        raise ValueError("no")


def test_a_challenger_that_fails_is_counted_and_costs_no_score(rig: Rig) -> None:
    serving, shadow = serving_with(rig, Failing(rig.stream))
    with running(rig.scorer(serving=serving)):
        rig.send(300)
        rig.wait_until_out()
        wait_until(lambda: shadow.n_failed == 300, seen=lambda: shadow.n_failed)
        shadow.use(Challenger(rig.stream))
        rig.send(50)
        rig.wait_until_out()
        wait_until(lambda: shadow.n_scored == 50, seen=lambda: shadow.n_scored)
    shadow.stop()
    assert len(rig.scores()) == 350
    assert len(in_shadow(rig)) == 50


class Hanging(Challenger):
    """A challenger that does not answer until it is let go."""

    def __init__(self, rig: Rig) -> None:
        super().__init__(rig.stream)
        self.go = threading.Event()

    def score(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> NDArray[np.float32]:
        self.go.wait()
        return super().score(numeric, categorical)


def test_a_challenger_that_hangs_holds_up_nothing_and_what_it_misses_is_counted(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shadows, "MAX_WAITING", 200)
    hanging = Hanging(rig)
    serving, shadow = serving_with(rig, hanging)
    with running(rig.scorer(serving=serving)):
        for _ in range(10):
            rig.send(100)
            rig.wait_until_out()
        assert shadow.n_dropped >= 800
        hanging.go.set()
        wait_until(lambda: shadow.n_scored + shadow.n_dropped == 1_000, seen=lambda: shadow.n_scored)
    shadow.stop()
    assert len(rig.scores()) == 1_000
    assert len(in_shadow(rig)) == shadow.n_scored == 1_000 - shadow.n_dropped
    assert sum("the challenger is too slow" in message for message in caplog.messages) == 1


def test_scores_that_the_broker_does_not_take_are_counted(kafka: str, tmp_path: Path) -> None:
    rig = Rig(kafka, tmp_path)
    small = {rig.stream.topic("shadow"): N_PARTITIONS}
    topics.create_topics(rig.connection, small, config=KEEP_FOR_EVER | {"max.message.bytes": "1000"})
    serving, shadow = serving_with(rig, Challenger(rig.stream))
    with running(rig.scorer(serving=serving)):
        rig.send(400)
        rig.wait_until_out()
        wait_until(lambda: shadow.n_failed + shadow.n_scored == 400, seen=lambda: shadow.n_failed)
    shadow.stop()
    assert shadow.n_failed > 0
    assert len(rig.scores()) == 400
