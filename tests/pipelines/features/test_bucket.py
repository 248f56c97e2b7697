"""Snapshots in an object store: what one replica has written is there for another one, and a failure costs no more."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.features.bucket import Bucket, Place
from pipelines.features.pieces import read_meta
from pipelines.features.snapshot import Snapshot, SnapshotStore
from pipelines.features.state import State
from tests.object_store import BUCKET, object_store, variables
from tests.pipelines.features.test_snapshot import snapshot
from tests.pipelines.live.simulated import STREAM
from tests.silent_server import SilentServer

URL = f"s3://{BUCKET}/unmask"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with object_store(tmp_path_factory.mktemp("store")) as endpoint:
        yield endpoint


@pytest.fixture
def url(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place of this test's own."""
    for name, value in variables(endpoint).items():
        monkeypatch.setenv(name, value)
    return f"{URL}/{tmp_path.name}"


def found_in(store: SnapshotStore) -> list[int]:
    return [sum(found.frontier.values()) for _, found in store.newest_first()]


def test_another_replica_finds_what_one_has_written_and_old_ones_are_deleted(url: str, tmp_path: Path) -> None:
    one, other = (SnapshotStore(Place(tmp_path / name, url), keep=2) for name in ("one", "other"))
    for n_folded in (9, 100, 10):
        one.write(snapshot(n_folded))
    assert sorted(Bucket(url).names()) == [f"{n:020d}.snapshot" for n in (10, 100)]
    assert found_in(other) == [100, 10]
    other.write(snapshot(200))
    assert found_in(one) == [200, 100, 10]  # its own copy, until it tidies
    one.tidy_copies(lambda frontier: True)
    assert found_in(one) == [200, 100]
    assert sorted(Bucket(url).names()) == [f"{n:020d}.snapshot" for n in (100, 200)]
    assert not list(tmp_path.rglob("*.part"))


def test_the_usable_one_of_another_replica_is_spared(url: str, tmp_path: Path) -> None:
    SnapshotStore(Place(tmp_path / "one", url), keep=1).write(snapshot(5))
    other = SnapshotStore(Place(tmp_path / "other", url), keep=1)
    for n_folded in (6, 7):
        path = other._path(snapshot(n_folded).frontier)
        snapshot(n_folded).write(path)
        other.finished(path.name)
        other.tidy(lambda frontier: sum(frontier.values()) <= 5)
    assert found_in(other) == [7, 5]


def test_what_only_changed_comes_with_its_base(url: str, tmp_path: Path) -> None:
    state = State(STREAM, 2)
    whole = state.copy()
    while not whole.is_whole:
        whole.step(1_000)
    base = snapshot(3)
    base.meta["id"] = whole.as_base.id
    one, other = (SnapshotStore(Place(tmp_path / name, url)) for name in ("one", "other"))
    base_path = one.write(base)
    later = snapshot(4)
    later.meta["base"] = {"id": whole.as_base.id, "file": base_path.name, "skipped": {"seen": 0, "reported": 0}}
    one.write(later)
    (path, read), *_ = other.newest_first()
    assert read.base is not None
    assert (path.parent, read.base.meta["id"]) == (tmp_path / "other", whole.as_base.id)
    assert one.has(base_path.name, whole.as_base.id)
    Bucket(url).delete([base_path.name])
    assert not one.has(base_path.name, whole.as_base.id)  # others could not read what is based on it


def test_without_the_object_store_the_folder_is_used_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in variables("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    store = SnapshotStore(Place(tmp_path / "here", URL))
    with pytest.raises(OSError, match=URL):
        store.write(snapshot(5))
    with caplog.at_level(logging.WARNING):
        assert found_in(store) == [5]
    assert f"only the snapshots in {tmp_path / 'here'} can be used: {URL}: " in caplog.text
    assert "\n" not in caplog.records[0].getMessage()


def test_a_silent_object_store_is_given_up_after_a_while(
    silent_server: SilentServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables(silent_server).items():
        monkeypatch.setenv(name, value)
    began_s = time.monotonic()
    with pytest.raises(OSError, match=URL):
        Bucket(URL).names()
    assert time.monotonic() - began_s < 60.0  # with the library's own settings, minutes


def test_a_damaged_file_is_named_and_the_older_one_is_used(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SnapshotStore(Place(tmp_path / "one", url))
    store.write(snapshot(5))
    bad = tmp_path / f"{6:020d}.snapshot"
    bad.write_bytes((tmp_path / "one" / f"{5:020d}.snapshot").read_bytes()[:-40] + b"x" * 40)
    Bucket(url).put(bad, bad.name)
    with caplog.at_level(logging.WARNING):
        assert found_in(SnapshotStore(Place(tmp_path / "other", url))) == [5]
    assert f"snapshot {bad.name} is not used" in caplog.text


def test_a_place_moved_aside_is_empty_and_everything_is_kept(url: str, tmp_path: Path) -> None:
    place = Place(tmp_path / "snapshots", url)
    SnapshotStore(place / "partition-0").write(snapshot(5))
    SnapshotStore(place).move_aside(".old")
    assert found_in(SnapshotStore(place / "partition-0")) == []
    assert found_in(SnapshotStore(place.with_suffix(".old") / "partition-0")) == [5]
    assert Bucket(f"{url}.old").names() == [f"partition-0/{5:020d}.snapshot"]
    assert Snapshot.read(tmp_path / "snapshots.old" / "partition-0" / f"{5:020d}.snapshot").frontier
    assert read_meta(tmp_path / "snapshots.old" / "partition-0" / f"{5:020d}.snapshot")["id"]
