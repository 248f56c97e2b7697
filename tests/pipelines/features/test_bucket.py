"""Snapshots in an object store: what one replica has written is there for another one, and a failure costs no more."""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from flows.local.processes import LOOPBACK
from pipelines.features import bucket
from pipelines.features.bucket import Bucket, Place
from pipelines.features.pieces import read_meta
from pipelines.features.snapshot import Snapshot, SnapshotStore, frontier_of
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


@contextmanager
def slow_link(endpoint: str, *, bytes_per_s: int) -> Iterator[str]:
    """A way to a server whose answers come slowly."""
    _, _, port = endpoint.rpartition(":")

    def pass_on(source: socket.socket, target: socket.socket, rate: float) -> None:
        with suppress(OSError):
            while data := source.recv(4_096):
                target.sendall(data)
                time.sleep(len(data) / rate)
            target.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, far = listener.accept()[0], socket.create_connection((LOOPBACK, int(port)))
                for source, target, rate in ((near, far, 1e12), (far, near, bytes_per_s)):
                    threading.Thread(target=pass_on, args=(source, target, rate), daemon=True).start()

    with socket.create_server((LOOPBACK, 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://{LOOPBACK}:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


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
    with pytest.raises(OSError, match=URL):
        store.tidy()
    store.tidy_copies(lambda frontier: True)
    with caplog.at_level(logging.WARNING):
        assert found_in(store) == [5]
    assert f"only the snapshots in {tmp_path / 'here'} can be used: {URL}: " in caplog.text
    assert "\n" not in caplog.records[0].getMessage()


def test_a_silent_object_store_is_given_up_after_a_while(
    silent_server: SilentServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables(silent_server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bucket, "_left_alone", {})
    began_s = time.monotonic()
    with pytest.raises(OSError, match=URL):
        Bucket(URL).names()
    assert time.monotonic() - began_s < 60.0  # with the library's own settings, minutes
    for partition in range(100):  # which do not wait one after the other
        with pytest.raises(OSError, match="did not answer a moment ago"):
            Bucket(f"{URL}/partition-{partition}").names()
    assert time.monotonic() - began_s < 60.0


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


def test_a_copy_that_is_damaged_here_is_copied_again(url: str, tmp_path: Path) -> None:
    store = SnapshotStore(Place(tmp_path / "one", url))
    path = store.write(snapshot(5))
    path.write_bytes(path.read_bytes()[:-40] + b"x" * 40)
    assert found_in(store) == [5]
    assert found_in(SnapshotStore(tmp_path / "one")) == [5]


def test_what_is_not_wanted_is_not_copied(url: str, tmp_path: Path) -> None:
    one, other = (SnapshotStore(Place(tmp_path / name, url)) for name in ("one", "other"))
    for n_folded in (5, 9):
        one.write(snapshot(n_folded))
    wanted = other.newest_first(lambda told: sum(frontier_of(told).values()) < 9)
    assert [sum(found.frontier.values()) for _, found in wanted] == [5]
    assert [path.name for path in (tmp_path / "other").iterdir()] == [f"{5:020d}.snapshot"]


def test_what_lies_here_alone_displaces_nothing_in_the_object_store(url: str, tmp_path: Path) -> None:
    """Copies of other topics, or of a time in which the object store was away."""
    for n_folded in range(100, 104):
        SnapshotStore(tmp_path / "one").write(snapshot(n_folded))
    store = SnapshotStore(Place(tmp_path / "one", url), keep=2)
    for n_folded in (5, 6, 7):
        store.write(snapshot(n_folded))
    assert sorted(Bucket(url).names()) == [f"{n:020d}.snapshot" for n in (6, 7)]


def test_a_slow_object_store_gives_what_takes_longer_than_one_request_may(
    endpoint: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "PART", 1 << 16)
    monkeypatch.setattr(bucket, "_OPTIONS", {"connect_timeout": "3s", "timeout": "2s"})
    big = tmp_path / "big"
    big.write_bytes(os.urandom(1 << 19))
    Bucket(url).put(big, "big.snapshot")
    with slow_link(endpoint, bytes_per_s=100_000) as slow:
        monkeypatch.setenv("AWS_ENDPOINT_URL", slow)
        began_s = time.monotonic()
        with (tmp_path / "copy").open("wb") as into:
            Bucket(url).get("big.snapshot", into)
        assert time.monotonic() - began_s > 2.0
    assert (tmp_path / "copy").read_bytes() == big.read_bytes()


def test_a_place_moved_aside_is_empty_and_everything_is_kept(url: str, tmp_path: Path) -> None:
    place = Place(tmp_path / "snapshots", url)
    SnapshotStore(place / "partition-0").write(snapshot(5))
    SnapshotStore(place).move_aside(".old")
    assert found_in(SnapshotStore(place / "partition-0")) == []
    assert found_in(SnapshotStore(place.with_suffix(".old") / "partition-0")) == [5]
    assert Bucket(f"{url}.old").names() == [f"partition-0/{5:020d}.snapshot"]
    assert Snapshot.read(tmp_path / "snapshots.old" / "partition-0" / f"{5:020d}.snapshot").frontier
    assert read_meta(tmp_path / "snapshots.old" / "partition-0" / f"{5:020d}.snapshot")["id"]
