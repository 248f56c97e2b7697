"""The folder of snapshots: names that sort as the fold went, whole files or none, the newest few."""

import logging
from pathlib import Path

import pytest

from pipelines.features.snapshot import Snapshot, SnapshotStore
from pipelines.features.state import State
from pipelines.order import EVENT, Source
from tests.pipelines.live.simulated import STREAM


def snapshot(n_folded: int) -> Snapshot:
    state = State(STREAM, 2)
    state.frontier[Source(EVENT, 0)] = n_folded
    return state.snapshot()


def test_the_newest_few_are_kept_and_come_first_whatever_the_order_of_writing(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "new folder", keep=2)
    for n_folded in (9, 100, 10):
        store.write(snapshot(n_folded))
    assert [sum(found.frontier.values()) for _, found in store.newest_first()] == [100, 10]
    assert len(list(store.folder.iterdir())) == 2


def test_a_snapshot_that_cannot_be_read_is_named_and_the_older_one_is_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SnapshotStore(tmp_path)
    store.write(snapshot(5))
    (tmp_path / f"{6:020d}.snapshot").write_bytes(b"nothing of ours")
    with caplog.at_level(logging.WARNING):
        assert [sum(found.frontier.values()) for _, found in store.newest_first()] == [5]
    assert f"snapshot {6:020d}.snapshot is not used" in caplog.text


def test_a_write_that_fails_or_was_interrupted_leaves_nothing(tmp_path: Path) -> None:
    def fail(point: str) -> None:
        assert point == "mid_snapshot"
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        SnapshotStore(tmp_path, fault=fail).write(snapshot(1))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "7.part").write_bytes(b"half")
    SnapshotStore(tmp_path).clear_unfinished()
    assert list(tmp_path.iterdir()) == []


def test_another_replica_that_starts_leaves_the_file_that_is_being_written(tmp_path: Path) -> None:
    seen = []

    def start_another(point: str) -> None:
        SnapshotStore(tmp_path).clear_unfinished()
        seen.append((point, [path.suffix for path in tmp_path.iterdir()]))

    SnapshotStore(tmp_path, fault=start_another).write(snapshot(7))
    assert seen == [("mid_snapshot", [".part"])]
    assert [sum(found.frontier.values()) for _, found in SnapshotStore(tmp_path).newest_first()] == [7]


def test_two_replicas_that_write_the_same_place_at_once_both_leave_a_whole_snapshot(tmp_path: Path) -> None:
    def write_another(_point: str) -> None:
        SnapshotStore(tmp_path).write(snapshot(7))

    SnapshotStore(tmp_path, fault=write_another).write(snapshot(7))
    assert [sum(found.frontier.values()) for _, found in SnapshotStore(tmp_path).newest_first()] == [7]
    assert len(list(tmp_path.iterdir())) == 1


def test_snapshots_that_are_ahead_do_not_displace_the_newest_usable_one(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path, keep=2)
    for n_folded in (5, 7, 20, 30):  # as several replicas may write them, each of them one that is ahead
        draft = store.draft(snapshot(n_folded).frontier)
        draft.finish(snapshot(n_folded).meta)
        store.tidy(lambda frontier: sum(frontier.values()) <= 10)
    assert [sum(found.frontier.values()) for _, found in store.newest_first()] == [30, 20, 7]
    store.tidy(lambda frontier: sum(frontier.values()) <= 20)
    assert [sum(found.frontier.values()) for _, found in store.newest_first()] == [30, 20]
