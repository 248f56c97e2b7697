"""A server that speaks S3, in a process of its own."""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

from flows.local.processes import LOOPBACK, free_port
from tests.patience import wait_until

BUCKET = "bank"


def variables(endpoint: str) -> dict[str, str]:
    """What makes a client use it."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }


@contextmanager
def object_store(folder: Path) -> Iterator[str]:
    """Its address; it has one bucket, `BUCKET`, and its log is in the folder."""
    port = free_port()
    endpoint = f"http://{LOOPBACK}:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(port)]
    with (folder / "object-store.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"PYTHONWARNINGS": "ignore"})

    def makes_the_bucket() -> bool:
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT"), timeout=5):
                return True
        except (URLError, OSError):
            return False

    try:
        wait_until(makes_the_bucket, alive=lambda: process.poll() is None)
        yield endpoint
    finally:
        process.kill()
        process.wait()
