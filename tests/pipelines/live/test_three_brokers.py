"""Three brokers, of which one is killed: who leads a partition, who coordinates a transaction. A pause, and no more."""

import time
from pathlib import Path

import pytest

from pipelines.kafka.progress import transactional_id
from tests.pipelines.kafka.cluster import N_BROKERS, cluster_of_three
from tests.pipelines.live.rig import Rig, running


@pytest.mark.bench
def test_the_death_of_a_leader_or_a_coordinator_costs_a_pause_only(tmp_path: Path) -> None:
    with cluster_of_three(tmp_path / "kafka") as cluster:
        rig = Rig(cluster.bootstrap, tmp_path, replication=N_BROKERS)
        scores = rig.stream.topic("scores")
        scorer = rig.scorer()
        with running(scorer) as run:
            rig.send(500)
            rig.wait_until_out()
            for what in ("leader", "coordinator"):
                cluster.wait_until_in_sync(scores, "__transaction_state", rig.stream.topic("progress"))
                of_id = transactional_id(rig.stream, 0)
                killed = cluster.leaders(scores)[0] if what == "leader" else cluster.coordinator_of(of_id)
                rig.send(2_000)
                cluster.kill(killed)
                began_s = time.monotonic()
                rig.send(200)
                rig.wait_until_out()
                print(f"the {what} was killed; everything was out {time.monotonic() - began_s:.1f} s later")
                assert run.is_alive, run.error
                cluster.start(killed)
        scored = [score["event_id"] for score in rig.scores()]
        assert sorted(scored) == sorted(f"e{n}" for n in range(rig.n_sent))
