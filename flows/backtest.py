"""Flow: compare the champion with baselines on all events of a period after their training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from prefect import flow
from prefect.artifacts import create_table_artifact
from sklearn.metrics import average_precision_score, roc_auc_score

from flows import encoder, training_data
from flows.alone import alone
from flows.lineage import lineage
from flows.retries import retry_unless_mistaken
from flows.settings import Settings, registry_name
from flows.streams.shipped import load
from flows.training_data import TrainingData
from models import baselines, plots
from models.ship import artifact, registry
from models.ship.registry import FoundRun
from pipelines.contracts.messages import rfc3339
from pipelines.contracts.stream import Stream
from pipelines.errors import UnmaskError


class NothingToTestError(UnmaskError):
    """The test period cannot be used: it has no known fraud, or the champion was trained on it."""


@flow(name="backtest", retries=1, retry_delay_seconds=10, validate_parameters=False)
@retry_unless_mistaken
@alone
def backtest(
    stream: Path, since_ms: int, until_ms: int | None = None, truth: Path | None = None, seed: int = 0
) -> dict[str, float]:
    """Compute average precision and ROC AUC of the champion and of baselines fitted on the data known at `since_ms`.

    Args:
        stream: path of the stream file.
        since_ms: start of the test period, ms since 1970. The baselines use labels that had matured by then.
        until_ms: end of the test period; None is the end of the lake.
        truth: Parquet file (event_id, label), for a replay whose labels are known before they arrive. None tests on
            events whose labels have matured in the lake.
        seed: seed of the baselines.

    Returns:
        Metrics by name, such as `champion_average_precision`.
    """
    settings, spec = Settings(), load(Path(stream))
    lake, uri = settings.lake(spec), settings.tracking_uri()
    parent = _unseeing_encoder(settings, spec, since_ms)
    before = training_data.load(lake, spec, settings.features(spec), as_of_ms=since_ms)
    whole = training_data.load(lake, spec, settings.features(spec), as_of_ms=lake.end_ms())
    is_unknown = spec.labels is not None and spec.labels.reports == "both"
    test, label = _test_rows(whole, since_ms=since_ms, until_ms=until_ms, truth=truth, unlabelled_is_unknown=is_unknown)
    if not label[test].any():
        raise NothingToTestError(f"{spec.name}: the test period has no known fraud; wait until its labels have matured")
    rows = whole.table.take(test)
    champion = registry.resolve(registry_name(spec), "champion", tracking_uri=uri, cache=settings.model_cache)
    served = artifact.load(champion.folder, expect=champion.digest)
    scores: dict[str, NDArray[np.floating]] = {"champion": served.score(rows.numeric, rows.categorical)}
    if parent is not None:
        scores["label_free"] = encoder.fetch(settings, parent).score(rows)
    scores |= baselines.compare(before.table, label=before.label, known=before.known, test=rows, seed=seed)
    figures = _figures(scores, label[test])
    tags = lineage(spec, lake) | {"model.digest": champion.digest, "since_ms": str(since_ms)}
    with registry.open_run(f"{spec.name}/backtest", tracking_uri=uri, run_name="backtest", tags=tags) as run:
        run.log_metrics(figures | {"events": float(test.sum()), "frauds": float(label[test].sum())})
        run.log_figure("precision_recall", plots.pr_curve(label[test], scores["champion"], threshold=served.threshold))
        run.log_figure("precision_at_budget", plots.precision_at_budget(label[test], scores["champion"]))
    create_table_artifact(key="backtest", table=[figures], description=f"[MLflow run]({run.url})")
    return figures


def _unseeing_encoder(settings: Settings, stream: Stream, since_ms: int) -> FoundRun | None:
    """The run of the champion's encoder; None if it was deleted.

    Raises:
        NothingToTestError: there is no champion, or it or its encoder may have seen the test period.
    """
    name, uri = registry_name(stream), settings.tracking_uri()
    found = registry.version_of(name, "champion", tracking_uri=uri)
    if found is None:
        raise NothingToTestError(f"{name} has no champion in MLflow at {uri}; run `unmask promote` first")
    _refuse_if_seen("the champion", found[1], ("as_of_ms", "encoder_as_of_ms"), since_ms)
    parent = registry.find_run(found[1].get("encoder.run", ""), tracking_uri=uri)
    if parent is not None:
        _refuse_if_seen("the champion's encoder", parent.tags, ("as_of_ms",), since_ms)
    return parent


def _test_rows(
    whole: TrainingData, *, since_ms: int, until_ms: int | None, truth: Path | None, unlabelled_is_unknown: bool
) -> tuple[NDArray[np.bool_], NDArray[np.int8]]:
    """The test rows, and the label of every row."""
    test = whole.table.time_ms >= since_ms
    if until_ms is not None:
        test &= whole.table.time_ms < until_ms
    if truth is None:
        return test & whole.known, whole.label
    label = _labels_of(whole.event_id, Path(truth))
    if unlabelled_is_unknown:
        test &= label.is_not_null().to_numpy()
    return test, label.fill_null(0).cast(pl.Int8).to_numpy()


def _figures(scores: Mapping[str, NDArray[np.floating]], label: NDArray[np.int8]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, score in scores.items():
        figures[f"{name}_average_precision"] = float(average_precision_score(label, score))
        figures[f"{name}_roc_auc"] = float(roc_auc_score(label, score))
    return figures


def _refuse_if_seen(what: str, tags: Mapping[str, str], names: Sequence[str], since_ms: int) -> None:
    """Check that a model was not trained on the test period: each tag must be a time before `since_ms`.

    Raises:
        NothingToTestError: a time is later, missing or not a number.
    """
    for name in names:
        said = tags.get(name, "")
        if not said.isdecimal():
            raise NothingToTestError(
                f"tag {name} of {what} is {said!r}; it must be the end of its training data, in ms since 1970. "
                "Without it, the test may include training events. Run `unmask finetune` and `unmask promote` again"
            )
        if int(said) > since_ms:
            raise NothingToTestError(
                f"{what} saw events up to {rfc3339(int(said))} ({name}), so a test from {rfc3339(since_ms)} would "
                "include training events; use a later --since, or promote a model and encoder trained with an "
                "earlier --as-of"
            )


def _labels_of(event_id: pl.Series, truth: Path) -> pl.Series:
    known = pl.read_parquet(truth, columns=["event_id", "label"]).unique("event_id")
    joined = pl.DataFrame({"event_id": event_id}).join(known, on="event_id", how="left", maintain_order="left")
    return joined["label"]
