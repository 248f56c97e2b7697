"""MLflow: runs with their curves and plots, and the registry of models (the only file that imports mlflow).

The registry is a convenience, never a need: `resolve` goes on with the last good copy when MLflow is away.
"""

import json
import os
import re
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from models.errors import ModelError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

Alias = Literal["champion", "challenger"]

# MLflow's pages then show an experiment as training, not as work on prompts.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}

# The folder of a run's artifacts that holds the model.
MODEL_FOLDER = "model"

# By default one look-up at a dead server takes four minutes (seven retries, doubling).
CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "DO_NOT_TRACK": "1",
}

# MLflow's own limits for one call, and how long a curve may wait before it is shown.
METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
FLUSH_AFTER_S = 2.0


class RegistryError(ModelError):
    """MLflow has no such model, or cannot be reached and there is no copy to go on with."""


@dataclass
class Run:
    """One run being written; metrics are sent in batches.

    Args:
        run_id: MLflow's id of the run.
        experiment_id: MLflow's id of its experiment.
        tracking_uri: the server.
    """

    run_id: str
    experiment_id: str
    tracking_uri: str
    _client: "MlflowClient" = field(repr=False)
    _waiting: list[tuple[str, float, int, int]] = field(default_factory=list, repr=False)
    _flushed: float = field(default_factory=time.monotonic, repr=False)

    @property
    def url(self) -> str:
        """The run's page."""
        path = f"/#/experiments/{self.experiment_id}/runs/{self.run_id}"
        return f"{self.tracking_uri}{path}?workflowType=machine_learning"

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Add a point to each named curve."""
        now_ms = int(time.time() * 1000)
        self._waiting.extend((name, float(value), now_ms, step) for name, value in values.items())
        if len(self._waiting) >= METRICS_PER_CALL or time.monotonic() - self._flushed > FLUSH_AFTER_S:
            self.flush()

    def log_params(self, params: Mapping[str, object]) -> None:
        """Set what the run was made with; a value longer than MLflow keeps is cut."""
        from mlflow.entities import Param

        entities = [Param(name, str(value)[:6000]) for name, value in params.items()]
        for start in range(0, len(entities), PARAMS_PER_CALL):
            self._client.log_batch(self.run_id, params=entities[start : start + PARAMS_PER_CALL])

    def log_figure(self, name: str, figure: "Figure") -> None:
        """Store a plot as `plots/<name>.png`."""
        self._client.log_figure(self.run_id, figure, f"plots/{name}.png")

    def log_table(self, name: str, columns: Mapping[str, Sequence[object]]) -> None:
        """Store a table as `<name>.json`, which the run's page shows as one.

        Args:
            name: the file's stem.
            columns: column name to its values, all of the same length.
        """
        self._client.log_table(self.run_id, {key: list(values) for key, values in columns.items()}, f"{name}.json")

    def log_folder(self, folder: Path, name: str) -> None:
        """Store all files of a folder under `name`."""
        self._client.log_artifacts(self.run_id, str(folder), name)

    def flush(self) -> None:
        """Send the metrics that wait."""
        from mlflow.entities import Metric

        while self._waiting:
            batch = [Metric(*point) for point in self._waiting[:METRICS_PER_CALL]]
            self._client.log_batch(self.run_id, metrics=batch)
            del self._waiting[: len(batch)]
        self._flushed = time.monotonic()


@dataclass(frozen=True)
class Resolved:
    """A model in the local cache.

    Args:
        version: the registry's version number.
        digest: sha256 of the model's manifest; what `models.artifact.load` is told to expect.
        folder: where its files are.
        registry_answered: False where this is the last good copy because MLflow did not answer.
    """

    version: int
    digest: str
    folder: Path
    registry_answered: bool


@contextmanager
def open_run(
    experiment: str, *, tracking_uri: str, run_name: str, tags: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """A new run in `experiment` (made if need be), ended as finished, failed or killed.

    Args:
        experiment: "payments/pretrain".
        tracking_uri: "http://127.0.0.1:5000".
        run_name: what a person sees in the list.
        tags: lineage: lake version, git commit, parent run.

    Example:
        >>> with open_run("payments/pretrain", tracking_uri=uri, run_name="night") as run:  # doctest: +SKIP
        ...     run.log_metrics({"loss": 0.31}, step=10)
    """
    from mlflow.entities import RunStatus

    client = _client(tracking_uri)
    experiment_id = _experiment(client, experiment)
    made = client.create_run(experiment_id, run_name=run_name, tags=dict(tags or {}))
    run = Run(made.info.run_id, experiment_id, tracking_uri.rstrip("/"), client)
    status = RunStatus.FAILED
    try:
        yield run
        status = RunStatus.FINISHED
    except KeyboardInterrupt:
        status = RunStatus.KILLED
        raise
    finally:
        run.flush()
        client.set_terminated(run.run_id, RunStatus.to_string(status))


def register(name: str, run: Run, folder: Path, *, digest: str, tags: Mapping[str, str], description: str = "") -> int:
    """Upload a model to its run and make it the next version of `name`.

    Args:
        name: "payments-scorer".
        run: the run that made it.
        folder: the model's files, as `models.artifact.save` wrote them.
        digest: what `save` returned.
        tags: lineage and the figures a reviewer wants beside the version.

    Returns:
        the version's number.
    """
    from mlflow.exceptions import MlflowException

    client = run._client
    run.log_folder(folder, MODEL_FOLDER)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run.run_id).info.artifact_uri}/{MODEL_FOLDER}"
    marks = {**tags, "digest": digest}
    made = client.create_model_version(
        name, source, run.run_id, tags=marks, description=description, await_creation_for=0
    )
    return int(made.version)


def set_alias(name: str, alias: Alias, version: int, *, tracking_uri: str) -> None:
    """Let `alias` point to this version from now on."""
    _client(tracking_uri).set_registered_model_alias(name, alias, str(version))


def version_of(name: str, alias: Alias, *, tracking_uri: str) -> tuple[int, dict[str, str]] | None:
    """The version an alias points to, and its tags; None where there is no such model or alias."""
    from mlflow.exceptions import MlflowException

    try:
        found = _client(tracking_uri).get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return int(found.version), dict(found.tags)


def resolve(name: str, alias: Alias, *, tracking_uri: str, cache: Path) -> Resolved:
    """Have the model that `alias` points to in the cache, or the last good copy where MLflow is away.

    An alias is a mutable pointer without history: the answer is pinned by version and digest.

    Args:
        name: "payments-scorer".
        alias: "champion" or "challenger".
        tracking_uri: the server; it gets about five seconds.
        cache: folder of model copies, one per digest.

    Raises:
        RegistryError: there is no such model, or neither a server nor a copy.
    """
    pointer = cache / f"{name}.{alias}.json"
    try:
        if not _answers(tracking_uri):
            raise ConnectionError(f"no answer from {tracking_uri}")
        found = version_of(name, alias, tracking_uri=tracking_uri)
    except Exception as error:
        return _last_good(pointer, cache, error)
    if found is None:
        raise RegistryError(
            f"MLflow at {tracking_uri} must have a model {name!r} with the alias {alias!r}, however it has "
            "none; promote one first (`unmask promote`)"
        )
    version, tags = found
    digest = tags.get("digest", "")
    if not re.fullmatch(r"[0-9a-f]{16,128}", digest):  # it becomes a folder's name
        raise RegistryError(
            f"version {version} of {name!r} must have a hexadecimal tag `digest`, however it has {digest!r}; "
            "register it again (`unmask finetune`)"
        )
    folder = cache / digest
    if not folder.is_dir():
        try:
            _download(name, version, folder, tracking_uri)
        except Exception as error:
            return _last_good(pointer, cache, error)
    _write(pointer, {"version": version, "digest": digest})
    return Resolved(version, digest, folder, registry_answered=True)


def _last_good(pointer: Path, cache: Path, why: Exception) -> Resolved:
    try:
        last = json.loads(pointer.read_text())
    except FileNotFoundError:
        raise RegistryError(
            f"MLflow cannot be asked ({why}), and there is no former copy in {cache}; "
            "start MLflow, or copy a model cache there"
        ) from why
    return Resolved(last["version"], last["digest"], cache / last["digest"], registry_answered=False)


def _download(name: str, version: int, folder: Path, tracking_uri: str) -> None:
    """Fetch a version's files; the folder appears whole or not at all."""
    from mlflow.artifacts import download_artifacts

    source = _client(tracking_uri).get_model_version_download_uri(name, str(version))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
        got = Path(download_artifacts(artifact_uri=source, dst_path=draft, tracking_uri=tracking_uri))
        if not folder.is_dir():
            shutil.move(got, folder)


def _answers(tracking_uri: str) -> bool:
    if not tracking_uri.startswith(("http://", "https://")):
        return True
    try:
        with urllib.request.urlopen(f"{tracking_uri.rstrip('/')}/health", timeout=3.0) as answer:
            return int(answer.status) == 200
    except OSError:
        return False


def _client(tracking_uri: str) -> "MlflowClient":
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


def _experiment(client: "MlflowClient", name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return client.create_experiment(name, tags=EXPERIMENT_TAGS)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return _experiment(client, name)  # somebody else was quicker


def _write(target: Path, value: Mapping[str, object]) -> None:
    draft = target.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(value) + "\n")
    draft.replace(target)


# Folders that one run hands to the next, and versions by number.


@dataclass(frozen=True)
class FoundRun:
    """A run of the past.

    Args:
        run_id: MLflow's id.
        tags: all of them, MLflow's own too.
    """

    run_id: str
    tags: Mapping[str, str]


def publish_folder(run: Run, folder: Path, name: str, *, digest: str) -> None:
    """Upload a folder to its run, then tag the run with `<name>.digest`: who finds the tag finds all files."""
    run.log_folder(folder, name)
    run._client.set_tag(run.run_id, f"{name}.digest", digest)


def find_run(run_id: str, *, tracking_uri: str) -> FoundRun | None:
    """A run by its id; None where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        found = _client(tracking_uri).get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return FoundRun(found.info.run_id, dict(found.data.tags))


def newest_run(experiment: str, *, tag: str, tracking_uri: str) -> FoundRun | None:
    """The run of an experiment that was started last, among those that finished and carry a tag; None without one."""
    client = _client(tracking_uri)
    there = client.get_experiment_by_name(experiment)
    if there is None:
        return None
    found = client.search_runs(
        [there.experiment_id],
        f"attributes.status = 'FINISHED' and tags.`{tag}` LIKE '%'",
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    return FoundRun(found[0].info.run_id, dict(found[0].data.tags)) if found else None


def fetch_folder(run_id: str, name: str, folder: Path, *, tracking_uri: str) -> None:
    """Download what `publish_folder` uploaded under `name`; `folder` appears whole or not at all."""
    from mlflow.artifacts import download_artifacts

    _client(tracking_uri)  # sets the client's limits
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
        got = Path(download_artifacts(run_id=run_id, artifact_path=name, dst_path=draft, tracking_uri=tracking_uri))
        if not folder.is_dir():
            shutil.move(got, folder)


def resolve_version(name: str, version: int, *, tracking_uri: str, cache: Path) -> tuple[Resolved, dict[str, str]]:
    """Have a version in the cache, whatever alias it has or had; and its tags.

    Raises:
        RegistryError: there is no such version, or it has no digest.
    """
    from mlflow.exceptions import MlflowException

    try:
        tags = dict(_client(tracking_uri).get_model_version(name, str(version)).tags)
    except MlflowException as error:
        raise RegistryError(f"MLflow must have version {version} of {name!r}, however: {error.message}") from error
    digest = tags.get("digest", "")
    if not re.fullmatch(r"[0-9a-f]{16,128}", digest):
        raise RegistryError(f"version {version} of {name!r} must have a hexadecimal tag `digest`, however: {digest!r}")
    if not (cache / digest).is_dir():
        _download(name, version, cache / digest, tracking_uri)
    return Resolved(version, digest, cache / digest, registry_answered=True), tags
