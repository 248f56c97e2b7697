"""The trial of a new model under load: planted bad ones with the right rate of alerts are returned, others stay."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.kafka.port import Message
from pipelines.live import trial
from pipelines.live.serving import Serving
from pipelines.live.trial import LEAST, finding
from tests.pipelines.live.live_scorer import Linear
from tests.pipelines.live.rig import Rig, running

RANDOM = np.random.default_rng(0)
Score = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


class Judging(Linear):
    """A model that scores by the amount and the number of pieces of an event; no threshold is above its scores."""

    threshold = 1.0

    def __init__(self, rig: Rig, digest: str, score: Score) -> None:
        super().__init__(rig.stream)
        self.digest, self._score = digest, score
        self._amount, self._pieces = (list(self.numeric_names).index(name) for name in ("amount", "pieces"))

    def score(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> NDArray[np.float32]:
        amount, pieces = np.nan_to_num(numeric[:, self._amount]), np.nan_to_num(numeric[:, self._pieces])
        return np.clip(self._score(amount, pieces), 0, 1).astype(np.float32)


def usual(amount: NDArray[np.float64], pieces: NDArray[np.float64]) -> NDArray[np.float64]:
    return amount / 2_000 + pieces / 10_000


BAD: dict[str, Score] = {
    "flipped": lambda amount, pieces: 1 - usual(amount, pieces),
    "constant": lambda amount, pieces: np.full(len(amount), 0.25),
    "leaking": lambda amount, pieces: pieces / 1_000,  # in training, the pieces told the label
    "stale": lambda amount, pieces: np.minimum(100 * amount, 1_500) / 2_000 + pieces / 10_000,  # amounts were euros
}


@pytest.fixture
def rig(kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(trial, "PER_S", 10**6)
    monkeypatch.setattr(trial, "ENOUGH", 6_000)
    return Rig(kafka, tmp_path)


def send(rig: Rig, n: int) -> None:
    """Events with amounts and pieces that know nothing of each other, until they are out."""
    with rig.connection.writer() as writer:
        for amount, pieces in zip(RANDOM.uniform(0, 1_000, n), RANDOM.integers(0, 1_000, n), strict=True):
            event = {"id": f"e{rig.n_sent}", "at": int(time.time() * 1000), "card": f"c{rig.n_sent % 50}"}
            event |= {"amount": round(float(amount), 3), "pieces": int(pieces)}
            writer.send(Message(rig.stream.topic("events"), json.dumps(event).encode(), str(event["card"]).encode()))
            rig.n_sent += 1
        writer.flush()
    rig.wait_until_out()


def compared(serving: Serving) -> None:
    if serving.trial is not None:
        serving.trial.compare()


def test_forced_bad_models_are_returned_although_they_raise_no_alert_more_or_less(rig: Rig) -> None:
    former, again = Judging(rig, "former", usual), Judging(rig, "again", lambda a, p: usual(a, 1.5 * p) ** 2)
    serving = Serving(former)
    scorer = rig.scorer(serving=serving)
    with running(scorer):
        send(rig, 100)
        for name, score in BAD.items():
            bad = Judging(rig, name, score)
            serving.swap(bad)
            before = rig.n_sent
            while name not in serving.refused and rig.n_sent - before < 10 * LEAST:
                send(rig, 1_000)
                compared(serving)
                send(rig, 50)  # the loop judges in its next step
            assert name in serving.refused
            assert serving.champion is former
        serving.swap(again)
        while serving.trial is not None and not serving.trial.is_over:
            send(rig, 1_000)
            compared(serving)
    assert serving.champion is again
    scores = rig.scores()
    assert len({score["event_id"] for score in scores}) == len(scores) == rig.n_sent


def test_a_model_after_one_on_trial_is_compared_with_the_last_one_that_passed(rig: Rig) -> None:
    first, bad, good = (Judging(rig, name, usual) for name in ("first", "bad", "good"))
    serving = Serving(first)
    serving.swap(bad)
    serving.swap(good)
    assert serving.trial is not None
    assert serving.trial.former is first
    assert serving.give_back() is None  # nothing is against it
    serving.trial.finding = "test"
    assert serving.give_back() == "good"
    assert serving.refused == {"good": "test"}
    assert (serving.champion, serving.previous, serving.trial.former) == (bad, first, first)  # its trial goes on
    serving.trial.finding = "test"
    assert serving.give_back() == "bad"
    assert serving.champion is first
    assert serving.previous is None


def test_it_does_not_go_back_to_a_model_that_was_returned_meanwhile(rig: Rig) -> None:
    first, bad, worse = (Judging(rig, name, usual) for name in ("first", "bad", "worse"))
    serving = Serving(first)
    serving.swap(bad)
    serving.swap(worse)
    serving.refused["bad"] = "by another replica"
    assert serving.trial is not None
    serving.trial.finding = "test"
    assert serving.give_back() == "worse"
    assert serving.champion is first


def test_what_is_offered_is_a_bounded_sample_and_waits_for_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "PER_S", 0)
    serving = Serving(Judging(rig, "first", usual))
    scorer = rig.scorer(serving=serving)
    with running(scorer):
        serving.swap(Judging(rig, "second", usual))
        send(rig, 500)
    compared(serving)
    assert serving.trial is not None
    assert serving.trial.n_compared == 0


@pytest.mark.parametrize(
    ("former", "new", "words"),
    [
        (np.linspace(0, 1, LEAST), np.full(LEAST, np.nan), "are no numbers"),
        (np.linspace(0, 1, LEAST), np.full(LEAST, 0.5), "the same score"),
        (np.linspace(0, 1, 9_000), RANDOM.random(9_000), "are among the top 90"),
        (np.full(LEAST, 0.5), RANDOM.random(LEAST), None),  # the former says nothing, so nothing is against the new one
        (np.linspace(0, 1, LEAST), np.round(np.linspace(0, 1, LEAST)), None),  # equal scores speak for it
        (np.linspace(0, 1, LEAST - 1), RANDOM.random(LEAST - 1), None),
    ],
)
def test_the_finding(former: NDArray[np.float64], new: NDArray[np.float64], words: str | None) -> None:
    found = finding(former.astype(np.float32), new.astype(np.float32))
    assert (found is None) == (words is None)
    assert (words or "") in (found or "")
