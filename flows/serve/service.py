"""The live scorer as a plain service: no Prefect, and MLflow only to fetch the model at the start."""

import gc
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.settings import Settings, registry_name
from models.errors import ModelError
from models.score.explain import Explanation
from models.ship import artifact, registry
from models.ship.artifact import ServedModel
from models.ship.manifest import ArtifactError
from pipelines import faults
from pipelines.contracts.stream import Stream
from pipelines.lake.audit import NoModelError
from pipelines.live.health import Seldom
from pipelines.live.scorer import Scorer
from pipelines.live.takeover import ScorerSetting, StartFrom

log = logging.getLogger(__name__)

STATUS_EVERY_S = 0.5


class ColumnsByName:
    """A served model that takes the stream's features by name: a column that one side does not know is a masked cell.

    Shapes: `score` and `explain` take the scorer's rows, (n, d) numbers and (n, c) category hashes.
    """

    def __init__(self, model: ServedModel, stream: Stream) -> None:
        self.digest, self.threshold = model.digest, model.threshold
        self.numeric_names, self.categorical_names = stream.numeric_columns, stream.categories
        self._model = model
        wanted_numeric = [c.name for c in model.columns if c.kind == "numeric"]
        wanted_categorical = [c.name for c in model.columns if c.kind == "categorical"]
        self._numeric = _places(wanted_numeric, self.numeric_names)
        self._categorical = _places(wanted_categorical, self.categorical_names)

    @property
    def missing(self) -> list[str]:
        """Columns that the model was trained on and the stream does not have."""
        have = {*self.numeric_names, *self.categorical_names}
        return [c.name for c in self._model.columns if c.name not in have]

    def score(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> NDArray[np.float32]:
        return self._model.score(*self._arranged(numeric, categorical))

    def explain(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> Sequence[Explanation]:
        return self._model.explain(*self._arranged(numeric, categorical))

    def _arranged(
        self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]
    ) -> tuple[NDArray[np.float64], NDArray[np.uint64]]:
        # One more column holds what is missing: NaN or 0, picked by the last index.
        masked = np.full((len(numeric), 1), np.nan)
        unknown = np.zeros((len(categorical), 1), np.uint64)
        return (
            np.hstack([numeric, masked])[:, self._numeric],
            np.hstack([categorical, unknown])[:, self._categorical],
        )


def _places(wanted: Sequence[str], have: Sequence[str]) -> NDArray[np.int64]:
    at = {name: i for i, name in enumerate(have)}
    return np.array([at.get(name, len(have)) for name in wanted], np.int64)


def champion(settings: Settings, stream: Stream) -> ColumnsByName:
    """The champion through ONNX Runtime, from MLflow or, where that is down, the last good copy."""
    name, cache = registry_name(stream), settings.model_cache
    resolved = registry.resolve(name, "champion", tracking_uri=settings.tracking_uri_or_nowhere(), cache=cache)
    if not resolved.registry_answered:
        log.warning("MLflow does not answer; serving the last good copy, version %s", resolved.version)
    served = _loaded(settings, name, resolved.digest)
    model = ColumnsByName(served, stream)
    if model.missing:
        log.warning(
            "the model knows columns that the stream does not have; they are masked: %s",
            ", ".join(model.missing),
        )
    log.info("model version %s, digest %s", resolved.version, resolved.digest[:12])
    return model


def model_of(settings: Settings, stream: Stream, digest: str) -> ColumnsByName:
    """The model that a score names, from the cache or from MLflow.

    Raises:
        NoModelError: neither has it.
    """
    try:
        return ColumnsByName(_loaded(settings, registry_name(stream), digest), stream)
    except ModelError as error:
        raise NoModelError(str(error)) from error


def _loaded(settings: Settings, name: str, digest: str) -> ServedModel:
    """The model from the cache; where that copy is damaged, it is fetched again."""
    uri, cache = settings.tracking_uri_or_nowhere(), settings.model_cache
    folder = registry.fetch(name, digest, tracking_uri=uri, cache=cache)
    try:
        return artifact.load(folder, expect=digest)
    except ArtifactError:
        if not registry.answers(uri):
            raise
        log.warning("the copy of model %s is damaged; fetching it again", digest[:12])
        shutil.rmtree(folder, ignore_errors=True)
        return artifact.load(registry.fetch(name, digest, tracking_uri=uri, cache=cache), expect=digest)


def serve(settings: Settings, stream: Stream, *, start: StartFrom | None, fault: faults.Fault) -> None:
    """Score until SIGTERM or Ctrl-C; then publish what is folded, write a snapshot and return."""
    stopping = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stopping.set())
    model = champion(settings, stream)
    setting = ScorerSetting(stream, settings.connection(), settings.snapshots(stream), fault=fault)
    scorer = Scorer(setting, model, start=start)
    status = StatusFile(settings.scorer_status(stream))
    told_s = [0.0]

    def should_stop() -> bool:
        if time.monotonic() - told_s[0] > STATUS_EVERY_S:
            told_s[0] = time.monotonic()
            status.write(scorer)
        return stopping.is_set()

    gc.collect()
    gc.freeze()  # what is loaded now stays: going through it again and again would hold up the loop for 50 ms and more
    try:
        scorer.run(should_stop)
    finally:
        status.write(scorer)


class StatusFile:
    """What the scorer is doing, for health checks and the demo. A full or read-only disk costs the file, not scores."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failed = Seldom(log)
        self.n_failed = 0

    def write(self, scorer: Scorer) -> None:
        """Replace the file; where that fails, warn and count."""
        draft = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(status_of(scorer) | {"n_status_failed": self.n_failed}))
            draft.replace(self._path)
        except OSError as error:
            self.n_failed += 1
            self._failed.warning("the status file was not written: %s; scoring goes on", error)


def status_of(scorer: Scorer) -> dict[str, Any]:
    """What the scorer is doing."""
    published = [lane.progress for lane in scorer.lanes if lane.progress is not None]
    return {
        "pid": os.getpid(),
        "at": time.time(),
        "health": scorer.health,
        "caught_up": scorer.caught_up,
        "model": scorer.model.digest,
        "scored": sum(p.n_scored for p in published),
        "refused": sum(p.n_refused for p in published),
        "duplicates": sum(p.n_duplicates for p in published),
        "shortened": sum(lane.n_shortened for lane in scorer.lanes),
        "lanes_rebuilt": sum(lane.n_rebuilt for lane in scorer.lanes),
        "entities": dict(zip(scorer.state.stream.entities, scorer.state.windows.n_entities, strict=True)),
        "dormant": dict(zip(scorer.state.stream.entities, scorer.state.windows.n_dormant, strict=True)),
        "state_bytes": scorer.state.nbytes,
        "remembered": scorer.state.remembered,
        **asdict(scorer.counters),
    }
