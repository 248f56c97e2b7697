"""Snapshots of a scorer that has nothing to do: each can be read, and a restart uses one of them."""

import time
from datetime import timedelta
from pathlib import Path

from pipelines.features.snapshot import Snapshot
from tests.patience import wait_until
from tests.pipelines.live.rig import Rig, running


def test_snapshots_of_an_idle_scorer_can_be_read(kafka: str, tmp_path: Path) -> None:
    rig = Rig(kafka, tmp_path)
    with running(rig.scorer(snapshot_every=timedelta(seconds=0.2))) as run:
        rig.send(50)
        rig.wait_until_out()
        n_before = run.scorer.counters.n_snapshots
        wait_until(lambda: run.scorer.counters.n_snapshots >= n_before + 4)  # of the same events
        time.sleep(0.3)
    paths = list((tmp_path / "snapshots").glob("*.snapshot"))
    assert paths
    for path in paths:
        Snapshot.read(path)
    rig.send(5)
    with running(rig.scorer()) as run:
        rig.wait_until_out()
        assert run.scorer.counters.n_folded < 55
    assert len(rig.scores()) == 55
