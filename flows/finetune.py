"""Flow: fine-tune the encoder on known labels, measure the model for the gate and make it the challenger."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from prefect import flow
from prefect.artifacts import create_link_artifact, create_table_artifact

from flows import encoder, gate, progress, training_data
from flows.alone import alone
from flows.lineage import lineage
from flows.retries import retry_unless_mistaken
from flows.settings import Settings, registry_name
from flows.streams.shipped import load
from flows.training_data import TrainingData
from models import baselines, plots
from models.errors import ModelError
from models.fit.finetune import FinetuneConfig
from models.fit.finetune import finetune as finetune_head
from models.fit.leaks import refuse
from models.ship import artifact, registry
from models.ship.artifact import ServedModel
from models.table import Table


@flow(name="finetune", retries=1, retry_delay_seconds=10, validate_parameters=False)
@retry_unless_mistaken
@alone
def finetune(stream: Path, as_of_ms: int | None = None, seed: int = 0, encoder_run: str | None = None) -> int:
    """Fine-tune on the data known at `as_of_ms`. Without labels, the model is label-free.

    The newest known labels and the newest events are held out for the gate.

    Args:
        stream: path of the stream file.
        as_of_ms: use only data that had arrived by this time, ms since 1970; None is now.
        seed: seed of weights and batches.
        encoder_run: MLflow run of the encoder; None is the newest finished one.

    Returns:
        The version of the model in the registry. It has the alias `challenger`.

    Raises:
        LeakError: a field of the event knows what is to be predicted.
    """
    settings, spec = Settings(), load(Path(stream))
    lake, uri, name = settings.lake(spec), settings.tracking_uri(), registry_name(spec)
    folder = settings.work_folder(spec, "finetune")
    parent = encoder.find(settings, spec, run_id=encoder_run)
    pretrained = encoder.fetch(settings, parent)
    data = training_data.load(lake, spec, settings.features(spec), as_of_ms=as_of_ms or int(time.time() * 1000))
    slices = gate.keep_back(data.known)
    n = int((~slices.newest).sum())
    table, label, known = data.table.take(slice(0, n)), data.label[:n], (data.known & ~slices.labelled)[:n]
    entities = training_data.entities_of(lake, spec, data.event_id[:n])
    refuse(table, label=label, known=known, entities=entities)
    kept = slices.labelled if slices.labelled.any() else slices.newest
    tags = lineage(spec, lake) | {
        "as_of_ms": str(data.as_of_ms),
        "features": data.features_key,
        "seed": str(seed),
        "encoder.run": parent.run_id,
        "encoder_as_of_ms": parent.tags.get("as_of_ms", ""),
        "learned_until_ms": str(int(data.table.time_ms[kept][0])),
    }
    with (
        registry.open_run(f"{spec.name}/finetune", tracking_uri=uri, run_name="finetune", tags=tags) as run,
        progress.shown("finetune") as report,
    ):
        config = FinetuneConfig(budget=training_data.budget_of(spec))
        run.log_params(vars(config) | {"rows": n, "labels_known": int(known.sum())})
        model = finetune_head(
            pretrained,
            table,
            label=label,
            known=known,
            config=config,
            seed=seed,
            report=run.log_metrics,
            progress=report,
        )
        digest = artifact.save(model, folder / "model", lineage=tags)
        served = artifact.load(folder / "model", expect=digest)
        champion = registry.version_of(name, "champion", tracking_uri=uri)
        formers = _formers(settings, name, champion, served) if champion else {}
        judged = data.table.take(slices.labelled)
        truth = data.label[slices.labelled]
        peers: dict[str, NDArray[np.floating]] = {}
        if truth.any():
            peers["label_free"] = pretrained.score(judged)
            peers |= baselines.compare(table, label=label, known=known, test=judged, seed=seed)
        figures = _measure(served, data, slices, model.metrics, formers, peers)
        _log_figures(run, served, figures, judged if truth.any() else data.table.take(slices.newest), truth)
        reference = formers.get("reference")
        kept_reference = reference is not None and reference.model is not None and not gate.is_new_reference(figures)
        validation = {k: f"{v:.6f}" for k, v in model.metrics.items() if k.startswith("validation_")}
        marks = figures.tags() | {
            "gate_champion_version": str(champion[0]) if champion else "",
            "gate_reference_version": str(reference.version) if reference and kept_reference else "",
        }
        version = registry.register(
            name, run, folder / "model", digest=digest, tags=tags | validation | marks, description=_words(figures)
        )
        registry.set_alias(name, "challenger", version, tracking_uri=uri)
    create_link_artifact(key="finetune", link=run.url, link_text="MLflow run")
    rows = [{"scorer": scorer, **asdict(one)} for scorer, one in figures.comparisons.items()]
    create_table_artifact(key="finetune-gate", table=rows, description=_words(figures))
    return version


@dataclass(frozen=True)
class _Former:
    """A former model to compare with the challenger. If this is impossible, `model` is None and `why` is the reason."""

    version: int
    model: ServedModel | None
    learned_until_ms: int | None
    why: str = ""


def _formers(
    settings: Settings, name: str, champion: tuple[int, dict[str, str]], challenger: ServedModel
) -> dict[str, _Former]:
    """The champion, and the best former champion, named by a tag of the champion if it is another version."""
    version, tags = champion
    best = tags.get("gate_reference_version", "")
    return {
        "champion": _former(settings, name, version, challenger),
        "reference": _former(settings, name, int(best) if best.isdecimal() else version, challenger),
    }


def _former(settings: Settings, name: str, version: int, challenger: ServedModel) -> _Former:
    try:
        found, tags = registry.resolve_version(
            name, version, tracking_uri=settings.tracking_uri(), cache=settings.model_cache
        )
        model = artifact.load(found.folder, expect=found.digest)
    except ModelError as error:  # deleted, of another format, or damaged
        return _Former(version, None, None, f"version {version} cannot be loaded: {error}")
    if model.columns != challenger.columns:
        return _Former(version, None, None, f"version {version} has different columns")
    until = tags.get("learned_until_ms", "")
    return _Former(version, model, int(until) if until.isdecimal() else None)


def _measure(
    served: ServedModel,
    data: TrainingData,
    slices: gate.Slices,
    metrics: Mapping[str, float],
    formers: Mapping[str, _Former],
    peers: Mapping[str, NDArray[np.floating]],
) -> gate.Figures:
    """Compute the figures of the gate on held-out rows."""
    newest, judged, truth = (
        data.table.take(slices.newest),
        data.table.take(slices.labelled),
        data.label[slices.labelled],
    )
    budget, scores = served.rules.budget, served.score(newest.numeric, newest.categorical)
    comparisons: dict[str, gate.Comparison] = {}
    cost: dict[str, float] = {}
    if truth.any():
        ours = served.score(judged.numeric, judged.categorical)
        cost = gate.cost_of(budget, ours, truth, served.threshold)
        start_ms = int(judged.time_ms[0])
        theirs = {
            who: (former.model.score(judged.numeric, judged.categorical), former.learned_until_ms)
            for who, former in formers.items()
            if former.model is not None
        } | {who: (score, start_ms) for who, score in peers.items()}
        for who, (score, until_ms) in theirs.items():
            comparisons[who] = gate.compare(ours, score, truth, judged.time_ms, learned_until_ms=until_ms)
    return gate.Figures(
        frauds=int(truth.sum()),
        rows=len(newest),
        finite=bool(np.isfinite(scores).all()),
        distinct=len(np.unique(scores)),
        alert_rate=float(np.mean(scores > served.threshold)),
        allowed_rate=gate.allowed_share(budget, newest.time_ms, validation_alert_rate=metrics["validation_alert_rate"]),
        cost=cost,
        comparisons=comparisons,
        not_compared={who: former.why for who, former in formers.items() if former.model is None},
    )


def _log_figures(
    run: registry.Run, served: ServedModel, figures: gate.Figures, rows: Table, label: NDArray[np.int8]
) -> None:
    """Log metrics and plots of the held-out rows, also for the other scorers."""
    scores = served.score(rows.numeric, rows.categorical)
    alerts = scores > served.threshold
    metrics = {
        "gate_frauds": float(figures.frauds),
        "gate_alert_rate": figures.alert_rate,
        "gate_allowed_rate": figures.allowed_rate,
        "threshold": served.threshold,
    }
    metrics |= {f"gate_{name}_average_precision": one.theirs for name, one in figures.comparisons.items()}
    if label.any():
        metrics |= {
            "gate_average_precision": next(iter(figures.comparisons.values())).ours,
            "gate_alert_precision": float(label[alerts].mean()) if alerts.any() else 0.0,
            "gate_alert_recall": float(alerts[label == 1].mean()),
        }
        run.log_figure("precision_recall", plots.pr_curve(label, scores, threshold=served.threshold))
        run.log_figure("precision_at_budget", plots.precision_at_budget(label, scores))
        columns: dict[str, Sequence[object]] = {
            "scorer": list(figures.comparisons),
            "average_precision": [one.theirs for one in figures.comparisons.values()],
            "challenger": [one.ours for one in figures.comparisons.values()],
        }
        run.log_table("comparison", columns)
    known = label if label.any() else None
    run.log_figure("score_histogram", plots.score_histogram(scores, label=known, threshold=served.threshold))
    run.log_metrics(metrics)


def _words(figures: gate.Figures) -> str:
    beside = ", ".join(
        f"{name} {one.theirs:.4g} (challenger {one.ours:.4g})" for name, one in figures.comparisons.items()
    )
    return (
        f"Held out for the gate: {figures.frauds} known frauds. Alert rate: {figures.alert_rate:.3%}, allowed: "
        f"{figures.allowed_rate:.3%}" + (f". Average precision: {beside}" if beside else "")
    )
