"""The fold in shards is that of one process, bit for bit, on any executor; a stopped one goes on where it was."""

import pickle
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts.stream import Feature, Labels, Reports, Stream
from pipelines.errors import LakeError
from pipelines.lake import shards
from pipelines.lake.feature_table import FeatureTable, feature_table
from pipelines.lake.shards import Workers
from pipelines.lake.tables import Lake
from tests.pipelines.lake.test_feature_table import append
from tests.pipelines.lake.test_lake_replay import both_stream, into_lake, payments_logs
from tests.pipelines.payments import payments_stream
from tests.strategies import features

ARRAYS = (
    "partition", "offset", "clock_ms", "time_ms", "entity", "numeric", "categorical", "hashes", "late_ms", "duplicates",
)  # fmt: skip
HOUR_MS = 3_600_000


class Threads(ThreadPoolExecutor):
    """Two threads that note the tasks which they were given, and fail at the second one of a kind."""

    def __init__(self, told: list[str], fails: str | None = None) -> None:
        super().__init__(2)
        self.told, self.fails, self.before = told, fails, told.count(fails or "")

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        self.told.append(fn.__name__)
        is_second = fn.__name__ == self.fails and self.told.count(self.fails) == self.before + 2
        return super().submit(_fail) if is_second else super().submit(fn, *args, **kwargs)


def _fail() -> None:
    raise LakeError("a worker died")


def threads(told: list[str] | None = None, fails: str | None = None) -> Workers:
    return lambda: Threads([] if told is None else told, fails)


def assert_same(one: FeatureTable, other: FeatureTable) -> None:
    assert one.key == other.key
    for name in ARRAYS:
        ours, theirs = getattr(one, name), getattr(other, name)
        assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes()), name
    assert one.event_id.equals(other.event_id)


def by_key(stream: Stream) -> Stream:
    """With windows of the key only: each partition has a state of its own."""
    return msgspec.structs.replace(stream, features=tuple(f for f in stream.features if f.entity == stream.key))


def few_ids(stream: Stream) -> Stream:
    """So few ids are remembered that the limit decides what is a duplicate, and which label changes something."""
    return msgspec.structs.replace(stream, duplicate_memory_ids=40)


@pytest.mark.parametrize(
    ("change", "n_shards"),
    [(few_ids, 1), (by_key, 2), (lambda stream: by_key(few_ids(stream)), 3), (lambda stream: stream, 7)],
)
def test_shards_make_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Stream], Stream], n_shards: int
) -> None:
    stream = change(both_stream())
    lake = into_lake(tmp_path / "lake", stream, *payments_logs(stream, seed=n_shards), batch=301)
    whole = feature_table(lake, stream, tmp_path / "whole")
    assert len(whole.duplicates) > 5
    assert int((whole.late_ms > 0).sum()) > 10
    monkeypatch.setattr(shards, "SHARDS", n_shards)
    monkeypatch.setattr("pipelines.lake.replay.SLICE", 301)
    monkeypatch.setattr(shards, "CHUNK", 101)
    shares: list[tuple[int, int]] = []
    found = feature_table(
        lake, stream, tmp_path / "shards", workers=threads(), progress=lambda *share: shares.append(share)
    )
    assert_same(found, whole)
    assert shares == sorted(shares)
    assert shares[-1][0] == shares[-1][1] == len(whole) + len(whole.duplicates) + lake.read("labels").height
    assert [path.name for path in (tmp_path / "shards").iterdir() if path.is_dir()] == [whole.key]


@st.composite
def small_lakes(draw: st.DrawFn) -> tuple[Stream, dict[str, list[dict[str, Any]]]]:
    """A stream of two entities, and rows of its lake: events and labels in two partitions, at nearly the same times."""
    reports: Reports = draw(st.sampled_from(("frauds", "both")))
    stream = payments_stream("t")
    windows_ms = (60_000, HOUR_MS)
    wanted: list[Feature] = draw(
        st.lists(
            features(stream.entities, stream.numbers, stream.hashed, windows_ms, reports),
            min_size=1, max_size=9, unique_by=lambda f: f.name,
        )
    )  # fmt: skip
    stream = msgspec.structs.replace(
        stream,
        features=tuple(wanted),
        labels=Labels(5 * 60_000, 1_000, reports=reports, sources=draw(st.sampled_from(((), ("analyst",))))),
        duplicate_memory_ms=draw(st.sampled_from((1_000, HOUR_MS))),
        duplicate_memory_ids=draw(st.sampled_from((1, 3, 1_000))),
        lifetime_memory_ms=2 * HOUR_MS,
    )
    some = st.sampled_from((0, 1, 999, 60_000, HOUR_MS, 3 * HOUR_MS))
    ids = st.sampled_from((None, "a", "b", "c", "d"))
    clocks, rows = [1_700_000_000_000] * 2, {"events": [], "labels": []}  # type: ignore[var-annotated]
    for _ in range(draw(st.integers(0, 40))):
        partition, about = draw(st.integers(0, 1)), draw(st.integers(0, 8))
        clocks[partition] += draw(some)
        kind = draw(st.sampled_from(("events", "events", "labels")))
        offset = sum(row["partition"] == partition for row in rows[kind])
        row = {"partition": partition, "offset": offset, "arrival_ms": clocks[partition], "event_id": f"e{about}"}
        row |= {"event_time_ms": clocks[partition] - draw(some), stream.key: draw(st.sampled_from("abc"))}
        row |= {name: draw(ids) for name in stream.entities[1:]}
        if kind == "labels":
            row |= {
                "label": draw(st.integers(0, 1)),
                "labelled_at_ms": 0,
                "source": draw(st.sampled_from(("analyst", "x"))),
            }
            row |= {"labelled_by": None, "label_why": None}
        else:
            row |= {name: draw(st.one_of(st.none(), st.floats(0, 1e6))) for name in stream.numbers}
            row |= {name: draw(ids) for name in stream.categories}
        rows[kind].append(row)
    return stream, rows


@settings(max_examples=10)
@given(small_lakes(), st.sampled_from((1, 2, 3, 7)), st.sampled_from((3, 10**6)))
def test_shards_of_any_stream_make_no_difference(
    tmp_path_factory: pytest.TempPathFactory,
    small: tuple[Stream, dict[str, list[dict[str, Any]]]],
    n_shards: int,
    n_slice: int,
) -> None:
    stream, rows = small
    root = tmp_path_factory.mktemp("small")
    lake = Lake(root / "lake", stream)
    for table, here in rows.items():
        through = {row["partition"]: row["offset"] for row in here}
        if here:
            columns = {name: [row[name] for row in here] for name in here[0]}
            lake.append(table, lake.frame(table, columns), topic=stream.topic(table), through=through)
    whole = feature_table(lake, stream, root / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARDS", n_shards)
        patch.setattr("pipelines.lake.replay.SLICE", n_slice)
        assert_same(feature_table(lake, stream, root / "shards", workers=threads()), whole)


def test_what_is_finished_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = payments_stream("t")
    lake = into_lake(tmp_path / "lake", stream, *payments_logs(stream, seed=1))
    monkeypatch.setattr(shards, "SHARDS", 4)
    monkeypatch.setattr("pipelines.lake.replay.SLICE", 301)
    first: list[str] = []
    feature_table(lake, stream, tmp_path / "at once", workers=threads(first))
    told: list[str] = []
    for fails in ("_read", "_fold", "_assemble"):
        with pytest.raises(LakeError, match="a worker died"):
            feature_table(lake, stream, tmp_path / "stopped", workers=threads(told, fails))
    found = feature_table(lake, stream, tmp_path / "stopped", workers=threads(told))
    assert told.count("_decide") == first.count("_decide") == 1
    assert len(first) < len(told) < 3 * len(first)
    assert_same(found, feature_table(lake, stream, tmp_path / "whole"))


def test_a_snapshot_in_another_process_does_not_show_what_is_appended_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = payments_stream("t")
    monkeypatch.chdir(tmp_path)
    events, labels = payments_logs(stream, seed=1)
    lake = into_lake(Path("lake"), stream, events, labels)
    packed = pickle.dumps(lake.snapshot())
    before = lake.read("events")
    append(lake)
    monkeypatch.chdir("/")
    assert pickle.loads(packed).read("events").equals(before)
    (tmp_path / "lake").rename(tmp_path / "elsewhere")
    with pytest.raises(LakeError, match="must reach it under this path"):
        pickle.loads(packed)


def test_a_worker_that_cannot_do_the_work_says_why(tmp_path: Path) -> None:
    stream = payments_stream("t")
    job = shards.Job(stream, tmp_path, 1, 0, 1, "0.0")
    with pytest.raises(LakeError, match=r"has version .* of Unmask; install 0\.0 there"):
        job.check()
    with pytest.raises(LakeError, match=r"does not see .*; set UNMASK_HOME to a folder that all workers reach"):
        replace(job, version=version("unmask"), folder=tmp_path / "elsewhere").check()
