"""What the lanes must survive: records too large for their topics, topics that take nothing, successors, bugs."""

import hashlib
import time
from datetime import timedelta
from pathlib import Path

import pytest

from pipelines.contracts.contract import Refusal
from pipelines.contracts.messages import (
    MAX_KEY_BYTES,
    MAX_TEXT,
    Reason,
    RecordSource,
    Score,
    encode,
    refused_of,
)
from pipelines.errors import BrokerError, FencedError, InternalError, RejectedError, TooLargeError
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import TransactionalWriter
from pipelines.live import lane as lane_module
from pipelines.live.alert_records import alert_of
from pipelines.live.lane import Lane
from pipelines.live.outbox import Put
from pipelines.model import Explained
from tests.patience import wait_until
from tests.pipelines.live.rig import Rig, Running, broken_events, claim_of, lane_of, running

SECOND = timedelta(seconds=1)


@pytest.fixture
def rig(kafka: str, tmp_path: Path) -> Rig:
    return Rig(kafka, tmp_path)


def test_a_key_of_a_megabyte_is_a_dead_letter_like_any_other(rig: Rig) -> None:
    key = b"k" * 1_000_000
    rig.send(5)
    rig.send_raw(b'{"id": "big", "at": 1, "card": "c", "amount": 1}', key)
    rig.send(5)
    with running(rig.scorer(stall_deadline=300 * SECOND)):
        rig.wait_until_out()
    (letter,) = rig.refused()
    assert (letter.rule, letter.key_bytes, letter.key_sha256) == (
        "wrong_key",
        1_000_000,
        hashlib.sha256(key).hexdigest(),
    )
    (record,) = rig.published("refused")
    assert record.key == key[:MAX_KEY_BYTES]
    assert len(rig.scores()) == 10


def test_whatever_an_event_holds_what_goes_out_is_bounded() -> None:
    text = "\x01" * 500_000
    source = RecordSource("events", 0, 0)
    score = Score(
        event_id="e", score=1.0, alert=True, model="m", source=source, event_time="", arrival="", late_ms=0,
        out_of_order=False, features_hash="0",
    )  # fmt: skip

    class Why:
        reasons = (Reason(field="a", actual=text, expected=text, surprise=1.0, score_if_expected=0.0),)
        score_if_all_expected = 0.0

    why: Explained = Why()
    alert = alert_of(score, threshold=0.5, entities={"c": text}, explained=why, features={"a": text, "b": 1})
    letter = refused_of(Refusal("bad_json", text), source, text.encode(), key=text.encode())
    assert len(encode(alert)) < 40 * MAX_TEXT
    assert len(encode(letter)) < 40 * MAX_TEXT
    assert alert.features["b"] == 1


def test_what_a_topic_refuses_for_its_size_goes_out_without_its_raw_bytes(kafka: str, tmp_path: Path) -> None:
    rig = Rig(kafka, tmp_path, configs={"refused": {"max.message.bytes": "1500"}})
    rig.send(10)
    rig.send_raw(b"{" + b"x" * 1_900, b"c0")
    rig.send_raw(b"{", b"c0")
    rig.send(10)
    with running(rig.scorer(stall_deadline=300 * SECOND)) as run:
        rig.wait_until_out()
        assert sum(lane.n_shortened for lane in run.scorer.lanes) == 1
    letters = sorted(rig.refused(), key=lambda letter: letter.raw_bytes)
    assert [(letter.raw_bytes, letter.raw_base64) for letter in letters] == [(1, "ew=="), (1_901, "")]
    assert sorted(score["event_id"] for score in rig.scores()) == sorted(
        {f"e{n}" for n in (*range(10), *range(12, 22))}
    )


def test_where_not_even_a_score_fits_its_event_becomes_a_dead_letter(kafka: str, tmp_path: Path) -> None:
    rig = Rig(kafka, tmp_path, configs={"scores": {"max.message.bytes": "100"}})
    rig.send(3)
    with running(rig.scorer(stall_deadline=300 * SECOND)):
        rig.wait_until_out()
    assert [letter.rule for letter in rig.refused()] == ["unpublishable"] * 3
    assert not rig.scores()


def test_where_no_dead_letter_fits_either_the_scorer_ends_and_says_which_setting_is_wrong(
    kafka: str, tmp_path: Path
) -> None:
    rig = Rig(kafka, tmp_path, configs={kind: {"max.message.bytes": "100"} for kind in ("scores", "refused")})
    rig.send(1)
    run = Running(rig.scorer())
    run.join()
    assert isinstance(run.error, TooLargeError), run.error
    assert "raise max.message.bytes of its topic" in str(run.error)


def test_what_no_retry_cures_is_not_tried_again(rig: Rig) -> None:
    rig.send(1)
    scorer = rig.scorer()
    for lane in scorer.lanes:

        def refuse(*_: object, **__: object) -> None:
            raise RejectedError("not allowed to write")

        lane._writer.commit = refuse  # type: ignore[method-assign]
    run = Running(scorer)
    run.join()
    assert isinstance(run.error, RejectedError)
    assert sum(lane.n_rebuilt for lane in scorer.lanes) == 0


def test_a_lane_that_gets_nothing_out_turns_health_red_and_then_ends_the_scorer(rig: Rig) -> None:
    scorer = rig.scorer(stall_deadline=4 * SECOND, health_after=SECOND)
    topics.delete_topics(rig.connection, [rig.stream.topic("scores")])
    run = Running(scorer)
    time.sleep(1.5)
    assert scorer.health == "ok"  # nothing to do is no stall
    rig.send(10)
    wait_until(lambda: scorer.health != "ok")
    assert "stalled since" in scorer.health
    assert "publishing partition" in scorer.health
    run.join()
    assert type(run.error) is BrokerError, run.error
    assert "no progress for 4 s" in str(run.error)


def test_a_rebuild_gives_up_after_the_deadline(rig: Rig) -> None:
    lane = lane_of(rig, "a", stall_deadline_s=1.0)
    lane.claim(claim_of("a"))

    def never(asked: Connection | None = None) -> TransactionalWriter:
        raise BrokerError("no Kafka")

    lane._open = never  # type: ignore[assignment,method-assign]
    with pytest.raises(BrokerError, match=r"nothing could be published for 1 s \(no Kafka\); nothing is lost"):
        lane._rebuild(BrokerError("the link is down"))
    lane.stop()


def test_a_rebuild_fences_no_successor(rig: Rig) -> None:
    old = lane_of(rig, "old")
    old.claim(claim_of("old"))
    new = lane_of(rig, "new")
    new.claim(claim_of("new"))
    with pytest.raises(FencedError, match="another scorer has taken over"):
        old._rebuild(BrokerError("no answer, as after a long stop"))
    new.claim(claim_of("new"))
    for lane in (old, new):
        lane.stop()


def test_a_bug_in_a_lane_ends_the_scorer(rig: Rig) -> None:
    rig.send(1)
    scorer = rig.scorer()

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    scorer.model.score = broken  # type: ignore[method-assign,assignment]
    run = Running(scorer)
    run.join()
    assert isinstance(run.error, ZeroDivisionError)


def test_a_lane_whose_thread_is_gone_ends_the_scorer(rig: Rig) -> None:
    scorer = rig.scorer()
    scorer.lanes[1]._run = lambda: None  # type: ignore[method-assign]
    run = Running(scorer)
    run.join()
    assert isinstance(run.error, InternalError)
    assert "the thread of partition 1 ended" in str(run.error)


def fenced_in_the_middle(rig: Rig) -> tuple[Lane, Lane]:
    """A running lane whose producer was fenced by a successor that has not claimed the partition yet."""
    old = lane_of(rig, "old")
    old.claim(claim_of("old"))
    old.start()
    new = lane_of(rig, "new")
    old.outbox.put(Put(broken_events(rig.stream, 0, 1), [], {"events": [1, 0]}))
    wait_until(lambda: old.n_rebuilt == 1)
    return old, new


def test_a_fenced_lane_leaves_its_successor_time_to_claim(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "CLAIM_S", 10 * lane_module.CLAIM_S)  # a busy machine claims late
    old, new = fenced_in_the_middle(rig)
    time.sleep(1.5)
    new.claim(claim_of("new"))  # were the old lane to open a producer, this would be fenced
    wait_until(lambda: old.failure is not None)
    assert isinstance(old.failure, FencedError)
    for lane in (old, new):
        lane.stop()


def test_a_stopping_lane_never_fences_its_successor(rig: Rig) -> None:
    old, new = fenced_in_the_middle(rig)
    old.stop()
    assert isinstance(old.failure, FencedError)
    new.claim(claim_of("new"))
    new.stop()


def test_a_scorer_that_is_fenced_while_it_stops_ends_without_an_error(rig: Rig) -> None:
    rig.send(20)
    with running(rig.scorer()) as first:
        rig.wait_until_out()
        time.sleep(0.3)
        successors = [
            rig.connection.transactional_writer(f"unmask.{rig.stream.topics}.{lane.partition}")
            for lane in first.scorer.lanes
        ]
        rig.send(20)
        wait_until(lambda: any(lane.n_rebuilt for lane in first.scorer.lanes))
    for writer in successors:
        writer.commit([])  # nobody has fenced them
        writer.close()
    assert len(rig.scores()) == 20
