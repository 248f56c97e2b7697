"""The MLflow client, with a health check before calls, timeouts of a few seconds and one error type."""

import os
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from typing import TYPE_CHECKING
from urllib.error import HTTPError

from models.errors import ModelError

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Timeout of the health check.
PROBE_S = 3.0

# With MLflow's defaults, one request to a dead server takes four minutes (seven retries with doubling delays).
CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "DO_NOT_TRACK": "1",
}


class RegistryError(ModelError):
    """MLflow does not have the model, or is not available and there is no copy."""


class NoVersionError(RegistryError):
    """MLflow does not have this version of a model."""


def answers(url: str) -> bool:
    """Whether a server answers at `url`/health within `PROBE_S`, even if the connection hangs.

    An HTTP error such as 403 counts as an answer. Database URIs are not checked.
    """
    if not url.startswith(("http://", "https://")):
        return True
    said: list[bool] = []

    def ask() -> None:
        with suppress(OSError, ValueError, HTTPException):
            try:
                with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=PROBE_S) as answer:
                    said.append(answer.status == 200)
            except HTTPError as error:
                said.append(error.code < 500 and error.code != 404)

    asking = threading.Thread(target=ask, name="health-probe", daemon=True)
    asking.start()
    asking.join(PROBE_S)
    return said == [True]


@contextmanager
def asked(tracking_uri: str) -> Iterator[None]:
    """Wrap calls of the MLflow client: check that the server answers, and raise errors as `RegistryError`."""
    if not answers(tracking_uri):
        raise RegistryError(
            f"MLflow at {tracking_uri} did not answer within {PROBE_S:.0f} s; start it (`unmask ui start`), or set "
            "MLFLOW_TRACKING_URI"
        )
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:  # the errors of its HTTP client are OSErrors
        words = str(error).strip().partition("\n")[0][:300]
        raise RegistryError(f"MLflow at {tracking_uri} failed: {words}. See its log, then try again") from error


def client_of(tracking_uri: str) -> "MlflowClient":
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
