"""Runs: their curves, plots and tables as they are written, and the folders that one run hands to the next."""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from models.ship.registry.client import RegistryError, answers, asked, client_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

# MLflow's pages then show an experiment as training, not as work on prompts.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}

# MLflow's own limits for one call, and how long a curve may wait before it is shown.
METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
FLUSH_AFTER_S = 2.0

# After a failure MLflow is not asked again for so long: training must not wait for curves.
PAUSE_S = 30.0


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
        with asked(self.tracking_uri):
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
            with asked(self.tracking_uri):
                call()
        except RegistryError as error:
            self._paused_until = time.monotonic() + PAUSE_S
            log.warning("run %s: %s not kept: %s", self.run_id, what, error)


@dataclass(frozen=True)
class FoundRun:
    """A run of the past.

    Args:
        run_id: MLflow's id.
        tags: all of them, MLflow's own too.
    """

    run_id: str
    tags: Mapping[str, str]


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

    Example:
        >>> with open_run("payments/pretrain", tracking_uri=uri, run_name="night") as run:  # doctest: +SKIP
        ...     run.log_metrics({"loss": 0.31}, step=10)
    """
    with asked(tracking_uri):
        client = client_of(tracking_uri)
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


def publish_folder(run: Run, folder: Path, name: str, *, digest: str) -> None:
    """Upload a folder to its run, then tag the run with `<name>.digest`: who finds the tag finds all files."""
    run.log_folder(folder, name)
    with asked(run.tracking_uri):
        run._client.set_tag(run.run_id, f"{name}.digest", digest)


def find_run(run_id: str, *, tracking_uri: str) -> FoundRun | None:
    """A run by its id; None where there is none.

    Raises:
        RegistryError: MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    with asked(tracking_uri):
        try:
            found = client_of(tracking_uri).get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
    return FoundRun(found.info.run_id, dict(found.data.tags))


def newest_run(experiment: str, *, tag: str, tracking_uri: str) -> FoundRun | None:
    """The run of an experiment that was started last, among those that finished and carry a tag; None without one.

    Raises:
        RegistryError: MLflow does not answer.
    """
    with asked(tracking_uri):
        client = client_of(tracking_uri)
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
    """Download what `publish_folder` uploaded under `name`; `folder` appears whole or not at all.

    Raises:
        RegistryError: MLflow does not answer, or has no such folder.
    """
    from mlflow.artifacts import download_artifacts

    client_of(tracking_uri)  # sets the client's limits
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
        with asked(tracking_uri):
            got = Path(download_artifacts(run_id=run_id, artifact_path=name, dst_path=draft, tracking_uri=tracking_uri))
        if not folder.is_dir():
            shutil.move(got, folder)


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
