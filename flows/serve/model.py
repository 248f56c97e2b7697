"""Load the model of a scorer by alias or digest, and map the features of the stream to its columns."""

import logging
import shutil
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from flows.settings import Settings, registry_name
from models.errors import ModelError
from models.score.explain import Explanation
from models.ship import artifact, registry
from models.ship.artifact import ServedModel
from models.ship.manifest import ArtifactError
from models.table import Table
from pipelines.contracts.stream import Stream
from pipelines.lake.audit import NoModelError
from pipelines.live.wanted import OrderedThreshold

log = logging.getLogger(__name__)

BLOCK = 16_384  # rows scored at a time


class ColumnsByName:
    """A served model whose columns are mapped by name. Columns that the stream does not have count as missing.

    Shapes: `score` and `explain` take the scorer's rows, (n, d) numbers and (n, c) category hashes.
    """

    ordered_threshold: float | None = None

    def __init__(self, model: ServedModel, stream: Stream) -> None:
        self.digest, self.threshold, self.alert_rate = model.digest, model.threshold, model.alert_rate
        self.numeric_names, self.categorical_names = stream.numeric_columns, stream.categories
        self._own = self._model = model
        wanted_numeric = [c.name for c in model.columns if c.kind == "numeric"]
        wanted_categorical = [c.name for c in model.columns if c.kind == "categorical"]
        self._numeric = _places(wanted_numeric, self.numeric_names)
        self._categorical = _places(wanted_categorical, self.categorical_names)

    def with_threshold(self, ordered: OrderedThreshold | None) -> Self:
        """The same model with an ordered threshold, or with its own; alerts and their reasons agree with it."""
        changed = copy(self)
        if ordered is None:
            changed.threshold, changed.alert_rate = self._own.threshold, self._own.alert_rate
            changed.ordered_threshold, changed._model = None, self._own
        else:
            value = float(np.float32(ordered.value))
            changed.threshold, changed.alert_rate, changed.ordered_threshold = value, ordered.alert_rate, value
            changed._model = replace(self._own, rules=replace(self._own.rules, threshold=value))
        return changed

    @property
    def own(self) -> ServedModel:
        """The model as it was trained, with its own columns and threshold."""
        return self._own

    @property
    def missing(self) -> list[str]:
        """Columns of the model that the stream does not have."""
        have = {*self.numeric_names, *self.categorical_names}
        return [c.name for c in self._model.columns if c.name not in have]

    def score(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> NDArray[np.float32]:
        return self._model.score(*self._arranged(numeric, categorical))

    def explain(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> Sequence[Explanation]:
        return self._model.explain(*self._arranged(numeric, categorical))

    def _arranged(
        self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]
    ) -> tuple[NDArray[np.float64], NDArray[np.uint64]]:
        # An extra column of NaN or 0, selected by the last index, stands for missing columns.
        masked = np.full((len(numeric), 1), np.nan)
        unknown = np.zeros((len(categorical), 1), np.uint64)
        return (
            np.hstack([numeric, masked])[:, self._numeric],
            np.hstack([categorical, unknown])[:, self._categorical],
        )


def score_table(model: ColumnsByName, table: Table) -> NDArray[np.float32]:
    """Scores of a table with the columns of the stream, **shape (n,)**; `BLOCK` rows are read at a time."""
    parts = (table.take(slice(start, start + BLOCK)) for start in range(0, len(table), BLOCK))
    found = [model.score(np.asarray(part.numeric[:]), np.asarray(part.categorical[:])) for part in parts]
    return np.concatenate([np.zeros(0, np.float32), *found])


def _places(wanted: Sequence[str], have: Sequence[str]) -> NDArray[np.int64]:
    at = {name: i for i, name in enumerate(have)}
    return np.array([at.get(name, len(have)) for name in wanted], np.int64)


def champion(settings: Settings, stream: Stream) -> ColumnsByName:
    """Load the champion from MLflow, or the last good copy if MLflow is not available."""
    return loaded_model(settings, stream, champion_alias(settings, stream).digest)


def champion_alias(settings: Settings, stream: Stream) -> registry.Resolved:
    """What the champion alias points to in MLflow, or did when MLflow last answered."""
    name, uri = registry_name(stream), settings.tracking_uri_or_nowhere()
    resolved = registry.resolve(name, "champion", tracking_uri=uri, cache=settings.model_cache)
    if not resolved.registry_answered:
        log.warning("MLflow does not answer; the last known champion is version %s", resolved.version)
    return resolved


def loaded_model(settings: Settings, stream: Stream, digest: str) -> ColumnsByName:
    """Load a model, from the cache or from MLflow; columns that the stream does not have are told."""
    model = ColumnsByName(_loaded(settings, registry_name(stream), digest), stream)
    if model.missing:
        log.warning(
            "the model uses columns that the stream does not have; they count as missing: %s",
            ", ".join(model.missing),
        )
    return model


def model_of(settings: Settings, stream: Stream, digest: str) -> ColumnsByName:
    """Load the model with the digest of a score, from the cache or from MLflow.

    Raises:
        NoModelError: neither has the model.
    """
    try:
        return ColumnsByName(_loaded(settings, registry_name(stream), digest), stream)
    except ModelError as error:
        raise NoModelError(str(error)) from error


def _loaded(settings: Settings, name: str, digest: str) -> ServedModel:
    """Load a model from the cache. A damaged copy is downloaded again."""
    uri, cache = settings.tracking_uri_or_nowhere(), settings.model_cache
    folder = registry.fetch(name, digest, tracking_uri=uri, cache=cache)
    try:
        return artifact.load(folder, expect=digest)
    except ArtifactError:
        if not registry.answers(uri):
            raise
        log.warning("the local copy of model %s is damaged; downloading it again", digest[:12])
        shutil.rmtree(folder, ignore_errors=True)
        return artifact.load(registry.fetch(name, digest, tracking_uri=uri, cache=cache), expect=digest)
