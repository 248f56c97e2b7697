"""MLflow: runs with their curves and plots, and the registry of models (the only file that imports mlflow).

The registry is a convenience, never a need: `resolve` goes on with the last good copy when MLflow is away. Every call
has a limit of a few seconds; what only shows (curves, plots, tables) is left away with a warning where MLflow fails,
what others build on (files, versions, aliases) raises `RegistryError`.
"""

import json
import logging
import os
import re
import shutil
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.error import HTTPError

from models.errors import ModelError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

Alias = Literal["champion", "challenger"]

# MLflow's pages then show an experiment as training, not as work on prompts.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}

# The folder of a run's artifacts that holds the model.
MODEL_FOLDER = "model"

# How long a server may take to say that it is there.
PROBE_S = 3.0

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

# After a failure MLflow is not asked again for so long: training must not wait for curves.
PAUSE_S = 30.0

_DIGEST = re.compile(r"[0-9a-f]{16,128}")  # it becomes a folder's name


class RegistryError(ModelError):
    """MLflow has no such model, or cannot be reached and there is no copy to go on with."""


@dataclass
class Run:
    """One run being written; metrics are sent in batches, and kept for the next batch where MLflow fails.

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
    _paused_until: float = field(default=0.0, repr=False)

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

        def send() -> None:
            for start in range(0, len(entities), PARAMS_PER_CALL):
                self._client.log_batch(self.run_id, params=entities[start : start + PARAMS_PER_CALL])

        self._softly("parameters", send)

    def log_figure(self, name: str, figure: "Figure") -> None:
        """Store a plot as `plots/<name>.png`."""
        target = f"plots/{name}.png"
        self._softly(target, lambda: self._client.log_figure(self.run_id, figure, target))

    def log_table(self, name: str, columns: Mapping[str, Sequence[object]]) -> None:
        """Store a table as `<name>.json`, which the run's page shows as one.

        Args:
            name: the file's stem.
            columns: column name to its values, all of the same length.
        """
        target, table = f"{name}.json", {key: list(values) for key, values in columns.items()}
        self._softly(target, lambda: self._client.log_table(self.run_id, table, target))

    def log_folder(self, folder: Path, name: str) -> None:
        """Store all files of a folder under `name`.

        Raises:
            RegistryError: MLflow did not take them.
        """
        with _asked(self.tracking_uri):
            self._client.log_artifacts(self.run_id, str(folder), name)

    def flush(self) -> None:
        """Send the metrics that wait."""
        self._softly("metrics", self._send)
        self._flushed = time.monotonic()

    def end(self, status: str) -> None:
        """Send what waits and mark the run as FINISHED, FAILED or KILLED."""
        if not answers(self.tracking_uri):
            log.warning("MLflow does not answer; its page of run %s stays unfinished", self.run_id)
            return
        self._paused_until = 0.0
        self.flush()
        self._softly("the run's end", lambda: self._client.set_terminated(self.run_id, status))

    def _send(self) -> None:
        from mlflow.entities import Metric

        while self._waiting:
            batch = [Metric(*point) for point in self._waiting[:METRICS_PER_CALL]]
            self._client.log_batch(self.run_id, metrics=batch)
            del self._waiting[: len(batch)]

    def _softly(self, what: str, call: Callable[[], object]) -> None:
        """Nothing that only shows may end the work; after a failure MLflow is left alone for a while."""
        if time.monotonic() < self._paused_until:
            return
        try:
            with _asked(self.tracking_uri):
                call()
        except RegistryError as error:
            self._paused_until = time.monotonic() + PAUSE_S
            log.warning("run %s: %s not kept: %s", self.run_id, what, error)


@dataclass(frozen=True)
class Resolved:
    """A model in the local cache.

    Args:
        version: the registry's version number.
        digest: sha256 of the model's manifest; what `models.ship.artifact.load` is told to expect.
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

    Raises:
        RegistryError: MLflow does not answer, or refuses.

    Example::

        with open_run("payments/pretrain", tracking_uri=uri, run_name="night") as run:
            run.log_metrics({"loss": 0.31}, step=10)
    """
    with _asked(tracking_uri):
        client = _client(tracking_uri)
        experiment_id = _experiment(client, experiment)
        made = client.create_run(experiment_id, run_name=run_name, tags=dict(tags or {}))
    run = Run(made.info.run_id, experiment_id, tracking_uri.rstrip("/"), client)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        run.end(status)


def note(
    experiment: str, figures: Mapping[str, float], *, tracking_uri: str, run_name: str, tags: Mapping[str, str]
) -> str | None:
    """Figures as a run of their own: its page; None, with a warning, where MLflow is away (the work is done)."""
    try:
        with open_run(experiment, tracking_uri=tracking_uri, run_name=run_name, tags=tags) as run:
            run.log_metrics(figures)
    except RegistryError as error:
        log.warning("the figures of %s are not kept: %s", experiment, error)
        return None
    return run.url


def register(name: str, run: Run, folder: Path, *, digest: str, tags: Mapping[str, str], description: str = "") -> int:
    """Upload a model to its run and make it the next version of `name`.

    Args:
        name: "payments-scorer".
        run: the run that made it.
        folder: the model's files, as `models.ship.artifact.save` wrote them.
        digest: what `save` returned.
        tags: lineage and the figures a reviewer wants beside the version.

    Returns:
        the version's number.

    Raises:
        RegistryError: MLflow does not answer, or refuses.
    """
    from mlflow.exceptions import MlflowException

    client = run._client
    run.log_folder(folder, MODEL_FOLDER)
    with _asked(run.tracking_uri):
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
    """Let `alias` point to this version from now on.

    Raises:
        RegistryError: MLflow does not answer, or refuses.
    """
    with _asked(tracking_uri):
        _client(tracking_uri).set_registered_model_alias(name, alias, str(version))


def version_of(name: str, alias: Alias, *, tracking_uri: str) -> tuple[int, dict[str, str]] | None:
    """The version an alias points to, and its tags; None where there is no such model or alias.

    Raises:
        RegistryError: MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    with _asked(tracking_uri):
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
        tracking_uri: the server; it gets a few seconds.
        cache: folder of model copies, one per digest.

    Raises:
        RegistryError: there is no such model, or neither a server nor a copy.
    """
    pointer = cache / f"{name}.{alias}.json"
    try:
        found = version_of(name, alias, tracking_uri=tracking_uri)
    except RegistryError as error:
        return _last_good(pointer, cache, error)
    if found is None:
        raise RegistryError(
            f"MLflow at {tracking_uri} must have a model {name!r} with the alias {alias!r}, however it has "
            "none; promote one first (`unmask promote`)"
        )
    version, tags = found
    digest = tags.get("digest", "")
    if not _DIGEST.fullmatch(digest):
        raise RegistryError(
            f"version {version} of {name!r} must have a hexadecimal tag `digest`, however it has {digest!r}; "
            "register it again (`unmask finetune`)"
        )
    folder = cache / digest
    try:
        if not folder.is_dir():
            _download(name, version, folder, tracking_uri)
        _write(pointer, {"version": version, "digest": digest})
    except (RegistryError, OSError) as error:
        if not folder.is_dir():
            return _last_good(pointer, cache, error)
        log.warning("the next start without MLflow may take an older model: %s", error)
    return Resolved(version, digest, folder, registry_answered=True)


def fetch(name: str, digest: str, *, tracking_uri: str, cache: Path) -> Path:
    """The files of the version of `name` that has this digest: the copy in the cache, or MLflow's.

    Raises:
        RegistryError: there is no copy, and MLflow is away or knows no such version.
    """
    if not _DIGEST.fullmatch(digest):
        raise RegistryError(f"a model is named by a hexadecimal digest, however: {digest[:80]!r}")
    folder = cache / digest
    if folder.is_dir():
        return folder
    with _asked(tracking_uri):
        wanted = f"name = '{name}' and tags.digest = '{digest}'"
        found = _client(tracking_uri).search_model_versions(wanted, max_results=1)
    if not found:
        raise RegistryError(f"MLflow at {tracking_uri} has no version of {name!r} with the digest {digest[:12]}")
    try:
        _download(name, int(found[0].version), folder, tracking_uri)
    except OSError as error:
        raise RegistryError(f"the model {digest[:12]} cannot be stored in {cache}: {error}") from error
    return folder


def answers(url: str) -> bool:
    """Whether a server says at `url`/health that it is there, within `PROBE_S`, whatever hangs on the way.

    A refusal to talk to strangers is an answer too; a database named instead of a server is not asked.
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


def _last_good(pointer: Path, cache: Path, why: Exception) -> Resolved:
    try:
        last = json.loads(pointer.read_text())
        version, digest = int(last["version"]), str(last["digest"])
    except FileNotFoundError:
        raise RegistryError(
            f"{why}; and there is no former copy of the model in {cache}: start MLflow, or copy a model cache there"
        ) from why
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RegistryError(
            f"{why}; and {pointer}, which names the last good copy, is damaged ({type(error).__name__}: {error}): "
            "start MLflow, then it is written anew"
        ) from why
    if not (_DIGEST.fullmatch(digest) and (cache / digest).is_dir()):
        raise RegistryError(
            f"{why}; and {pointer} names a copy that is not there ({digest[:80]!r}): start MLflow, then it is fetched"
        ) from why
    return Resolved(version, digest, cache / digest, registry_answered=False)


def _download(name: str, version: int, folder: Path, tracking_uri: str) -> None:
    """Fetch a version's files; the folder appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
        with _asked(tracking_uri):
            from mlflow.artifacts import download_artifacts

            source = _client(tracking_uri).get_model_version_download_uri(name, str(version))
            got = Path(download_artifacts(artifact_uri=source, dst_path=draft, tracking_uri=tracking_uri))
        if not folder.is_dir():
            shutil.move(got, folder)


@contextmanager
def _asked(tracking_uri: str) -> Iterator[None]:
    """Around calls of MLflow's client: they start only where it answers, and fail as `RegistryError`."""
    if not answers(tracking_uri):
        raise RegistryError(
            f"no MLflow answers at {tracking_uri} within {PROBE_S:.0f} s: start it (`unmask ui start`) or set "
            "MLFLOW_TRACKING_URI"
        )
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:  # the errors of its HTTP client are OSErrors
        words = str(error).strip().partition("\n")[0][:300]
        raise RegistryError(f"MLflow at {tracking_uri} failed: {words}; see its log and try again") from error


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
