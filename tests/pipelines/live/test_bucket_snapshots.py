"""A scorer on another machine goes on from a snapshot in the object store; without the store, scoring goes on."""

import logging
from datetime import timedelta
from pathlib import Path

import pytest

from pipelines.features.bucket import Bucket, Place
from pipelines.features.snapshot import KEPT, SnapshotStore
from tests.object_store import BUCKET, object_store, variables
from tests.patience import wait_until
from tests.pipelines.live.rig import Rig, running


def test_another_machine_restores_what_one_has_stored(
    kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(kafka, tmp_path)
    url = f"s3://{BUCKET}/{rig.stream.name}"
    caplog.set_level(logging.INFO)
    with object_store(tmp_path) as endpoint:
        for name, value in variables(endpoint).items():
            monkeypatch.setenv(name, value)
        rig.send(60)
        with running(rig.scorer(snapshots=Place(tmp_path / "one", url))) as run:
            rig.wait_until_out()
            owner = run.scorer.owner
        assert Bucket(url).names()
        rig.send(40)
        caplog.clear()
        with running(rig.scorer(snapshots=Place(tmp_path / "other", url))):
            rig.wait_until_out()
        assert "restored from snapshot" in caplog.text
        told = [found.meta["owner"] for _, found in SnapshotStore(Place(tmp_path / "third", url)).newest_first()]
        assert told[-1] == {"replica": owner, "generation": 0}
    rig.send(30)
    every = timedelta(milliseconds=100)
    with running(
        rig.scorer(snapshots=Place(tmp_path / "other", url), snapshot_every=every)
    ) as run:  # the store is gone
        rig.wait_until_out()
        wait_until(lambda: run.scorer.counters.n_snapshots_failed > 6)
    assert len(list((tmp_path / "other").glob("*.snapshot"))) <= 2 * KEPT  # the newest few, and what they are based on
    assert "only the snapshots in" in caplog.text
    assert f"a snapshot was not written: {url}: " in caplog.text
    assert len({score["event_id"] for score in rig.scores()}) == len(rig.scores()) == rig.n_sent
