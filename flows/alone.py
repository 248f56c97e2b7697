"""Allow one run at a time per flow and stream. If a run was killed, the next one marks it as crashed.

The lock is a file lock of the operating system. It is released when its process ends, even by SIGKILL or power loss.
The limits of the deployments (flows/deployments.py) hold for scheduled runs only, not for those of the command line.
"""

import fcntl
import inspect
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast
from uuid import UUID

import psutil
from httpx import HTTPError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import Cancelled, Crashed

from flows.lineage import FLOW_RUN_TAG
from flows.settings import Settings
from flows.streams.shipped import load
from models.ship import registry

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


def alone(run: Callable[P, R]) -> Callable[P, R]:
    """Decorator below `@flow`: if the same flow and stream is already running, end this run at once as Cancelled."""
    signature = inspect.signature(run)

    @wraps(run)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        stream = load(Path(signature.bind(*args, **kwargs).arguments["stream"]))
        path = Settings().work_folder(stream, "runs") / f"{run.__name__}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="utf-8") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                words = (
                    f"{run.__name__} of {stream.name} is already running (see {path}); wait until it ends, or stop it"
                )
                return cast(R, Cancelled(message=words))
            _close_zombie(held.read(), f"{stream.name}/{run.__name__}")
            _close_unborn()
            held.seek(0)
            held.truncate()
            json.dump(_this_run(), held)
            held.flush()
            try:
                return run(*args, **kwargs)
            finally:  # what stays is that of a run that was killed
                held.seek(0)
                held.truncate()

    return guarded


def _flow_run() -> FlowRun | None:
    context = FlowRunContext.get()
    return context.flow_run if context else None


def _this_run() -> dict[str, Any]:
    found, process = _flow_run(), psutil.Process()
    return {
        "flow_run": str(found.id) if found else None,
        "host": socket.gethostname(),
        "pid": process.pid,
        "created": process.create_time(),
    }


def _close_zombie(left: str, experiment: str) -> None:
    """Mark the last run as crashed and its MLflow runs as killed, if its process was killed in mid-run."""
    try:
        last = json.loads(left)
        if last["flow_run"] is None or _lives(last):
            return
    except (ValueError, KeyError, TypeError):
        return  # there is no earlier run
    registry.end_runs(experiment, FLOW_RUN_TAG, last["flow_run"], tracking_uri=Settings().tracking_uri_or_nowhere())
    with _prefect() as client, suppress(ObjectNotFound):
        state = client.read_flow_run(last["flow_run"]).state
        if state is None or not state.is_final():
            _crashed(client, last["flow_run"], "its process was killed; detected by the next run")


def _close_unborn() -> None:
    """Mark runs of this deployment as crashed whose worker was killed with them before they could take the lock.

    A deployment has a limit of one run, and this one has the lock: none of them lives.
    """
    this = _flow_run()
    if this is None or this.deployment_id is None:
        return
    begun = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING])
    asked = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[this.deployment_id]), state=FlowRunFilterState(type=begun)
    )
    with _prefect() as client:
        for run in client.read_flow_runs(flow_run_filter=asked):
            if run.id != this.id:
                _crashed(client, run.id, "its process and its worker were killed; detected by the next run")


@contextmanager
def _prefect() -> Iterator[SyncPrefectClient]:
    """Prefect's client; that it does not answer is a warning."""
    try:
        with get_client(sync_client=True) as client:
            yield client
    except (HTTPError, PrefectException) as error:
        log.warning("Prefect may still show a killed run as running: %s: %s", type(error).__name__, error)


def _crashed(client: SyncPrefectClient, run: UUID, words: str) -> None:
    client.set_flow_run_state(run, Crashed(message=words), force=True)


def _lives(run: dict[str, Any]) -> bool:
    """Whether the process of a run exists: it waits for a retry, or is about to report its end."""
    if run["host"] != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(run["pid"]).create_time() - run["created"]) < 1.0
    except psutil.NoSuchProcess:
        return False
