"""The take-over: few clients, claims right after fencing, and progress topics read back no further than needed."""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipelines.contracts.messages import Progress, encode
from pipelines.errors import BrokerError
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.kafka_python.client import KafkaPython
from pipelines.kafka.port import Assignment, Member, Message, Position
from pipelines.kafka.progress import all_progress
from pipelines.live.scorer import Scorer
from pipelines.live.serving import Serving
from pipelines.live.setting import ScorerSetting
from pipelines.live.takeover import places_after
from pipelines.order import EVENT, LABEL, Key, Source
from tests.patience import HANG_S, wait_until
from tests.pipelines.live.live_scorer import Linear
from tests.pipelines.live.rig import N_PARTITIONS, Rig, Running, at_passage, running


class Counted:
    """Counts how often a client is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.n = 0
        original = getattr(KafkaPython, name)

        def made(*args: Any, **options: Any) -> Any:
            self.n += 1
            return original(*args, **options)

        monkeypatch.setattr(KafkaPython, name, made)


def test_a_take_over_of_32_partitions_needs_a_handful_of_clients(
    kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    rig = Rig(kafka, tmp_path, n_partitions=32, adapter=KafkaPython)
    rig.send(64)
    with running(rig.scorer()):
        rig.wait_until_out()
    admins, readers = Counted(monkeypatch, "admin"), Counted(monkeypatch, "reader")
    since_s = time.monotonic()
    scorer = rig.scorer()
    took_s = time.monotonic() - since_s
    record_property("take_over_s", took_s)
    print(f"take-over of 32 partitions: {took_s:.2f} s, {admins.n} admins, {readers.n} readers")
    assert admins.n <= 2
    assert readers.n <= 3
    with running(scorer):
        rig.send(64)
        rig.wait_until_out()
    assert len({score["event_id"] for score in rig.scores()}) == len(rig.scores()) == 128


class Later(Member):
    """A membership that gives nothing before it is told to."""

    def __init__(self) -> None:
        self.partitions: frozenset[int] = frozenset()

    def assigned(self) -> Assignment:
        return Assignment(0, self.partitions)

    def close(self) -> None:
        pass


def test_what_is_being_claimed_is_not_dropped_for_want_of_memory(kafka: str, tmp_path: Path) -> None:
    rig, member = Rig(kafka, tmp_path), Later()
    is_claiming, go_on = threading.Event(), threading.Event()

    def stand_still() -> None:
        is_claiming.set()
        go_on.wait(HANG_S)

    fault = at_passage("between_claims", 1, stand_still)  # the outboxes were found complete
    setting = ScorerSetting(rig.stream, rig.connection, tmp_path / "snapshots", max_outbox_bytes=1 << 16, fault=fault)
    scorer = Scorer(setting, Serving(Linear(rig.stream)), start="earliest", member=member)
    with running(scorer) as run:
        rig.send(10)
        wait_until(lambda: scorer.counters.n_folded == 10, alive=lambda: run.is_alive)
        member.partitions = frozenset(range(N_PARTITIONS))
        is_claiming.wait(HANG_S)
        rig.send(2_000)
        wait_until(lambda: scorer._is_full or scorer.counters.n_folded == rig.n_sent, alive=lambda: run.is_alive)
        go_on.set()
        rig.wait_until_out()
    assert len({score["event_id"] for score in rig.scores()}) == len(rig.scores()) == rig.n_sent


def test_a_scorer_that_must_not_start_leaves_the_one_that_runs_alone(kafka: str, tmp_path: Path) -> None:
    rig = Rig(kafka, tmp_path)
    rig.send(10)
    with running(rig.scorer()):
        rig.wait_until_out()
        topics.delete_topics(rig.connection, [rig.stream.topic("alerts")])
        with pytest.raises(BrokerError):
            rig.scorer()
        rig.send(10)
        rig.wait_until_out()


def progress_topic(rig: Rig, n: int, *, told_at: int) -> None:
    """A progress topic of `n` records per partition with frontiers that rise by ten; one record tells a place."""
    labels = [0] * N_PARTITIONS
    blank = Progress(
        next_offset=0, start=0, n_scored=0, n_refused=0, n_duplicates=0, n_out_of_turn=0, n_partitions=N_PARTITIONS,
        owner="", definition="", model="", origin={"events": labels, "labels": labels}, frontier=None, out_of_turn=[],
    )  # fmt: skip
    with rig.connection.writer() as writer:
        for p in range(N_PARTITIONS):
            for i in range(n):
                record = msgspec.structs.replace(
                    blank,
                    next_offset=10 * (i + 1),
                    frontier={"events": [10 * (i + 1)] * N_PARTITIONS, "labels": labels},
                    n_out_of_turn=int(i >= told_at),
                    out_of_turn=[[EVENT, 0, 10 * told_at + 5, 7, EVENT, 0, 3, 1]] if i == told_at else [],
                )
                writer.send(Message(rig.stream.topic("progress"), encode(record), None, p))
        writer.flush()


@pytest.mark.parametrize(
    ("restored_at", "read_at_most", "found"),
    [(3_990, 2 * 64, False), (3_700, 2 * 2 * 364, False), (10, 2 * 4_000, True), (0, 2 * 4_000, True)],
)
def test_after_one_event_out_of_turn_a_start_reads_back_only_what_its_snapshot_needs(
    kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restored_at: int, read_at_most: int, found: bool
) -> None:
    rig = Rig(kafka, tmp_path)
    progress_topic(rig, 4_000, told_at=10)
    n_read = [0]
    original = topics.read_between

    def counted(connection: Connection, spans: Mapping[Position, tuple[int, int]]) -> Any:
        for batch in original(connection, spans):
            n_read[0] += len(batch)
            yield batch

    last = {p: record for p, record in all_progress(rig.connection, rig.stream, N_PARTITIONS).items() if record}
    monkeypatch.setattr(topics, "read_between", counted)
    at = {Source(EVENT, p): 10 * restored_at for p in range(N_PARTITIONS)}
    needed = at | {Source(LABEL, p): 0 for p in range(N_PARTITIONS)}
    places = places_after(rig.connection, rig.stream, last, needed)
    assert n_read[0] <= read_at_most
    if found:
        assert places == {(EVENT, 0, 105): Key(7, EVENT, 0, 3, 1)}


def test_places_recorded_again_by_a_recovery_are_read_though_a_later_frontier_does_not_reach_them(
    kafka: str, tmp_path: Path
) -> None:
    rig = Rig(kafka, tmp_path)
    labels = [0] * N_PARTITIONS
    told = Progress(
        next_offset=0, start=0, n_scored=0, n_refused=0, n_duplicates=0, n_out_of_turn=1, n_partitions=N_PARTITIONS,
        owner="", definition="", model="", origin={"events": labels, "labels": labels}, frontier=None,
        out_of_turn=[[EVENT, 1, 50, 7, EVENT, 0, 3, 1]], retold=[0, 1],
    )  # fmt: skip
    later = msgspec.structs.replace(told, out_of_turn=[], frontier={"events": [10, 5], "labels": labels})
    with rig.connection.writer() as writer:
        for record in (told, later):
            writer.send(Message(rig.stream.topic("progress"), encode(record), None, 0))
        writer.flush()
    last = {0: later, 1: msgspec.structs.replace(later, n_out_of_turn=0, retold=[])}
    needed = {Source(EVENT, 0): 10, Source(EVENT, 1): 5} | {Source(LABEL, p): 0 for p in range(N_PARTITIONS)}
    assert places_after(rig.connection, rig.stream, last, needed) == {(EVENT, 1, 50): Key(7, EVENT, 0, 3, 1)}


def test_whoever_is_fenced_in_a_take_over_learns_so_from_the_claim(kafka: str, tmp_path: Path) -> None:
    rig = Rig(kafka, tmp_path, n_partitions=8)
    first = Running(rig.scorer())
    rig.send(16)
    rig.wait_until_out()
    with running(rig.scorer()):
        rig.send(16)
        rig.wait_until_out()
        first.join()
    assert "another scorer has taken over" in str(first.error)
