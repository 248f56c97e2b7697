"""The feature table as a store: made once, shared, made again where it is not whole, and few are kept."""

import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest

from pipelines.contracts.stream import Stream
from pipelines.lake.feature_table import KEPT, feature_table
from pipelines.lake.tables import Lake
from tests.pipelines.lake.test_lake_replay import into_lake, payments_logs
from tests.pipelines.payments import payments_stream


@pytest.fixture
def stream() -> Stream:
    return payments_stream("t")


@pytest.fixture
def lake(tmp_path: Path, stream: Stream) -> Lake:
    return into_lake(tmp_path / "lake", stream, *payments_logs(stream, seed=1))


@pytest.fixture
def n_folds(caplog: pytest.LogCaptureFixture) -> Callable[[], int]:
    """How often a lake was folded so far."""
    caplog.set_level(logging.INFO, "pipelines.lake.feature_table")
    return lambda: sum(record.getMessage().startswith("folded ") for record in caplog.records)


def tables(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def append(lake: Lake, table: str = "events") -> None:
    """The last row once more, under the next offset and another event id."""
    last = lake.read(table).tail(1)
    partition, offset = int(last["partition"][0]), int(last["offset"][0]) + 1
    row = last.drop("topic").with_columns(offset=pl.lit(offset), event_id=pl.lit(f"more-{offset}"))
    lake.append(table, row, topic=lake.stream.topic(table), through={partition: offset})


def test_a_lake_is_folded_once_for_each_version_and_definition(
    lake: Lake, stream: Stream, tmp_path: Path, n_folds: Callable[[], int]
) -> None:
    first = feature_table(lake, stream, tmp_path / "features")
    again = feature_table(lake, stream, tmp_path / "features")
    assert n_folds() == 1
    assert np.array_equal(first.hashes, again.hashes)
    score = {"partition": [0], "offset": [0], "scores_offset": [0], "event_id": ["e"], "score": [0.5], "alert": [False]}
    score |= {"model": ["m"], "features_hash": ["0" * 16], "late_ms": [0], "out_of_order": [False], "threshold": [None]}
    lake.append("scores", lake.frame("scores", score), topic=stream.topic("scores"), through={0: 0})
    feature_table(lake, stream, tmp_path / "features")
    assert n_folds() == 1  # no feature is made from a score
    append(lake)
    assert len(feature_table(lake, stream, tmp_path / "features")) == len(first) + 1
    append(lake, "labels")
    feature_table(lake, stream, tmp_path / "features")
    fewer = msgspec.structs.replace(stream, features=stream.features[1:])
    assert feature_table(lake, fewer, tmp_path / "features").numeric.shape[1] == first.numeric.shape[1] - 1
    assert n_folds() == 4


def test_another_lake_of_the_same_version_number_has_a_table_of_its_own(
    lake: Lake, stream: Stream, tmp_path: Path, n_folds: Callable[[], int]
) -> None:
    feature_table(lake, stream, tmp_path / "features")
    other = into_lake(tmp_path / "other", stream, *payments_logs(stream, seed=2))
    assert other.version() == lake.version()
    feature_table(other, stream, tmp_path / "features")
    assert n_folds() == 2


def test_a_snapshot_does_not_show_what_is_appended_later(lake: Lake, stream: Stream, tmp_path: Path) -> None:
    before = lake.snapshot()
    n = len(feature_table(before, stream, tmp_path / "features"))
    append(lake)
    assert len(feature_table(before, stream, tmp_path / "features")) == n
    assert len(feature_table(lake, stream, tmp_path / "features")) == n + 1


def test_few_tables_are_kept_and_a_reader_of_a_removed_one_goes_on(lake: Lake, stream: Stream, tmp_path: Path) -> None:
    first = feature_table(lake, stream, tmp_path / "features")
    hashes = np.array(first.hashes)
    for _ in range(KEPT):
        append(lake)
        feature_table(lake, stream, tmp_path / "features")
    assert len(tables(tmp_path / "features")) == KEPT
    assert not (tmp_path / "features" / first.key).exists()
    assert np.array_equal(first.hashes, hashes)
    assert len(first.event_id) == len(first)


@pytest.mark.parametrize("name", ["numeric.npy", "event_id.arrow", "manifest.json"])
def test_a_table_that_is_not_whole_is_made_again(
    lake: Lake, stream: Stream, tmp_path: Path, n_folds: Callable[[], int], name: str
) -> None:
    made = feature_table(lake, stream, tmp_path / "features")
    file = tmp_path / "features" / made.key / name
    whole = file.read_bytes()
    file.unlink() if name == "manifest.json" else file.write_bytes(whole[:-8])
    feature_table(lake, stream, tmp_path / "features")
    assert n_folds() == 2
    assert file.read_bytes() == whole


FOLD = """
import logging, os, resource, signal, sys
from pathlib import Path
from pipelines.lake.feature_table import feature_table
from pipelines.lake.tables import Lake
from tests.pipelines.payments import payments_stream
import pipelines.lake.replay
logging.basicConfig(level=logging.INFO)
root, what = Path(sys.argv[1]), sys.argv[2]
pipelines.lake.replay.CHUNK = 101
stream = payments_stream("t")
def progress(done, n):
    if what == "killed" and done > n / 2:
        os.kill(os.getpid(), signal.SIGKILL)
if what == "full disk":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
table = feature_table(Lake(root / "lake", stream), stream, root / "features", progress=progress)
print(len(table), int(table.hashes.sum()))
"""


def fold(tmp_path: Path, what: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", FOLD, str(tmp_path), what]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_fold_leaves_nothing_that_the_next_one_would_take(
    lake: Lake, stream: Stream, tmp_path: Path, n_folds: Callable[[], int]
) -> None:
    process = fold(tmp_path, "killed")
    _, said = process.communicate(timeout=150)
    assert process.returncode == -signal.SIGKILL, said
    assert [path.name[0] for path in tables(tmp_path / "features")] == ["."]
    made = feature_table(lake, stream, tmp_path / "features")
    assert n_folds() == 1
    assert [path.name for path in tables(tmp_path / "features")] == [made.key]


def test_two_processes_at_once_fold_once(lake: Lake, tmp_path: Path) -> None:
    processes = [fold(tmp_path, "together") for _ in range(2)]
    told = [process.communicate(timeout=150) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert told[0][0] == told[1][0]
    assert sum(said.count("folded ") for _, said in told) == 1


def test_a_full_disk_is_the_user_s_to_free(lake: Lake, tmp_path: Path) -> None:
    process = fold(tmp_path, "full disk")
    _, said = process.communicate(timeout=150)
    assert "LakeError: the feature table in" in said
    assert "free disk space, or set UNMASK_HOME to a larger disk" in said
