"""MLflow, Prefect and the place of the snapshots: do they answer, and is what a stream needs there?"""

import json
import os
import tempfile
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from flows.doctor.finding import Finding, error, ok, warning
from flows.doctor.installed import unwritable
from flows.local import servers
from flows.settings import POOL, Settings, SettingsError
from models.ship import registry
from pipelines.contracts.stream import Stream
from pipelines.features.bucket import Bucket

SECTION = "servers"
TIMEOUT_S = 5.0
ACTIVE = ("PENDING", "RUNNING", "CANCELLING")


def mlflow(settings: Settings) -> Iterator[Finding]:
    """Whether MLflow answers, and its version."""
    try:
        uri = settings.tracking_uri()
    except SettingsError as missing:
        yield error(SECTION, "MLflow", str(missing), "unmask ui start")
        return
    fix = "unmask ui start, or export MLFLOW_TRACKING_URI=http://host:port"
    if not registry.answers(uri):
        yield error(SECTION, "MLflow", f"{uri} did not answer within {registry.PROBE_S:g} s", fix)
        return
    if not uri.startswith("http"):
        yield ok(SECTION, "MLflow", f"{uri}, a database, not a server")
        return
    try:
        server = _get(f"{uri.rstrip('/')}/version", _mlflow_login()).strip()
    except OSError as failed:
        yield warning(
            SECTION,
            "MLflow",
            f"{uri} answers, but refuses: {failed}",
            "export MLFLOW_TRACKING_USERNAME=... and MLFLOW_TRACKING_PASSWORD=...",
        )
        return
    client = _installed("mlflow-skinny")
    if client and client.split(".")[0] != server.split(".")[0]:
        yield warning(SECTION, "MLflow", f"server {server}, client {client}", f"pip install 'mlflow-skinny=={server}'")
    else:
        yield ok(SECTION, "MLflow", f"{uri}, version {server}")


def prefect(settings: Settings, stream: Stream, words: str) -> Iterator[Finding]:
    """Whether Prefect answers; pool, worker, deployments of the stream, places that are taken by no run.

    Asked over HTTP: Prefect's client takes longer to import than all checks together.
    """
    local = servers.find_servers(settings.ui_folder)
    api = settings.prefect or (local.prefect_api if local else None)
    fix = "unmask ui start, or export PREFECT_API_URL=http://host:port/api"
    if api is None:
        yield warning(SECTION, "Prefect", "no server is set or running here; flows run by command only", fix)
        return
    if not registry.answers(api):
        yield error(SECTION, "Prefect", f"{api} did not answer within {registry.PROBE_S:g} s", fix)
        return
    try:
        server = json.loads(_get(f"{api}/admin/version", _prefect_login()))
        yield ok(SECTION, "Prefect", f"{api}, version {server}")
        found = _ask(api, "deployments/filter", {"deployments": {"tags": {"all_": [stream.name]}}})
        if not found:
            yield warning(SECTION, "deployments", f"none of {stream.name}", f"unmask deploy {words}")
            return
        yield from _worker(api)
        yield from _deployments(api, found, words)
    except HTTPError as refused:
        yield error(
            SECTION,
            "Prefect",
            f"{refused.url} refuses: {refused.code} {refused.reason}",
            "export PREFECT_API_KEY=... or PREFECT_API_AUTH_STRING=...",
        )


def _worker(api: str) -> Iterator[Finding]:
    workers = _ask(api, f"work_pools/{POOL}/workers/filter", {})
    online = [worker["name"] for worker in workers if worker["status"] == "ONLINE"]
    if online:
        yield ok(SECTION, "worker", f"{', '.join(online)} of pool {POOL}")
    else:
        yield warning(
            SECTION, "worker", f"none in pool {POOL}: scheduled runs wait", f"prefect worker start --pool {POOL}"
        )


def _deployments(api: str, found: list[dict[str, Any]], words: str) -> Iterator[Finding]:
    paused = [one["name"] for one in found if one["paused"]]
    if paused:
        yield warning(SECTION, "deployments", f"paused: {', '.join(sorted(paused))}", f"unmask deploy {words}")
    else:
        yield ok(SECTION, "deployments", ", ".join(sorted(one["name"] for one in found)))
    for one in found:
        limit = one.get("global_concurrency_limit") or {}
        if not limit.get("active_slots"):
            continue
        runs = {"deployments": {"id": {"any_": [one["id"]]}}, "flow_runs": {"state": {"type": {"any_": ACTIVE}}}}
        if not _ask(api, "flow_runs/count", runs):
            fix = f"wait 6 minutes; if it is still taken: prefect gcl update '{limit['name']}' --active-slots 0"
            yield warning(SECTION, one["name"], "its place is taken, but no run is active: new runs wait", fix)


def snapshots(settings: Settings, stream: Stream) -> Iterator[Finding]:
    """Write, read and delete a file where snapshots lie."""
    place = settings.snapshots(stream)
    if problem := unwritable(place.folder):
        yield error(SECTION, "snapshots", problem, "export UNMASK_SNAPSHOTS=FOLDER that this user may write")
    elif place.url is None:
        yield ok(SECTION, "snapshots", f"{place.folder}")
    else:
        try:
            _probe(Bucket(place.url))
        except OSError as failed:
            fix = "set the login of the store (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...), or UNMASK_SNAPSHOTS"
            yield error(SECTION, "snapshots", str(failed), fix)
        else:
            yield ok(SECTION, "snapshots", f"{place.url}, and copies in {place.folder}")


def _probe(bucket: Bucket) -> None:
    """Raises OSError if a file cannot be written, read and deleted."""
    name = f"doctor-{os.getpid()}.probe"
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "back").open("w+b") as back:
        probe = Path(folder) / name
        probe.write_bytes(b"probe")
        bucket.put(probe, name)
        bucket.get(name, back)
        bucket.delete([name])
        back.seek(0)
        if back.read() != b"probe":
            raise OSError(f"{bucket.url} does not keep what is written")


def _ask(api: str, path: str, body: dict[str, Any]) -> Any:
    return json.loads(_get(f"{api}/{path}", _prefect_login(), json.dumps(body).encode()))


def _get(url: str, login: str, body: bytes | None = None) -> str:
    headers = {"Content-Type": "application/json"} | ({"Authorization": login} if login else {})
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=TIMEOUT_S) as answer:
        return str(answer.read().decode())


def _prefect_login() -> str:
    if key := os.environ.get("PREFECT_API_KEY"):
        return f"Bearer {key}"
    return _basic(os.environ.get("PREFECT_API_AUTH_STRING", ""))


def _mlflow_login() -> str:
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return f"Bearer {token}"
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD"))
    return _basic(f"{user}:{password}" if user else "")


def _basic(login: str) -> str:
    return f"Basic {b64encode(login.encode()).decode()}" if login else ""


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
