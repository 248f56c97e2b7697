"""`mlflow models serve` as a process, and what it answers."""

import json
import os
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flows.local import processes

Feature = float | str | None


@contextmanager
def served_by_mlflow(model_uri: str, folder: Path, *, tracking_uri: str) -> Iterator[str]:
    """Serve a model on a free port; its address."""
    port = processes.free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model_uri, "--env-manager", "local"]
    command += ["--port", str(port), "--host", processes.LOOPBACK]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # MLflow calls uvicorn by its name
    env = {"PATH": path, "MLFLOW_TRACKING_URI": tracking_uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    process = processes.launch("served", command, folder=folder, address=f"{processes.LOOPBACK}:{port}", env=env)
    try:
        process.wait_until_up(lambda: _is_healthy(process.url))
        yield process.url
    finally:
        process.stop()


def ask(url: str, rows: Sequence[Mapping[str, Feature]], **params: str) -> list[dict[str, Any]]:
    """The predictions for rows of features."""
    body = json.dumps({"dataframe_records": list(rows)} | ({"params": params} if params else {})).encode()
    request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        found: list[dict[str, Any]] = json.load(answer)["predictions"]
    return found


def _is_healthy(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"{url}/ping", timeout=5) as answer:
        return bool(answer.status == 200)
    return False
