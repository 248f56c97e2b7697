"""Flow: fine-tune the encoder on known labels, measure the model on held-out events and register it."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from prefect import flow
from prefect.artifacts import create_link_artifact, create_table_artifact

from flows import encoder, gate, progress, stages, training_data
from flows.alone import alone
from flows.lineage import AS_OF, ENCODER_AS_OF, HELD_OUT_FROM, LEARNED_UNTIL, flow_run_tag, lineage, time_of
from flows.retries import retry_unless_mistaken
from flows.review import periods, runs
from flows.serve.pyfunc import serving_of
from flows.settings import Settings, registry_name
from flows.stages import artifact_key, run_log, run_name, stage
from flows.streams.shipped import load
from flows.training_data import TrainingData
from models import baselines
from models.fit.efficiency import label_efficiency
from models.fit.finetune import FinetuneConfig, TrainedModel
from models.fit.finetune import finetune as finetune_head
from models.fit.leaks import refuse
from models.fit.pretrain import Pretrained
from models.ship import artifact, registry
from models.ship.artifact import ServedModel
from models.ship.registry import FoundRun
from models.table import Table
from pipelines.contracts.messages import rfc3339
from pipelines.contracts.stream import Stream
from pipelines.lake.tables import Lake


@flow(name="finetune", flow_run_name=run_name, retries=1, retry_delay_seconds=10)
@retry_unless_mistaken
@alone
def finetune(
    stream: Path,
    as_of: datetime | None = None,
    seed: int = 0,
    encoder_run: str | None = None,
    label_curve: bool = False,
) -> int:
    """Fine-tune the encoder on the labels known so far. Without labels, the model is label-free.

    The newest known labels and the newest events are held out for the gate.

    Args:
        stream: path of the stream file, or the name of a shipped stream.
        as_of: use only data that had arrived by this time; empty is now.
        seed: seed of weights and batches.
        encoder_run: MLflow run of the encoder; empty is the newest finished one.
        label_curve: also train with the labels of fewer entities, to show what more labels would give. It takes about
            as long as the training again.

    Returns:
        The version of the model in the registry. It has the alias `candidate`.

    Raises:
        LeakError: a field of the event knows what is to be predicted.
    """
    settings, spec = Settings(), load(stream)
    lake, uri = settings.lake(spec), settings.tracking_uri()
    parent, pretrained = _encoder(settings, spec, encoder_run)
    data = stages.read(settings, lake, spec, as_of=as_of)
    slices = gate.keep_back(data.known)
    past = Past.of(data, slices)
    _refuse_leaks(lake, spec, data, past)
    kept = slices.labelled if slices.labelled.any() else slices.newest
    encoder_as_of = time_of(parent.tags, AS_OF)
    tags = lineage(spec, lake) | {
        AS_OF: rfc3339(data.as_of_ms),
        "features": data.features_key,
        "seed": str(seed),
        "encoder.run": parent.run_id,
        ENCODER_AS_OF: "" if encoder_as_of is None else rfc3339(encoder_as_of),
        LEARNED_UNTIL: rfc3339(int(data.table.time_ms[kept][0])),
        HELD_OUT_FROM: rfc3339(int(data.table.time_ms[slices.newest][0])),
    }
    with registry.open_run(
        f"{spec.name}/finetune", tracking_uri=uri, run_name=runs.name_of(data), tags=tags | flow_run_tag()
    ) as run:
        trained = runs.Trained(run, spec, lake, data, tags)
        trained.log_data()
        maturity_ms = spec.labels.maturity_ms if spec.labels else None
        config = FinetuneConfig(budget=training_data.budget_of(spec), maturity_ms=maturity_ms)
        model = _train(trained, pretrained, past, config, seed)
        folder = settings.work_folder(spec, "finetune") / "model"
        digest = artifact.save(model, folder, lineage=tags)
        served = artifact.load(folder, expect=digest)
        figures = _measure(run, served, pretrained, data, slices, past, model.metrics, seed)
        curve = _label_curve(pretrained, data, slices, past, config, seed) if label_curve and figures.frauds else []
        metrics = {**model.metrics, **periods.validation_figures(data, past.known, share=config.validation)}
        found = runs.Finetuned(served, pretrained, metrics, figures, slices, curve, _champion(spec, uri), parent)
        _report(trained, found)
        validation = {k: f"{v:.6f}" for k, v in metrics.items() if k.startswith("validation_")}
        validation["has_head"] = f"{model.metrics['has_head']:.0f}"
        version = _register(run, spec, folder, served, tags | validation, figures, data.table.take(slices.newest))
        runs.describe_model(trained, found, registry_name(spec), version, _words(figures))
    create_link_artifact(key=artifact_key(spec.name, "finetune"), link=run.url, link_text="MLflow run")
    rows = [{"scorer": scorer, **asdict(one)} for scorer, one in figures.comparisons.items()]
    create_table_artifact(key=artifact_key(spec.name, "finetune-held-out"), table=rows, description=_words(figures))
    return version


class Past(NamedTuple):
    """The rows that a model may learn from. Shapes: `label` and `known` (n,)."""

    table: Table
    label: NDArray[np.int8]
    known: NDArray[np.bool_]

    @classmethod
    def of(cls, data: TrainingData, slices: gate.Slices) -> "Past":
        """All rows but the newest, and their labels but the newest."""
        n = int((~slices.newest).sum())
        return cls(data.table.take(slice(0, n)), data.label[:n], (data.known & ~slices.labelled)[:n])


@stage("fetch the encoder")
def _encoder(settings: Settings, stream: Stream, run_id: str | None) -> tuple[FoundRun, Pretrained]:
    parent = encoder.find(settings, stream, run_id=run_id)
    run_log().info("the encoder is that of MLflow run %s", parent.run_id)
    return parent, encoder.fetch(settings, parent)


@stage("look for fields that know the label")
def _refuse_leaks(lake: Lake, stream: Stream, data: TrainingData, past: Past) -> None:
    entities = training_data.entities_of(lake, stream, data.event_id[: len(past.table)])
    refuse(past.table, label=past.label, known=past.known, entities=entities)


@stage("train the head")
def _train(
    trained: runs.Trained, pretrained: Pretrained, past: Past, config: FinetuneConfig, seed: int
) -> TrainedModel:
    run, n_known = trained.run, int(past.known.sum())
    run.log_params(trained.params(config) | {"rows": len(past.table), "labels_known": n_known})
    with progress.shown("finetune") as report:
        model = finetune_head(
            pretrained,
            past.table,
            label=past.label,
            known=past.known,
            config=config,
            seed=seed,
            report=lambda values, step: run.log_metrics(runs.grouped(values), step),
            progress=report,
        )
    n_frauds = int((past.label[past.known] == 1).sum())
    run_log().info(f"trained on {len(past.table):,} rows, {n_known:,} known labels, {n_frauds:,} frauds")
    return model


@stage("measure on held-out events")
def _measure(
    run: registry.Run,
    served: ServedModel,
    pretrained: Pretrained,
    data: TrainingData,
    slices: gate.Slices,
    past: Past,
    metrics: Mapping[str, float],
    seed: int,
) -> gate.Figures:
    """Compare the model with the label-free score and baselines on events that it was not trained on."""
    newest, judged, truth = (
        data.table.take(slices.newest),
        data.table.take(slices.labelled),
        data.label[slices.labelled],
    )
    budget, scores = served.rules.budget, served.score(newest.numeric, newest.categorical)
    comparisons: dict[str, gate.Comparison] = {}
    if truth.any():
        ours = served.score(judged.numeric, judged.categorical)
        peers: dict[str, NDArray[np.floating]] = {"label_free": pretrained.score(judged)}
        peers |= baselines.compare(past.table, label=past.label, known=past.known, test=judged, seed=seed)
        comparisons = {who: gate.compare(ours, theirs, truth) for who, theirs in peers.items()}
    figures = gate.Figures(
        frauds=int(truth.sum()),
        rows=len(newest),
        alert_rate=float(np.mean(scores > served.threshold)),
        allowed_rate=gate.allowed_share(budget, newest.time_ms, validation_alert_rate=metrics["validation_alert_rate"]),
        comparisons=comparisons,
    )
    run.log_metrics(_metrics(served, figures, judged, truth))
    run_log().info(_words(figures))
    return figures


@stage("train with fewer labels")
def _label_curve(
    pretrained: Pretrained, data: TrainingData, slices: gate.Slices, past: Past, config: FinetuneConfig, seed: int
) -> list[tuple[int, float]]:
    test, truth = data.table.take(slices.labelled), data.label[slices.labelled]
    labels = past.label, past.known
    return list(label_efficiency(pretrained, past.table, *labels, test=test, truth=truth, config=config, seed=seed))


@stage("write the report")
def _report(trained: runs.Trained, found: runs.Finetuned) -> None:
    runs.report_model(trained, found)


def _champion(stream: Stream, uri: str) -> runs.Champion | None:
    found = registry.version_of(registry_name(stream), "champion", tracking_uri=uri)
    return runs.Champion(*found) if found else None


@stage("register the model")
def _register(
    run: registry.Run,
    stream: Stream,
    folder: Path,
    served: ServedModel,
    tags: Mapping[str, str],
    figures: gate.Figures,
    example: Table,
) -> int:
    name, uri, digest = registry_name(stream), run.tracking_uri, served.digest
    serving = serving_of(served, example)
    version = registry.register(
        name, run, folder, digest=digest, tags={**tags, **figures.tags()}, description=_words(figures), serving=serving
    )
    registry.set_alias(name, "candidate", version, tracking_uri=uri)
    run_log().info("version %d of %s, model %s, is the candidate", version, name, digest[:12])
    return version


def _metrics(served: ServedModel, figures: gate.Figures, rows: Table, label: NDArray[np.int8]) -> dict[str, float]:
    """Figures of the held-out rows that serve to compare runs, also of the other scorers."""
    found = {
        "held_out/frauds": float(figures.frauds),
        "held_out/alert_rate": figures.alert_rate,
        "held_out/allowed_rate": figures.allowed_rate,
        "held_out/threshold": served.threshold,
    }
    found |= {f"held_out/{name}_average_precision": one.theirs for name, one in figures.comparisons.items()}
    if label.any():
        alerts = served.score(rows.numeric, rows.categorical) > served.threshold
        found |= {
            "held_out/average_precision": next(iter(figures.comparisons.values())).ours,
            "held_out/alert_precision": float(label[alerts].mean()) if alerts.any() else 0.0,
            "held_out/alert_recall": float(alerts[label == 1].mean()),
        }
    return found


def _words(figures: gate.Figures) -> str:
    rate = f"{figures.alert_rate:.3%} of the newest events raise an alert, {figures.allowed_rate:.3%} is the budget"
    found = figures.comparisons
    if not found:
        return f"Held out for the gate: no known fraud. {rate}"
    ours = next(iter(found.values())).ours
    others = ", ".join(f"{name.replace('_', ' ')} {one.theirs:.3f}" for name, one in found.items())
    return f"Held out for the gate: {figures.frauds} known frauds, average precision {ours:.3f} ({others}). {rate}"
