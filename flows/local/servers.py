"""MLflow (runs and model registry) and Prefect (schedules) as local servers.

Both store their data in one folder (SQLite and files), listen only on the loopback interface and send no telemetry.
"""

import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flows.extras import require
from flows.local import processes
from flows.local.processes import LOOPBACK, Process

NO_CALLS_HOME = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}

# A flow called from the command line shows its own progress. Its log is in Prefect.
NO_PREFECT_CONSOLE = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}

MLFLOW_PAGE = "/#/experiments?workflowType=machine_learning"  # without it, MLflow shows the pages of GenAI


@dataclass(frozen=True)
class Servers:
    """The two servers and their addresses."""

    mlflow: Process
    prefect: Process

    @property
    def mlflow_uri(self) -> str:
        """Value of MLFLOW_TRACKING_URI."""
        return self.mlflow.url

    @property
    def prefect_api(self) -> str:
        """Value of PREFECT_API_URL."""
        return f"{self.prefect.url}/api"

    def stop(self) -> None:
        """Stop both. Their data stays."""
        processes.stop_all([self.prefect, self.mlflow])


def start_servers(folder: Path, *, log: Callable[[str], None] = print) -> Servers:
    """Start MLflow and Prefect in `folder`, or find those that already run there.

    Args:
        folder: folder of databases, artifacts, logs and state files. Each server uses its last port if it is free.
        log: called with one line for each server.

    Raises:
        MissingExtraError: MLflow or Prefect is not installed.
        ServerError: one of them did not start. Both are stopped.
    """
    require("flows")
    mlflow = processes.find("mlflow", folder)
    prefect = processes.find("prefect", folder)
    started = []
    try:
        if mlflow is None:
            mlflow = _launch_mlflow(folder)
            started.append((mlflow, f"{mlflow.url}/health"))
        if prefect is None:
            prefect = _launch_prefect(folder)
            started.append((prefect, f"{prefect.url}/api/health"))
        for process, health in started:
            process.wait_until_up(lambda health=health: _answers(health))  # type: ignore[misc]
    except BaseException:
        processes.stop_all([process for process, _ in started])
        raise
    log(f"MLflow: {mlflow.url}{MLFLOW_PAGE}")
    log(f"Prefect: {prefect.url}")
    return Servers(mlflow, prefect)


def find_servers(folder: Path) -> Servers | None:
    """The servers that run in `folder`, or None unless both run. Another process may have started them."""
    mlflow, prefect = (processes.find(name, folder) for name in ("mlflow", "prefect"))
    return None if mlflow is None or prefect is None else Servers(mlflow, prefect)


def stop_servers(folder: Path) -> list[str]:
    """Stop the servers that run in `folder`. Return their names."""
    found = [process for name in ("mlflow", "prefect") if (process := processes.find(name, folder)) is not None]
    processes.stop_all(found)
    return [process.name for process in found]


def drain_prefect() -> None:
    """Make Prefect's client send buffered data while its server runs. Later it would retry for a minute."""
    if "prefect" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        for worker in (APILogWorker, EventsWorker):
            worker.drain_all(timeout=3)


def _launch_mlflow(folder: Path) -> Process:
    port = processes.choose_port("mlflow", folder)
    home = folder.resolve() / "mlflow"
    home.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        *("-m", "mlflow", "server", "--workers=1"),
        f"--host={LOOPBACK}",
        f"--port={port}",
        f"--backend-store-uri=sqlite:///{(home / 'mlflow.db').as_posix()}",
        f"--artifacts-destination={(home / 'artifacts').as_posix()}",
    ]
    env = NO_CALLS_HOME | {
        # Job execution would add eight processes for features that are not used.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    return processes.launch("mlflow", command, folder=folder, address=f"{LOOPBACK}:{port}", env=env)


def _launch_prefect(folder: Path) -> Process:
    port = processes.choose_port("prefect", folder)
    address = f"{LOOPBACK}:{port}"
    command = [
        sys.executable,
        *("-m", "prefect", "server", "start", "--analytics-off"),
        f"--host={LOOPBACK}",
        f"--port={port}",
    ]
    env = NO_CALLS_HOME | {
        "PREFECT_HOME": str(folder.resolve() / "prefect"),
        "PREFECT_API_URL": f"http://{address}/api",
        # In memory, a restart would lose the leases: a killed run would hold its concurrency limit for ever.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    return processes.launch("prefect", command, folder=folder, address=address, env=env)


def _answers(url: str) -> bool:
    # Do not use a proxy for the loopback interface.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2.0) as answer:
            return int(answer.status) == 200
    except OSError:
        return False
