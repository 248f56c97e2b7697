"""A lane when the broker stands still: nothing is committed in silence, nothing is lost or doubled."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from flows.local.kafka_server import Broker
from pipelines.contracts.messages import encode
from pipelines.errors import BrokerError, InternalError, RestoreError
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Position
from pipelines.kafka.progress import read_progress, transactional_id
from pipelines.live.outbox import MAX_ROWS, Outbox, OutboxBatch, Put
from pipelines.live.owner import open_owner
from tests.patience import wait_until
from tests.pipelines.kafka.link import Linked
from tests.pipelines.live.kill_stream import stream_named
from tests.pipelines.live.rig import N_PARTITIONS, Rig, at_passage, broken_events, claim_of, lane_of, running


def signal_to(own: Broker, kind: signal.Signals) -> None:
    """SIGSTOP or SIGCONT to the broker."""
    assert own.process is not None
    os.kill(own.process.pid, kind)


def test_a_commit_whose_outcome_is_unknown_costs_no_event_and_doubles_none(linked: Linked, tmp_path: Path) -> None:
    rig = Rig(linked.broker.bootstrap, tmp_path)
    rig.send(50)
    fault = at_passage("after_flush", 2, lambda: signal_to(linked.broker, signal.SIGSTOP))
    with running(rig.scorer(fault=fault)) as run:
        try:
            wait_until(lambda: any(lane.n_rebuilt for lane in run.scorer.lanes), alive=lambda: run.is_alive)
        finally:
            signal_to(linked.broker, signal.SIGCONT)
        rig.send(50)
        rig.wait_until_out()
    assert sorted(score["event_id"] for score in rig.scores()) == sorted(f"e{n}" for n in range(100))


STREAM = stream_named("outbox")


def taken(outbox: Outbox, *, max_rows: int = MAX_ROWS) -> OutboxBatch:
    batch = outbox.take(max_rows=max_rows)
    assert batch is not None
    return batch


def test_rows_go_out_only_with_the_frontier_and_the_places_they_were_folded_under() -> None:
    outbox = Outbox()
    outbox.put(Put(broken_events(STREAM, 0, 2), [[1, 0, 0, 5, 1, 1, 9, 1]], {"events": [2, 0]}))
    outbox.put(Put(broken_events(STREAM, 2, 3), [], {"events": [3, 4]}))
    first = taken(outbox, max_rows=1)
    assert (first.rows.offset.tolist(), first.frontier, len(first.places)) == ([0, 1], {"events": [2, 0]}, 1)
    outbox.drop(first)
    second = taken(outbox)
    assert (second.rows.offset.tolist(), second.frontier, second.places) == ([2], {"events": [3, 4]}, [])
    outbox.drop(second)
    assert len(outbox) == outbox.n_bytes == 0


def test_places_are_recorded_without_rows_too_and_in_records_of_bounded_size() -> None:
    outbox = Outbox()
    for n in range(3):
        outbox.put(
            Put(broken_events(STREAM, 0, 0), [[1, 0, n, 5, 1, 1, 9, k] for k in range(MAX_ROWS)], {"events": [n]})
        )
    for n in range(3):
        batch = taken(outbox)
        assert (len(batch.rows), len(batch.places), batch.frontier) == (0, MAX_ROWS, {"events": [n]})
        outbox.drop(batch)
    assert len(outbox) == outbox.n_bytes == 0


def test_the_first_half_of_a_batch_may_go_alone_and_what_was_put_stays_in_order() -> None:
    outbox = Outbox()
    place = [1, 0, 0, 5, 1, 1, 9, 1]
    for end in (3, 6):
        outbox.put(Put(broken_events(STREAM, end - 3, end), [place], {"events": [end, 0]}))
    first, second = taken(outbox).halves()
    assert (first.rows.offset.tolist(), second.rows.offset.tolist()) == ([0, 1, 2], [3, 4, 5])
    assert (len(first.places), second.places) == (2, [])
    outbox.drop(first)
    outbox.put(Put(broken_events(STREAM, 6, 7), [], {"events": [7, 0]}))
    rest = taken(outbox)
    assert (rest.rows.offset.tolist(), rest.places, rest.frontier) == ([3, 4, 5, 6], [], {"events": [7, 0]})
    outbox.drop(rest)
    assert len(outbox) == outbox.n_bytes == 0
    assert outbox.take() is None


def test_another_producer_with_the_id_of_a_lane_costs_a_pause_and_no_event(kafka: str, tmp_path: Path) -> None:
    rig = Rig(kafka, tmp_path)
    with running(rig.scorer()) as run:
        rig.send(50)
        rig.wait_until_out()
        for p in range(N_PARTITIONS):  # it fences the lane, and is gone
            rig.connection.transactional_writer(transactional_id(rig.stream, p)).close()
        rig.send(50)
        rig.wait_until_out()
        assert run.is_alive
        assert all(lane.n_rebuilt for lane in run.scorer.lanes)
    assert sorted(score["event_id"] for score in rig.scores()) == sorted(f"e{n}" for n in range(100))


def test_a_lane_ends_where_kafka_has_lost_what_it_had_confirmed(kafka: str, tmp_path: Path) -> None:
    rig = Rig(kafka, tmp_path)
    lane = lane_of(rig, "me")
    lane.claim(claim_of("me", next_offset=7))
    assert lane.progress is not None
    lane._rebuild(BrokerError("no answer came"))
    assert lane.progress.next_offset == 7
    lane.progress = msgspec.structs.replace(lane.progress, next_offset=9)
    with pytest.raises(RestoreError, match="events from offset 7 are not published; start the scorer again"):
        lane._rebuild(BrokerError("no answer came"))
    lane.leave()


def test_a_lane_refuses_to_publish_what_is_published(kafka: str, tmp_path: Path) -> None:
    rig = Rig(kafka, tmp_path)
    lane = lane_of(rig, "me")
    lane.claim(claim_of("me", next_offset=2))
    lane.outbox.put(Put(broken_events(rig.stream, 1, 4), [], {"events": [4, 0]}))
    with pytest.raises(InternalError, match="the outbox holds events that are published already"):
        lane._publish(taken(lane.outbox))
    lane.leave()
    assert rig.refused() == []


def test_what_is_left_open_is_confirmed_if_progress_tells_of_more_than_the_outcomes(
    kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(kafka, tmp_path)
    with running(rig.scorer()):
        rig.send(20)
        rig.wait_until_out()
    questions = list[Callable[[list[Position]], bool]]()
    monkeypatch.setattr(
        Connection, "transactional_writer", lambda *_, is_confirmed, **_named: questions.append(is_confirmed)
    )
    open_owner(rig.connection, rig.stream, 0)
    [is_confirmed] = questions
    scores, progress = (rig.stream.topic("scores"), 0), (rig.stream.topic("progress"), 0)
    assert not is_confirmed([scores])  # the outcome of the last event is there: what is open came after it
    told = read_progress(rig.connection, rig.stream, 0)
    assert told is not None
    ahead = msgspec.structs.replace(told, next_offset=told.next_offset + 1, n_scored=told.n_scored + 1)
    rig.send_many([encode(ahead)], None, kind="progress", partition=0)
    assert is_confirmed([scores])
    assert not is_confirmed([progress, scores])
