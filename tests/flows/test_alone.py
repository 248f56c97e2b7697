"""No flow runs beside itself, and a killed run neither stays `Running` for ever nor blocks the next one."""

import os
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import CancelledRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Pending, Running

from flows.alone import alone
from flows.local import processes
from flows.local.processes import Process
from flows.local.servers import Servers
from tests.patience import wait_until

STREAM = Path(__file__).parents[2] / "flows" / "streams" / "payments.toml"
JOB = """
import os, time
from pathlib import Path
from prefect import flow
from flows.alone import alone

@flow(name="job", validate_parameters=False)
@alone
def job(stream: Path) -> None:
    home = Path(os.environ["UNMASK_HOME"])
    (home / "started").touch()
    while (home / "block").exists():
        time.sleep(0.1)
"""


@pytest.fixture
def client(servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    monkeypatch.setenv("UNMASK_HOME", str(tmp_path))
    with temporary_settings({PREFECT_API_URL: servers.prefect_api}), get_client(sync_client=True) as client:
        yield client


def until(holds: Callable[[], bool], worker: Process) -> None:
    wait_until(holds, seen=worker.printed, alive=lambda: worker.is_running)


def test_after_sigkill_the_next_run_of_a_deployment_runs_and_closes_the_zombie(
    client: SyncPrefectClient, servers: Servers, tmp_path: Path
) -> None:
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "block").touch()
    pool = f"pool-{uuid4().hex[:8]}"
    env = processes.inherited() | {
        "UNMASK_HOME": str(tmp_path),
        "PREFECT_API_URL": servers.prefect_api,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }

    def worker(name: str) -> Process:
        command = [sys.executable, *("-m", "prefect", "worker", "start", "--type", "process", "--pool", pool)]
        return processes.launch(name, command, folder=tmp_path, address="", env=env)

    def state(run: UUID) -> str:
        found = client.read_flow_run(run).state
        return str(found.name) if found else ""

    first = worker("first")
    try:
        until(lambda: any(p.name == pool for p in client.read_work_pools()), first)
        source = Flow.from_source(source=str(tmp_path), entrypoint="job.py:job")
        assert isinstance(source, Flow)
        deployment = source.deploy(
            name="job", work_pool_name=pool, parameters={"stream": str(STREAM)}, build=False, print_next_steps=False
        )
        assert isinstance(deployment, UUID)
        killed = client.create_flow_run_from_deployment(deployment).id
        until(lambda: (tmp_path / "started").exists(), first)
        beside = client.create_flow_run_from_deployment(deployment).id
        until(lambda: state(beside) == "Cancelled", first)
        assert "job of payments is already running" in str(client.read_flow_run(beside).state)
    finally:
        first.kill()
    assert state(killed) == "Running"

    (tmp_path / "block").unlink()
    left: list[State[None]] = [Pending(name="Submitting"), Running()]
    unborn = [client.create_flow_run_from_deployment(deployment, state=one).id for one in left]
    following = client.create_flow_run_from_deployment(deployment).id
    second = worker("second")
    try:
        until(lambda: state(following) in ("Completed", "Cancelled", "Crashed", "Failed"), second)
        assert state(following) == "Completed", second.printed()
        assert [state(run) for run in (killed, *unborn)] == ["Crashed"] * 3
    finally:
        second.stop()


@pytest.mark.parametrize(
    "name", ["ingest", "maintain_lake", "monitor", "retrain", "pretrain", "finetune", "promote", "backtest"]
)
def test_no_flow_runs_beside_itself(name: str, client: SyncPrefectClient, tmp_path: Path) -> None:
    flow = getattr(import_module(f"flows.{name}"), name)

    def beside(stream: Path) -> None:
        with pytest.raises(CancelledRun, match=f"{name} of payments is already running"):
            # By its shipped name, as a deployment may have it: the same stream.
            flow("payments")

    beside.__name__ = name
    alone(beside)(STREAM)
    assert os.listdir(tmp_path / "work" / "payments" / "runs") == [f"{name}.json"]
