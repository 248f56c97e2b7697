"""Average precision and ROC AUC of a model and of baselines fitted on what was known at the start of a period."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from flows import encoder, training_data
from flows.backtesting.candidates import Candidate, NothingToTestError
from flows.backtesting.period import labels_told
from flows.settings import Settings
from models import baselines
from models.ship import registry
from pipelines.contracts.stream import Stream
from pipelines.lake.tables import Lake
from pipelines.model import Model


def against_baselines(
    settings: Settings,
    stream: Stream,
    lake: Lake,
    candidate: Candidate,
    model: Model,
    from_ms: int,
    until_ms: int,
    *,
    truth: Path | None,
    seed: int,
) -> dict[str, float]:
    """Metrics by name, such as `champion_average_precision`.

    Args:
        from_ms, until_ms: event times of the period. The baselines use labels that had matured by its start.
        truth: see `period_of`. None tests on events whose labels have matured in the lake.
        seed: seed of the baselines.

    Raises:
        NothingToTestError: the period has no known fraud.
    """
    features = settings.features(stream)
    before = training_data.load(lake, stream, features, as_of_ms=from_ms)
    whole = training_data.load(lake, stream, features, as_of_ms=lake.end_ms())
    label, known = whole.label, whole.known
    if truth is not None:
        is_unknown = stream.labels is not None and stream.labels.reports == "both"
        label, known = labels_told(whole.event_id, truth, is_unknown=is_unknown)
    test = known & (whole.table.time_ms >= from_ms) & (whole.table.time_ms < until_ms)
    if not label[test].any():
        raise NothingToTestError(f"{stream.name}: the period has no known fraud; wait until its labels have matured")
    rows = whole.table.take(test)
    numeric, categorical = np.asarray(rows.numeric), np.asarray(rows.categorical)
    scores: dict[str, NDArray[np.floating]] = {candidate.name: model.score(numeric, categorical)}
    parent = registry.find_run(candidate.encoder_run, tracking_uri=settings.tracking_uri())
    if parent is not None:
        scores["label_free"] = encoder.fetch(settings, parent).score(rows)
    scores |= baselines.compare(before.table, label=before.label, known=before.known, test=rows, seed=seed)
    return _figures(scores, label[test])


def _figures(scores: Mapping[str, NDArray[np.floating]], label: NDArray[np.int8]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, score in scores.items():
        figures[f"{name}_average_precision"] = float(average_precision_score(label, score))
        figures[f"{name}_roc_auc"] = float(roc_auc_score(label, score))
    return figures
