"""Kills flows with SIGKILL at random, under a real Prefect worker, and checks what the lake and the registry hold.

python -m tests.faults.flow_kills --kills 30 --seed 1 --out flows.json     30 minutes

Each round sends events and labels to Kafka, starts a run of a deployment, kills its process at a random time (in every
seventh round the worker, too), and lets the next run finish. In the end every record must be in the lake once, every
model of the registry must load, and no run may be left as running in Prefect or MLflow. Exit code 1 if not.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import psutil

from flows.local import processes
from flows.local.kafka_server import start_broker
from flows.local.processes import Process
from flows.local.servers import start_servers
from tests.patience import wait_until

STREAM = """
[stream]
name = "kills"
event_id = "id"
event_time = "at"
entities = ["card"]
[fields]
id = { type = "text" }
at = { type = "time" }
card = { type = "text" }
amount = { type = "number", min = 0 }
[labels]
maturity = "2s"
lag = "1s"
[[features]]
entity = "card"
field = "amount"
windows = ["all"]
stats = ["mean", "ratio"]
[alerts]
budget = { rate = 0.05 }
"""
FIRST, MORE = 3_000, 200  # events at the start, and in each round
FLOWS = ("ingest", "ingest", "maintain-lake", "pretrain", "finetune", "promote")
KILL_WORKER_EVERY = 7
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Rig:
    """The servers, the stream and the worker of one proof.

    Args:
        folder: of everything.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self._numbers = folder, np.random.default_rng(seed)
        self.stream_file = folder / "kills.toml"
        self.stream_file.write_text(STREAM)
        self.n_events = self.n_labels = 0
        self.broker = start_broker(folder / "kafka", log=print)
        self.servers = start_servers(folder / "ui", log=print)
        self.env = {
            "UNMASK_HOME": str(folder / "home"),
            "KAFKA_BOOTSTRAP_SERVERS": self.broker.bootstrap,
            "MLFLOW_TRACKING_URI": self.servers.mlflow_uri,
            "PREFECT_API_URL": self.servers.prefect_api,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        os.environ |= self.env
        self.worker: Process | None = None

    def start_worker(self) -> None:
        if self.worker is None or not self.worker.is_running:
            command = [sys.executable, *("-m", "prefect", "worker", "start", "--type", "process", "--pool", "unmask")]
            env = processes.inherited() | self.env
            self.worker = processes.launch("worker", command, folder=self.folder, address="", env=env)

    def send(self, n: int) -> None:
        """Events, and the label of each fraud."""
        from flows.settings import Settings
        from pipelines.contracts.stream_file import load
        from pipelines.kafka.port import Message

        stream, settings = load(self.stream_file), Settings()
        now_ms = int(time.time() * 1000)
        with settings.connection().writer() as writer:
            for _ in range(n):
                card = f"card-{self._numbers.integers(40)}"
                is_fraud = self._numbers.random() < 0.2
                amount = float(50 * np.exp(0.8 * self._numbers.normal()) * (3 if is_fraud else 1))
                event: dict[str, Any] = {"id": f"e{self.n_events}", "at": now_ms, "card": card}
                key = card.encode()
                writer.send(Message(stream.topic("events"), json.dumps(event | {"amount": amount}).encode(), key))
                self.n_events += 1
                if is_fraud:
                    label = event | {"label": 1, "labelled_at": now_ms, "source": "test"}
                    writer.send(Message(stream.topic("labels"), json.dumps(label).encode(), key))
                    self.n_labels += 1
            writer.flush()

    def stop(self) -> None:
        if self.worker is not None:
            self.worker.stop()
        self.servers.stop()
        self.broker.stop()


def process_of(run: UUID) -> psutil.Process | None:
    """The process that executes a flow run."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT__FLOW_RUN_ID") == str(run):
                return process
        except (psutil.Error, OSError):
            continue
    return None


def _has_begun(run: UUID, state: Callable[[UUID], str]) -> bool:
    return process_of(run) is not None or state(run) in FINAL


def prove(rig: Rig, kills: int, seed: int) -> dict[str, Any]:
    """Kill so often; returns the figures."""
    from prefect.client.orchestration import get_client

    from flows.deployments import deploy
    from flows.settings import Settings
    from pipelines.contracts.stream_file import load
    from pipelines.play.producer import create_stream_topics

    dice, stream = random.Random(seed), load(rig.stream_file)
    create_stream_topics(Settings().connection(), stream, n_partitions=3, append_time=True)
    rig.send(FIRST)
    deployed = {one.name.removeprefix("kills-"): UUID(one.id) for one in deploy(rig.stream_file, paused=True)}
    rig.start_worker()
    killed, in_state, longest_s = Counter[str](), Counter[str](), dict.fromkeys(FLOWS, 10.0)
    with get_client(sync_client=True) as client:

        def state(run: UUID) -> str:
            found = client.read_flow_run(run).state
            return found.type.value if found else ""

        def finish(flow: str) -> str:
            run = client.create_flow_run_from_deployment(deployed[flow]).id
            began_s = time.monotonic()
            wait_until(lambda: state(run) in FINAL, seen=lambda: (state(run), round(time.monotonic() - began_s, -2)))
            longest_s[flow] = max(1.0, time.monotonic() - began_s)
            return state(run)

        for flow in dict.fromkeys(FLOWS):
            print(f"first {flow}: {finish(flow)}", flush=True)
        for i in range(kills):
            flow = FLOWS[i % len(FLOWS)]
            rig.send(MORE)
            run = client.create_flow_run_from_deployment(deployed[flow]).id
            wait_until(partial(_has_begun, run, state), seen=partial(state, run))
            time.sleep(dice.random() * longest_s[flow])
            was, process = state(run), process_of(run)
            if process is not None:
                process.kill()
                killed[flow] += 1
                in_state[was] += 1
            if i % KILL_WORKER_EVERY == KILL_WORKER_EVERY - 1 and rig.worker is not None:
                rig.worker.kill()
                killed["worker"] += 1
            rig.start_worker()
            print(f"{i + 1} of {kills}: {flow} killed while {was}; the next one: {finish(flow)}", flush=True)
        finish("ingest")
        left = [run for run in client.read_flow_runs() if run.state is None or run.state.type.value not in FINAL]
        zombies = [f"{run.name} is {run.state_name}" for run in left if run.state_name not in ("Scheduled", "Late")]
    return {
        "kills": dict(killed),
        "in_state": dict(in_state),
        "problems": [*zombies, *_wrong_in_lake(rig), *_wrong_in_registry()],
        "events": rig.n_events,
        "labels": rig.n_labels,
    }


def _wrong_in_lake(rig: Rig) -> list[str]:
    from flows.settings import Settings
    from pipelines.contracts.stream_file import load

    stream, found = load(rig.stream_file), []
    lake = Settings().lake(stream)
    for table, sent in (("events", rig.n_events), ("labels", rig.n_labels)):
        rows = lake.read(table, columns=["partition", "offset", "event_id"])
        places, ids = rows.unique(["partition", "offset"]).height, rows["event_id"].n_unique()
        if (rows.height, places, ids) != (sent, sent, sent):
            found.append(f"{table}: {sent} sent, {rows.height} rows, {places} places, {ids} ids")
    return found


def _wrong_in_registry() -> list[str]:
    """Versions that do not load, and MLflow runs that are left as running."""
    from mlflow import MlflowClient

    from flows.settings import Settings
    from models.ship import artifact, registry

    settings, found = Settings(), []
    client = MlflowClient(tracking_uri=settings.tracking_uri(), registry_uri=settings.tracking_uri())
    for version in client.search_model_versions("name = 'kills-scorer'"):
        where, _ = registry.resolve_version(
            "kills-scorer", int(version.version), tracking_uri=settings.tracking_uri(), cache=settings.model_cache
        )
        artifact.load(where.folder, expect=where.digest)
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'"):
            found.append(f"MLflow run {run.info.run_name} of {experiment.name} is left as running")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="flow-kills-"))
    rig = Rig(folder, options.seed)
    try:
        figures = prove(rig, options.kills, options.seed)
    finally:
        rig.stop()
    print(json.dumps(figures, indent=2))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    if figures["problems"]:
        print(f"servers' data and logs: {folder}")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
