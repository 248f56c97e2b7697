"""Streams whose windows are all about the key: a replica reads, folds and publishes only the partitions it owns."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from flows.serve.status import status_of
from pipelines.contracts.stream import Stream
from pipelines.kafka.port import Adapter
from pipelines.kafka.progress import all_progress
from pipelines.lake.audit import reconcile, skew_audit
from pipelines.lake.ingest import ingest
from pipelines.lake.tables import Lake
from pipelines.live.scorer import Scorer
from pipelines.live.serving import Serving
from pipelines.live.setting import ScorerSetting
from tests.patience import wait_until
from tests.pipelines.live.kill_stream import KEY, stream_named
from tests.pipelines.live.live_scorer import Linear
from tests.pipelines.live.rig import Rig, Running, running


@pytest.fixture
def rig(kafka: str, tmp_path: Path, adapter: Adapter) -> Rig:
    rig = Rig(kafka, tmp_path, n_partitions=4, adapter=adapter, kind=KEY)
    rig.n_cards = 50  # some in every partition
    return rig


def member(rig: Rig) -> Running:
    """A scorer in the stream's group."""
    setting = ScorerSetting(rig.stream, rig.connection, rig.folder / "snapshots")
    return Running(Scorer(setting, Serving(Linear(rig.stream)), start="earliest"))


def assert_whole(rig: Rig) -> None:
    """Every event has one score, with the features of an offline replay."""
    assert len({score["event_id"] for score in rig.scores()}) == len(rig.scores()) == rig.n_sent
    assert reconcile(rig.connection, rig.stream).holds
    lake = Lake(rig.folder / "lake", rig.stream)
    ingest(rig.connection, rig.stream, lake)
    audit = skew_audit(lake, rig.stream, rig.folder / "features", models=lambda _: Linear(rig.stream))
    assert audit.holds
    assert audit.checked == rig.n_sent


def test_only_windows_about_the_key_let_a_partition_be_folded_for_itself() -> None:
    def folds(stream: Stream) -> bool:
        return stream.folds_by_partition

    assert folds(stream_named(f"{KEY}a"))
    assert not folds(stream_named("a"))


def test_stops_and_starts_go_on_from_the_snapshots_of_each_partition(rig: Rig) -> None:
    for n in (300, 200, 100):
        with running(rig.scorer()) as run:
            rig.send(n)
            rig.wait_until_out()
            wait_until(lambda run=run: run.scorer.caught_up)  # type: ignore[misc]
        assert len(run.scorer.states) == 4
    folders = sorted((rig.folder / "snapshots").iterdir())
    assert [folder.name for folder in folders] == [f"partition-{p}" for p in range(4)]
    assert all(list(folder.glob("*.snapshot")) for folder in folders)
    assert run.scorer.counters.n_folded < 600  # it did not begin at the beginning
    for p, told in all_progress(rig.connection, rig.stream, 4).items():
        assert told is not None
        assert told.frontier is not None
        assert [q for q, offset in enumerate(told.frontier["events"]) if offset] == [p]
    assert_whole(rig)


def test_partitions_move_to_a_new_replica_and_back_and_each_replica_reads_only_its_own(rig: Rig) -> None:
    with ExitStack() as stack:
        first = member(rig)
        stack.callback(first.stop)
        rig.send(400)
        wait_until(lambda: len(first.scorer.lanes) == 4, alive=lambda: first.is_alive)
        rig.wait_until_out()
        second = member(rig)
        stack.callback(second.stop)
        wait_until(
            lambda: len(first.scorer.lanes) == len(second.scorer.lanes) == 2,
            seen=lambda: rig.send(20),
            alive=lambda: first.is_alive and second.is_alive,
        )
        rig.wait_until_out()
        before = first.scorer.counters.n_read, second.scorer.counters.n_read
        rig.send(400)
        rig.wait_until_out()
        n_read = first.scorer.counters.n_read - before[0], second.scorer.counters.n_read - before[1]
        assert sum(n_read) == 400
        assert min(n_read) > 50
        told = status_of(first.scorer), status_of(second.scorer)
        assert sorted(told[0]["partitions"] + told[1]["partitions"]) == [0, 1, 2, 3]
        assert told[0]["scored"] + told[1]["scored"] == rig.n_sent
        second.stop()
        rig.send(400)
        rig.wait_until_out()
        assert len(first.scorer.lanes) == len(first.scorer.states) == 4
    assert first.error is second.error is None
    assert_whole(rig)
