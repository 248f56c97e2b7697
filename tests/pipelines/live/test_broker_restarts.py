"""The broker goes away under load and comes back: a pause, and nothing else."""

import json
import os
import signal
import threading
import time
from collections import defaultdict
from pathlib import Path

from flows.local.kafka_server import Broker, start_broker
from pipelines.kafka.port import Adapter
from pipelines.kafka.progress import progress_of
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


def assert_each_is_scored_once(rig: Rig) -> None:
    """If not, say where the scores lie that are too many, and which progress records tell of them."""
    places = defaultdict[str, list[tuple[int, int]]](list)
    for record in rig.published("scores"):
        places[json.loads(record.value or b"")["event_id"]].append((record.partition, record.offset))
    more_than_one = {event: found for event, found in places.items() if len(found) > 1}
    told = [
        (r.partition, r.offset, r.timestamp_ms, progress_of(r).next_offset, progress_of(r).n_scored)
        for r in rig.published("progress")
    ]
    assert not more_than_one, f"{more_than_one}\nprogress: {told}"
    assert sorted(places) == sorted(f"e{n}" for n in range(rig.n_sent))


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
        assert_each_is_scored_once(rig)
    finally:
        broker.stop()
