"""The live loop on a real broker: starts, refusals to start, take-over, snapshots."""

import json
import re
import shutil
import threading
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, TopicPartition

from pipelines.contracts.stream_file import parse
from pipelines.errors import BrokerError, FencedError, RestoreError
from pipelines.features.snapshot import KEPT, Snapshot
from pipelines.features.state import State
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Adapter, Message, Reader
from pipelines.kafka.topics import KEEP_FOR_EVER
from pipelines.lake.audit import reconcile
from pipelines.live.marks import mark_bytes, mark_of
from pipelines.live.scorer import Scorer
from pipelines.live.snapshots import MAX_UNTOLD
from pipelines.live.topic_checks import check_inputs, input_ids
from pipelines.order import EVENT, Mark, Source
from pipelines.record import Received
from tests.patience import wait_until
from tests.pipelines.live.kill_stream import TEXTS
from tests.pipelines.live.rig import N_PARTITIONS, Rig, Running, at_passage, running


@pytest.fixture
def rig(kafka: str, tmp_path: Path) -> Rig:
    return Rig(kafka, tmp_path)


def test_every_event_is_scored_once_over_stops_and_starts(kafka: str, tmp_path: Path, adapter: Adapter) -> None:
    rig = Rig(kafka, tmp_path, adapter=adapter)
    for _ in range(3):
        rig.send(50)
        with running(rig.scorer()):
            rig.wait_until_out()
    ids = [score["event_id"] for score in rig.scores()]
    assert sorted(ids) == sorted(f"e{n}" for n in range(150))


def test_from_latest_folds_what_was_there_and_scores_what_comes(rig: Rig) -> None:
    rig.send(70)
    with running(rig.scorer(start="latest")):
        rig.send(30)
        rig.wait_until_out()
    assert sorted(score["event_id"] for score in rig.scores()) == sorted(f"e{n}" for n in range(70, 100))


def test_a_first_start_must_say_where_to_begin(rig: Rig) -> None:
    with pytest.raises(RestoreError, match="nothing has been scored yet; choose where to start with --from earliest"):
        rig.scorer(start=None)


def test_an_emptied_progress_topic_is_reported_and_nothing_is_scored_twice(rig: Rig) -> None:
    rig.send(50)
    with running(rig.scorer()):
        rig.wait_until_out()
    topics.delete_topics(rig.connection, [rig.stream.topic("progress")])
    topics.create_topics(rig.connection, {rig.stream.topic("progress"): N_PARTITIONS}, config=KEEP_FOR_EVER)
    with pytest.raises(
        RestoreError,
        match=r"has no progress record, although scores were published: it was emptied, .* run `unmask recover`",
    ):
        rig.scorer(start="earliest")
    assert len(rig.scores()) == 50


@pytest.mark.parametrize("n_new", [0, 200])  # also where the new topic has grown longer than the old one
def test_recreated_events_are_reported_instead_of_being_skipped(rig: Rig, n_new: int) -> None:
    rig.send(50)
    with running(rig.scorer()):
        rig.wait_until_out()
    topics.delete_topics(rig.connection, [rig.stream.topic("events")])
    config = KEEP_FOR_EVER | {"message.timestamp.type": "LogAppendTime"}
    topics.create_topics(rig.connection, {rig.stream.topic("events"): N_PARTITIONS}, config=config)
    rig.send(n_new)
    told = r"events was deleted and recreated since it was last scored .* run `unmask recover`"
    with pytest.raises(RestoreError, match=told):
        rig.scorer()
    found = reconcile(rig.connection, rig.stream)
    assert found.mismatched or found.stray
    assert not found.holds


def test_events_that_retention_deleted_before_they_were_scored_are_reported_instead_of_being_skipped(rig: Rig) -> None:
    rig.send(50)
    with running(rig.scorer()):
        rig.wait_until_out()
    rig.send(50)
    events = rig.stream.topic("events")
    ends = topics.bounds(rig.connection, [events])
    admin = KafkaAdminClient(bootstrap_servers=rig.connection.bootstrap)
    admin.delete_records({TopicPartition(events, p): end - 5 for (_, p), (_, end) in ends.items()})
    admin.close()
    with pytest.raises(RestoreError, match=r"events \[\d\] starts at offset \d+: .* deleted, .* run `unmask recover`"):
        rig.scorer()
    assert len(rig.scores()) == 50
    found = reconcile(rig.connection, rig.stream)
    assert (found.n_scored, found.n_problems["missing"], found.pending) == (50, 50 - 5 * N_PARTITIONS, 5 * N_PARTITIONS)


def test_a_running_scorer_can_ask_whether_its_input_was_recreated(rig: Rig) -> None:
    told = input_ids(rig.connection, rig.stream)
    assert set(told) == {"events", "labels"}
    check_inputs(rig.connection, rig.stream, told)
    check_inputs(rig.connection, rig.stream, {})  # of a broker without ids nothing is known
    topics.delete_topics(rig.connection, [rig.stream.topic("labels")])
    topics.create_topics(rig.connection, {rig.stream.topic("labels"): N_PARTITIONS}, config=KEEP_FOR_EVER)
    with pytest.raises(RestoreError, match="labels was deleted and recreated"):
        check_inputs(rig.connection, rig.stream, told)


def test_a_snapshot_of_other_topics_is_not_used(rig: Rig) -> None:
    rig.send(50)
    with running(rig.scorer()):
        rig.wait_until_out()
    for path in (rig.folder / "snapshots").glob("*.snapshot"):
        state = State.restore(rig.stream, Snapshot.read(path))
        state.topic_ids["events"] = str(uuid.uuid4())
        state.snapshot().write(path)
    with running(rig.scorer()) as run:
        rig.send(10)
        rig.wait_until_out()
        assert run.scorer.counters.n_folded == 60  # from the beginning


def test_garbage_in_progress_stops_the_start_and_names_the_command(rig: Rig) -> None:
    rig.send(10)
    with running(rig.scorer()):
        rig.wait_until_out()
    with rig.connection.writer() as writer:
        writer.send(Message(rig.stream.topic("progress"), b"{}", None, 1))
        writer.flush()
    with pytest.raises(RestoreError, match=r"progress \[1\], offset \d+, is not a progress record .* `unmask recover`"):
        rig.scorer()


def test_a_clock_mark_that_is_none_is_skipped() -> None:
    for value in (
        b"",
        b"{",
        b"{}",
        b'{"below_ms":"x","ends":{}}',
        b'{"below_ms":1,"ends":{"events":[1.5]}}',
        b"[" * 99_999,
    ):
        assert mark_of(Received("s.clock", 0, 0, 0, None, value)) is None
    good = mark_bytes(7, {Source(EVENT, 0): 3}, 1)
    assert mark_of(Received("s.clock", 0, 0, 0, None, good)) == Mark(7, {Source(EVENT, 0): 3}, 1)


def test_other_features_under_the_same_topics_are_refused(rig: Rig) -> None:
    with running(rig.scorer()):
        rig.send(10)
        rig.wait_until_out()
    changed = Rig.__new__(Rig)
    changed.__dict__ |= rig.__dict__ | {
        "stream": parse(TEXTS["merged"].format(name=rig.stream.name).replace('"24s"', '"36s"'))
    }
    with pytest.raises(RestoreError, match=r"the features have changed since the last run .* run `unmask recover`"):
        changed.scorer()


def test_topics_with_unequal_partitions_are_refused(rig: Rig) -> None:
    topics.delete_topics(rig.connection, [rig.stream.topic("alerts")])
    topics.create_topics(rig.connection, {rig.stream.topic("alerts"): 3}, config=KEEP_FOR_EVER)
    with pytest.raises(BrokerError, match=r"have different numbers of partitions: .*'alerts': 3"):
        rig.scorer()


def test_a_second_scorer_takes_over_and_the_first_ends_loudly(rig: Rig) -> None:
    rig.send(20)
    first = Running(rig.scorer())
    rig.wait_until_out()
    with running(rig.scorer()):
        rig.send(40)
        rig.wait_until_out()
        first.join()
    assert isinstance(first.error, FencedError), first.error
    assert "another scorer has taken over" in str(first.error)
    assert len({score["event_id"] for score in rig.scores()}) == len(rig.scores()) == 60


def test_a_second_scorer_takes_over_in_the_middle_of_traffic(rig: Rig) -> None:
    first, enough = Running(rig.scorer()), threading.Event()

    def send() -> None:
        while not enough.wait(0.02):
            rig.send(5)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        wait_until(lambda: first.scorer.counters.n_folded > 50)
        with running(rig.scorer()):
            first.join()
            enough.set()
            sender.join()
            rig.wait_until_out()
    finally:
        enough.set()
        sender.join()
    assert isinstance(first.error, FencedError), first.error
    assert len({score["event_id"] for score in rig.scores()}) == len(rig.scores()) == rig.n_sent


@pytest.mark.parametrize("where", ["after_poll", "mid_fold", "in the windows"])
def test_a_scorer_whose_step_raises_writes_no_snapshot_and_the_next_one_scores_everything_once(
    rig: Rig, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    rig.send(50)
    scorer = rig.scorer(fault=at_passage(where, 10, fail))
    run = Running(scorer)
    if where == "in the windows":
        for _ in range(3):
            rig.wait_until_out()
            rig.send(10)
        monkeypatch.setattr(scorer.states[0].windows._columns[-1], "fold", fail)
    while run.is_alive:
        rig.send(10)
    run.join()
    assert isinstance(run.error, MemoryError), run.error
    folded = sum(scorer.states[0].frontier.values())
    assert folded > 50
    assert not (rig.folder / "snapshots" / f"{folded:020d}.snapshot").exists()
    with running(rig.scorer()):
        rig.wait_until_out()
    assert sorted(score["event_id"] for score in rig.scores()) == sorted(f"e{n}" for n in range(rig.n_sent))


def test_a_damaged_snapshot_is_left_aside_and_a_part_of_one_is_cleared_away(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.send(50)
    with running(rig.scorer()):
        rig.wait_until_out()
    snapshots = rig.folder / "snapshots"
    (snapshots / "9.part").write_bytes(b"half")
    (snapshots / f"{10**19}.snapshot").write_bytes(b"nothing")
    shutil.copy(Path(__file__).parents[1] / "data" / "format-1.snapshot", snapshots / f"{10**19 + 1}.snapshot")
    with running(rig.scorer()) as run:
        assert f"{10**19 + 1}.snapshot was written by an older version of Unmask" in caplog.text
        rig.send(50)
        rig.wait_until_out()
        assert run.scorer.counters.n_folded == 50  # from the good snapshot, not from the beginning
    assert len({score["event_id"] for score in rig.scores()}) == len(rig.scores()) == 100
    assert not list(snapshots.glob("*.part"))


def test_a_missing_broker_is_reported_with_what_to_do(free_port: int) -> None:
    with pytest.raises(BrokerError, match=r"no Kafka answers at .* start one with `unmask kafka start`"):
        topics.wait_until_up(Connection(f"127.0.0.1:{free_port}"), deadline_s=0.5)


def test_a_full_or_read_only_disk_costs_snapshots_not_scores(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.send(50)
    (rig.folder / "snapshots").write_bytes(b"a file where the folder should be")
    with running(rig.scorer(snapshot_every=timedelta(milliseconds=200))) as run:
        rig.wait_until_out()
        wait_until(lambda: run.scorer.counters.n_snapshots_failed > 2)
        rig.send(50)
        rig.wait_until_out()
    assert len(rig.scores()) == 100
    assert run.scorer.counters.n_snapshots == 0
    assert sum("a snapshot was not written" in record.message for record in caplog.records) == 1


def test_the_first_snapshot_is_written_right_after_catching_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.live.snapshots.FIRST_SNAPSHOT_S", 3_600.0)
    rig.send(50)
    with running(rig.scorer(snapshot_every=timedelta(hours=1))) as run:
        rig.wait_until_out()
        wait_until(lambda: run.scorer.counters.n_snapshots > 0)
    first = [Snapshot.read(path).frontier for path in (rig.folder / "snapshots").glob("*.snapshot")]
    assert any(sum(frontier[Source(EVENT, p)] for p in range(N_PARTITIONS)) >= 50 for frontier in first)


def test_a_restart_goes_on_from_what_changed_since_a_whole_snapshot(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipelines.live.snapshots.MOST_CHANGED", 2.0)  # of a few cards, most have changed
    rig.send(60)
    with running(rig.scorer(snapshot_every=timedelta(milliseconds=200))) as run:
        rig.wait_until_out()
        wait_until(lambda: run.scorer.caught_up and run.scorer.counters.n_snapshots > 0)
        run.scorer._shards[0].snapshots._due_s = float("inf")  # after an interrupted one, the last is whole
        wait_until(lambda: not run.scorer._shards[0].snapshots.is_writing)
        rig.send(60)
        rig.wait_until_out()
    (last,) = newest(rig)
    snapshot = Snapshot.read(last)
    assert snapshot.base is not None
    assert snapshot.base.frontier != snapshot.frontier
    rig.send(60)
    with caplog.at_level("INFO"), running(rig.scorer()):
        rig.wait_until_out()
    assert f"restored from snapshot {last.name}" in caplog.text
    found = reconcile(rig.connection, rig.stream)
    assert found.holds, found


def test_no_snapshot_is_taken_that_owes_more_places_than_one_record_holds(rig: Rig) -> None:
    scorer = rig.scorer()
    place = [EVENT, 0, 7, 5, EVENT, 0, 9, 1]
    for n_places, is_taken in ((MAX_UNTOLD + 1, False), (MAX_UNTOLD, True)):
        scorer.states[0].places = [place] * n_places
        scorer._shards[0].snapshots.take(scorer.progress)
        assert scorer._shards[0].snapshots.is_writing == is_taken
    scorer._stop(snapshot=False)


def test_lanes_that_stand_still_do_not_push_out_the_snapshots_that_a_restart_needs(rig: Rig) -> None:
    with running(rig.scorer()):
        rig.send(20)
        rig.wait_until_out()
    (good,) = newest(rig)
    scorer = rig.scorer(snapshot_every=timedelta(seconds=0))
    for _ in range(2 * KEPT):  # its lanes are not started: nothing goes out
        rig.send(1)
        goal = scorer.counters.n_folded + 1
        step_until(scorer, goal)
        scorer._shards[0].snapshots.take(scorer.progress)
        wait_until(lambda: scorer._shards[0].snapshots.go_on() or not scorer._shards[0].snapshots.is_writing)  # type: ignore[func-returns-value]
    assert good in (rig.folder / "snapshots").iterdir()
    scorer._stop(snapshot=False)


def step_until(scorer: Scorer, n_folded: int) -> None:
    def step() -> bool:
        scorer.step()
        return scorer.counters.n_folded >= n_folded

    wait_until(step)


def newest(rig: Rig) -> list[Path]:
    return sorted((rig.folder / "snapshots").glob("*.snapshot"))[-1:]


def test_partitions_added_while_it_runs_stop_the_scorer_and_nothing_of_the_old_ones_is_lost(rig: Rig) -> None:
    run = Running(rig.scorer(check_topics_every=timedelta(seconds=1)))
    rig.send(30)
    rig.wait_until_out()
    time.sleep(2.5)
    assert run.error is None
    topics.add_partitions(rig.connection, {rig.stream.topic("events"): N_PARTITIONS + 1})
    run.join()
    assert isinstance(run.error, BrokerError)
    assert "had 2 partitions when this scorer started, now it has 3; nothing in the old partitions" in str(run.error)
    assert "unmask recover" in str(run.error)
    assert len(rig.scores()) == 30


def test_a_topic_recreated_under_a_running_scorer_stops_it(rig: Rig) -> None:
    run = Running(rig.scorer(check_topics_every=timedelta(seconds=1)))
    rig.send(30)
    rig.wait_until_out()
    labels = rig.stream.topic("labels")
    topics.delete_topics(rig.connection, [labels])
    topics.create_topics(
        rig.connection, {labels: N_PARTITIONS}, config=KEEP_FOR_EVER | {"message.timestamp.type": "LogAppendTime"}
    )
    run.join()
    assert isinstance(run.error, RestoreError)
    assert re.search("labels was deleted and recreated .* run `unmask recover`", str(run.error))


def test_a_restart_reads_the_clock_from_the_first_mark_that_is_not_done(rig: Rig) -> None:
    with running(rig.scorer()):
        rig.send(50)
        rig.wait_until_out()
    again = rig.scorer()
    with running(again):
        pass
    assert again._input._outside[rig.stream.topic("clock"), 0] == again._shards[0].replica.merge.clock_offset > 0


def test_too_much_in_the_outboxes_stops_the_reading_and_room_in_them_lets_it_go_on(rig: Rig) -> None:
    rig.send(40)
    scorer = rig.scorer(max_outbox_bytes=1)
    step_until(scorer, 1)
    n_read = scorer.counters.n_read
    rig.send(40)
    for _ in range(20):  # the lanes are not started
        scorer.step()
    assert scorer.counters.n_read == n_read
    with running(scorer):
        rig.wait_until_out()
    assert len(rig.scores()) == 80


def test_a_partition_that_is_far_ahead_is_held_until_the_others_have_come_up(rig: Rig) -> None:
    padded = json.dumps({"at": 1, "card": "far", "amount": 1, "padding": "x" * 1_500})
    for n in range(40):
        values = [padded.replace("{", f'{{"id": "f{n}-{m}", ', 1).encode() for m in range(50)]
        rig.send_many(values, b"far")
    far = topics.partition_of(b"far", N_PARTITIONS)
    rig.send(20)
    scorer = rig.scorer(max_in_hand_bytes=4 << 20, health_after=timedelta(seconds=1))
    slow = Slow(scorer._input.reader, (rig.stream.topic("events"), 1 - far))
    scorer._input.reader = slow  # type: ignore[assignment]
    with running(scorer):
        wait_until(lambda: Source(EVENT, far) in scorer._input.held)
        at = scorer._input.reader.position((rig.stream.topic("events"), far))
        time.sleep(0.5)
        assert at == scorer._input.reader.position((rig.stream.topic("events"), far)) < 2_000
        assert scorer._shards[0].replica.merge.n_bytes < 2 * (4 << 20)
        wait_until(lambda: scorer.health != "ok")
        assert f"reading {rig.stream.topic('events')} [{1 - far}]: it ends at" in scorer.health
        slow.is_open = True
        rig.wait_until_out()
        wait_until(lambda: scorer.health == "ok")


class Slow:
    """A reader that gives nothing of one partition until it is opened."""

    def __init__(self, reader: Reader, position: tuple[str, int]) -> None:
        self._reader, self._slow = reader, position
        self._kept: list[Received] = []
        self.is_open = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def poll(self) -> list[Received]:
        received = self._reader.poll()
        self._kept += [r for r in received if (r.topic, r.partition) == self._slow]
        given = [r for r in received if (r.topic, r.partition) != self._slow]
        if self.is_open:
            given, self._kept = self._kept + given, []
        return given

    def position(self, position: tuple[str, int]) -> int:
        if position == self._slow and self._kept:
            return self._kept[0].offset
        return self._reader.position(position)
