"""MLflow runs: curves, plots and tables, and folders that one run passes to the next."""

import getpass
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
from models.ship.registry.datasets import Dataset, input_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

log = logging.getLogger(__name__)

# An experiment of model training, not of GenAI. MLflow 3.17 asks its switch in the browser instead: see `_url`.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}

# MLflow's limits per call, and the maximum delay of a curve.
METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
FLUSH_AFTER_S = 2.0

# Pause after a failure, so that training does not wait for curves.
PAUSE_S = 30.0


@dataclass
class Run:
    """An active run. Metrics are sent in batches. If MLflow fails, they are kept for the next batch.

    Args:
        run_id: MLflow's id of the run.
        experiment_id: MLflow's id of its experiment.
        tracking_uri: address of the MLflow server.
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
        """Address of the run's page."""
        return _url(self.tracking_uri, self.experiment_id, self.run_id)

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Add a point to each curve."""
        now_ms = int(time.time() * 1000)
        self._waiting.extend((name, float(value), now_ms, step) for name, value in values.items())
        if len(self._waiting) >= METRICS_PER_CALL or time.monotonic() - self._flushed > FLUSH_AFTER_S:
            self.flush()

    def log_params(self, params: Mapping[str, object]) -> None:
        """Set parameters of the run. Values are cut to the length that MLflow allows."""
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
        """Store a table as `<name>.json`, which MLflow shows as a table.

        Args:
            name: file name without suffix.
            columns: name and values of each column, all of the same length.
        """
        target, table = f"{name}.json", {key: list(values) for key, values in columns.items()}
        self._softly(target, lambda: self._client.log_table(self.run_id, table, target))

    def log_document(self, name: str, found: Mapping[str, object]) -> None:
        """Store a document as `<name>.json`."""
        target = f"{name}.json"
        self._softly(target, lambda: self._client.log_dict(self.run_id, dict(found), target))

    def log_page(self, name: str, html: str) -> None:
        """Store a web page as `<name>.html`, which MLflow shows."""
        target = f"{name}.html"
        self._softly(target, lambda: self._client.log_text(self.run_id, html, target))

    def is_due(self, tag: str, *, every_s: float) -> bool:
        """Whether something was last done so long ago, by the time in a tag.

        Raises:
            RegistryError: MLflow does not answer.
        """
        with asked(self.tracking_uri):
            said = self._client.get_run(self.run_id).data.tags.get(tag, "0")
        return time.time() - float(said) >= every_s

    def note_time(self, tag: str) -> None:
        """Set a tag to the present time."""
        self._softly(tag, lambda: self._client.set_tag(self.run_id, tag, str(time.time())))

    def log_dataset(self, dataset: Dataset, *, context: str) -> None:
        """Show what the run was trained on.

        Args:
            dataset: the rows.
            context: what the run does with them, such as "training".
        """
        self._softly("the dataset", lambda: self._client.log_inputs(self.run_id, [input_of(dataset, context=context)]))

    def describe(self, markdown: str) -> None:
        """Set the description at the top of the run's page."""
        self._softly("the description", lambda: self._client.set_tag(self.run_id, "mlflow.note.content", markdown))

    def log_folder(self, folder: Path, name: str) -> None:
        """Store all files of a folder under `name`.

        Raises:
            RegistryError: MLflow did not store them.
        """
        with asked(self.tracking_uri):
            self._client.log_artifacts(self.run_id, str(folder), name)

    def flush(self) -> None:
        """Send buffered metrics."""
        self._softly("metrics", self._send)
        self._flushed = time.monotonic()

    def end(self, status: str) -> None:
        """Send buffered metrics and mark the run as FINISHED, FAILED or KILLED."""
        if not answers(self.tracking_uri):
            log.warning("MLflow does not answer; run %s stays unfinished in MLflow", self.run_id)
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
        """Log a failure instead of raising it, and pause for `PAUSE_S`. For data that is only displayed."""
        if time.monotonic() < self._paused_until:
            return
        try:
            with asked(self.tracking_uri):
                call()
        except RegistryError as error:
            self._paused_until = time.monotonic() + PAUSE_S
            log.warning("run %s: %s not stored in MLflow: %s", self.run_id, what, error)


@dataclass(frozen=True)
class FoundRun:
    """A run found in MLflow.

    Args:
        run_id: MLflow's id of the run.
        tags: all tags, including those set by MLflow.
        url: address of the run's page.
    """

    run_id: str
    tags: Mapping[str, str]
    url: str = ""


def resume_run(
    experiment: str, tag: str, value: str, *, tracking_uri: str, run_name: str, tags: Mapping[str, str]
) -> Run:
    """Go on with the newest run of an experiment that has this tag, or start one. The caller ends it.

    Raises:
        RegistryError: MLflow does not answer, or reports an error.
    """
    with asked(tracking_uri):
        client = client_of(tracking_uri)
        experiment_id = _experiment(client, experiment)
        found = client.search_runs([experiment_id], f"tags.`{tag}` = '{value}'", max_results=1)
        if found:
            run_id = found[0].info.run_id
        else:
            marks = {**tags, tag: value, **_source(experiment, tags)}
            run_id = client.create_run(experiment_id, run_name=run_name, tags=marks).info.run_id
    return Run(run_id, experiment_id, tracking_uri.rstrip("/"), client)


@contextmanager
def open_run(
    experiment: str, *, tracking_uri: str, run_name: str, tags: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """Start a run in `experiment`, which is created if needed. On exit it is marked as finished, failed or killed.

    Args:
        experiment: name of the experiment, such as "payments/pretrain".
        tracking_uri: address of the MLflow server, such as "http://127.0.0.1:5000".
        run_name: name shown in the list of runs.
        tags: lineage: lake version, git commit, parent run.

    Raises:
        RegistryError: MLflow does not answer, or reports an error.

    Example::

        with open_run("payments/pretrain", tracking_uri=uri, run_name="night") as run:
            run.log_metrics({"loss": 0.31}, step=10)
    """
    with asked(tracking_uri):
        client = client_of(tracking_uri)
        experiment_id = _experiment(client, experiment)
        marks = {**(tags or {}), **_source(experiment, tags or {})}
        made = client.create_run(experiment_id, run_name=run_name, tags=marks)
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
    """Log metrics as a separate run and return its page. If MLflow is not available, warn and return None."""
    try:
        with open_run(experiment, tracking_uri=tracking_uri, run_name=run_name, tags=tags) as run:
            run.log_metrics(figures)
    except RegistryError as error:
        log.warning("the metrics of %s were not stored in MLflow: %s", experiment, error)
        return None
    return run.url


def end_runs(experiment: str, tag: str, value: str, *, tracking_uri: str) -> None:
    """Mark the running runs of an experiment that have this tag as killed, because nobody will end them any more.

    If MLflow is not available, warn: they stay.
    """
    try:
        with asked(tracking_uri):
            client = client_of(tracking_uri)
            there = client.get_experiment_by_name(experiment)
            left = f"attributes.status = 'RUNNING' and tags.`{tag}` = '{value}'"
            for run in client.search_runs([there.experiment_id], left) if there else ():
                client.set_terminated(run.info.run_id, "KILLED")
    except RegistryError as error:
        log.warning("MLflow may still show a killed run as running: %s", error)


def publish_folder(run: Run, folder: Path, name: str, *, digest: str) -> None:
    """Upload a folder to a run, then set the tag `<name>.digest`. The tag shows that the upload is complete."""
    run.log_folder(folder, name)
    with asked(run.tracking_uri):
        run._client.set_tag(run.run_id, f"{name}.digest", digest)


def find_run(run_id: str, *, tracking_uri: str) -> FoundRun | None:
    """Find a run by its id. Return None if it does not exist.

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
    return _found(found, tracking_uri)


def newest_run(experiment: str, *, tag: str, tracking_uri: str) -> FoundRun | None:
    """The most recently started run of an experiment that has finished and has a tag; None if there is none.

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
    return _found(found[0], tracking_uri) if found else None


def fetch_folder(run_id: str, name: str, folder: Path, *, tracking_uri: str) -> None:
    """Download a folder uploaded by `publish_folder`. `folder` is created completely or not at all.

    Raises:
        RegistryError: MLflow does not answer, or has no such folder.
    """
    from mlflow.artifacts import download_artifacts

    client_of(tracking_uri)  # sets the client's timeouts
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
        with asked(tracking_uri):
            got = Path(download_artifacts(run_id=run_id, artifact_path=name, dst_path=draft, tracking_uri=tracking_uri))
        if not folder.is_dir():
            shutil.move(got, folder)


def _source(experiment: str, tags: Mapping[str, str]) -> dict[str, str]:
    """What MLflow shows as source and author of a run."""
    command = f"unmask {experiment.rpartition('/')[2]}"
    source = {"mlflow.source.name": command, "mlflow.source.type": "JOB", "mlflow.user": getpass.getuser()}
    return source | ({"mlflow.source.git.commit": tags["git.commit"]} if "git.commit" in tags else {})


def _found(run: "MlflowRun", tracking_uri: str) -> FoundRun:
    return FoundRun(run.info.run_id, dict(run.data.tags), _url(tracking_uri, run.info.experiment_id, run.info.run_id))


def _url(tracking_uri: str, experiment_id: str, run_id: str) -> str:
    """Address of a run's page; without the view's name, MLflow may open it as a GenAI run."""
    return f"{tracking_uri.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


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
        return _experiment(client, name)  # another process has created it
