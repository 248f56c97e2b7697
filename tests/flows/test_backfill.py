"""Feature tables on a real Dask cluster of two processes."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.backfill import ClusterError, cluster
from flows.extras import MissingExtraError
from flows.settings import Settings, SettingsError
from pipelines.lake.feature_table import feature_table
from tests.pipelines.lake.test_lake_replay import both_stream, into_lake, payments_logs
from tests.pipelines.lake.test_shards import assert_same


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Address of the scheduler of a cluster of two processes."""
    distributed = pytest.importorskip("distributed", reason="Dask is not installed (unmask[grow])")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit=None, dashboard_address=None
    ) as running:
        yield running.scheduler_address


def test_a_cluster_of_two_processes_makes_the_same_table(
    tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = both_stream()
    lake = into_lake(tmp_path / "lake", stream, *payments_logs(stream, seed=1), batch=301)
    monkeypatch.setenv("UNMASK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("UNMASK_BACKFILL", scheduler)
    monkeypatch.setattr("pipelines.lake.replay.SLICE", 301)
    monkeypatch.chdir(tmp_path)  # workers do not share the folder in which a relative path begins
    found = feature_table(lake, stream, Path("shards"), workers=Settings().workers())
    assert_same(found, feature_table(lake, stream, tmp_path / "whole"))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_that_die_are_told(scheduler: str) -> None:
    with pytest.raises(ClusterError, match="died or were lost"), cluster(scheduler) as executor:
        executor.submit(_die).result()


def test_a_scheduler_that_is_not_there_is_told(scheduler: str, free_port: int) -> None:
    import dask

    soon, nobody = {"distributed.comm.timeouts.connect": "1s"}, f"tcp://127.0.0.1:{free_port}"
    with dask.config.set(soon), pytest.raises(ClusterError, match="no Dask scheduler answers"), cluster(nobody):
        pass


def test_by_default_there_is_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_HOME", str(tmp_path))
    monkeypatch.delenv("UNMASK_BACKFILL", raising=False)
    assert Settings().workers() is None
    monkeypatch.setenv("UNMASK_BACKFILL", "dask")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtraError, match=r"distributed is not installed; run `pip install 'unmask\[grow\]'`"):
        Settings().workers()
    monkeypatch.setenv("UNMASK_BACKFILL", "ray")
    with pytest.raises(SettingsError, match="UNMASK_BACKFILL is 'ray'; it must be dask, or the address of a Dask"):
        Settings()
