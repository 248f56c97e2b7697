"""The broker goes away under load and comes back: a pause, and nothing else."""

import os
import signal
import threading
import time
from pathlib import Path

from flows.local.kafka_server import Broker, start_broker
from pipelines.kafka.port import Adapter
from tests.patience import wait_until
from tests.pipelines.live.rig import Rig, running


def end(broker: Broker, how: signal.Signals) -> None:
    """End the broker's process, and no other."""
    assert broker.process is not None
    os.kill(broker.process.pid, how)
    broker.stop()


def producers_since(before: set[threading.Thread]) -> list[str]:
    """Names of the threads of kafka-python's producers that are left."""
    return [thread.name for thread in set(threading.enumerate()) - before if "producer" in thread.name]


def test_a_broker_that_is_restarted_or_killed_under_load_costs_a_pause_only(tmp_path: Path, adapter: Adapter) -> None:
    said, before = list[str](), set(threading.enumerate())
    broker = start_broker(tmp_path / "kafka", log=said.append)
    try:
        rig = Rig(broker.bootstrap, tmp_path, adapter=adapter)
        with running(rig.scorer()) as run:
            for how in (signal.SIGTERM, signal.SIGKILL):
                rig.send(2_000)
                end(broker, how)
                time.sleep(2.0)
                broker = start_broker(tmp_path / "kafka", log=said.append)
                rig.send(200)
                rig.wait_until_out()
                assert run.is_alive, run.error
        wait_until(lambda: not producers_since(before), seen=lambda: producers_since(before))
        scored = [score["event_id"] for score in rig.scores()]
        assert sorted(scored) == sorted(f"e{n}" for n in range(rig.n_sent))
    finally:
        broker.stop()
