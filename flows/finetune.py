"""Flow: the encoder and the labels there are become a calibrated model, compared with baselines; the new challenger."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from prefect import flow
from prefect.artifacts import create_link_artifact, create_table_artifact
from sklearn.metrics import average_precision_score, roc_auc_score

from flows import progress, training_data
from flows.alone import alone
from flows.lineage import lineage
from flows.settings import Settings, registry_name
from models import artifact, baselines, plots, registry
from models.calibrate import Budget
from models.finetune import FinetuneConfig
from models.finetune import finetune as finetune_head
from models.pretrain import load_pretrained
from pipelines.errors import UnmaskError
from pipelines.stream import Stream, load


class NoEncoderError(UnmaskError):
    """There is no encoder to fine-tune."""


@flow(name="finetune", retries=1, retry_delay_seconds=10, validate_parameters=False)
@alone
def finetune(stream: Path, as_of_ms: int | None = None, seed: int = 0) -> int:
    """Fine-tune on what was known at `as_of_ms`; with no label at all the model is the masked surprise alone.

    Args:
        stream: path of the stream file.
        as_of_ms: the moment to look back from, ms since 1970; None is now.
        seed: of weights and batches.

    Returns:
        version of the model in the registry, which has the alias `challenger`.
    """
    settings, spec = Settings(), load(Path(stream))
    lake = settings.lake(spec)
    folder = settings.work_folder(spec, "finetune")
    encoder = settings.work_folder(spec, "pretrain")
    if not (encoder / "encoder").is_dir():
        raise NoEncoderError(f"{spec.name} has no encoder in {encoder}; run `unmask pretrain` first")
    pretrained = load_pretrained(encoder / "encoder")
    data = training_data.load(lake, spec, as_of_ms=as_of_ms or int(time.time() * 1000))
    parent = (encoder / "run_id").read_text()
    tags = lineage(spec, lake) | {"as_of_ms": str(data.as_of_ms), "seed": str(seed), "encoder.run": parent}
    with (
        registry.open_run(
            f"{spec.name}/finetune", tracking_uri=settings.tracking_uri(), run_name="finetune", tags=tags
        ) as run,
        progress.shown("finetune") as report,
    ):
        config = FinetuneConfig(budget=budget_of(spec))
        run.log_params(vars(config) | {"rows": len(data.table), "labels_known": int(data.known.sum())})
        model = finetune_head(
            pretrained,
            data.table,
            label=data.label,
            known=data.known,
            config=config,
            seed=seed,
            report=run.log_metrics,
            progress=report,
        )
        digest = artifact.save(model, folder / "model", lineage=tags)
        served = artifact.load(folder / "model", expect=digest)
        held_out = _validation_rows(data.known, config.validation, has_head=bool(model.metrics["has_head"]))
        table, label = data.table.take(held_out), data.label[held_out]
        scores: dict[str, NDArray[np.floating]] = {"challenger": served.score(table.numeric, table.categorical)}
        if label.any():
            day_zero = finetune_head(
                pretrained, data.table, label=data.label, known=np.zeros_like(data.known), config=config, seed=seed
            )
            scores["label_free"] = day_zero.score(table.numeric, table.categorical)
            scores |= baselines.compare(data.table, label=data.label, known=data.known, test=table, seed=seed)
        if (champion := _champion(settings, spec)) is not None and champion.columns == served.columns:
            scores["champion"] = champion.score(table.numeric, table.categorical)
        figures = _log_scores(run, label, scores, served.threshold)
        figures |= _recent_alerts(served, data)
        marks = tags | {f"validation_{name}": f"{value:.6f}" for name, value in figures.items()}
        version = registry.register(
            registry_name(spec), run, folder / "model", digest=digest, tags=marks, description=_words(figures)
        )
        registry.set_alias(registry_name(spec), "challenger", version, tracking_uri=settings.tracking_uri())
    create_link_artifact(key="finetune", link=run.url, link_text="MLflow run")
    create_table_artifact(key="finetune-validation", table=[figures], description="On the validation period")
    return version


def _validation_rows(known: NDArray[np.bool_], share: float, *, has_head: bool) -> NDArray[np.int64]:
    """The rows the threshold was chosen on: the last share, in time, of the known ones; without a head and with few
    known ones the last tenth of all, as in `models.finetune`.
    """
    rows = np.flatnonzero(known)
    last = rows[len(rows) - int(len(rows) * share) :]
    return last if has_head or len(last) >= 1000 else np.arange(len(known) - max(1, len(known) // 10), len(known))


def _champion(settings: Settings, stream: Stream) -> artifact.ServedModel | None:
    """The model that serves now, to be compared on the same rows; None where there is none."""
    uri, name = settings.tracking_uri(), registry_name(stream)
    if registry.version_of(name, "champion", tracking_uri=uri) is None:
        return None
    found = registry.resolve(name, "champion", tracking_uri=uri, cache=settings.model_cache)
    try:
        return artifact.load(found.folder, expect=found.digest)
    except artifact.ArtifactError:
        return None  # of another format, or damaged: it is about to be replaced


def _recent_alerts(served: artifact.ServedModel, data: training_data.TrainingData) -> dict[str, float]:
    """Share of alerts among the newest events, whose labels are not mature: they chose neither head nor threshold."""
    recent = np.flatnonzero(~data.known) if data.known.any() else np.zeros(0, np.int64)
    if not len(recent):
        return {}
    rows = data.table.take(recent)
    rate = float(np.mean(served.score(rows.numeric, rows.categorical) > served.threshold))
    return {"recent_alert_rate": rate, "recent_rows": float(len(recent))}


def budget_of(stream: Stream) -> Budget:
    """The stream file's alert budget in the models' words."""
    cost = stream.budget.get("cost")
    return Budget(
        rate=stream.budget.get("rate"),
        per_day=stream.budget.get("per_day"),
        cost=(cost["missed"], cost["review"]) if cost else None,
    )


def _log_scores(
    run: registry.Run, label: np.ndarray, scores: dict[str, np.ndarray], threshold: float
) -> dict[str, float]:
    """Figures and plots of the validation period; those of the baselines carry their name."""
    ours = next(iter(scores.values()))
    figures = {"alert_rate": float(np.mean(ours > threshold)), "rows": float(len(ours)), "threshold": threshold}
    run.log_figure("score_histogram", plots.score_histogram(ours, label=label, threshold=threshold))
    if label.any():
        precisions = {name: float(average_precision_score(label, score)) for name, score in scores.items()}
        for index, (name, score) in enumerate(scores.items()):
            prefix = "" if index == 0 else f"{name}_"
            figures[f"{prefix}average_precision"] = precisions[name]
            figures[f"{prefix}roc_auc"] = float(roc_auc_score(label, score))
        alerted = ours > threshold
        figures["alert_precision"] = float(label[alerted].mean()) if alerted.any() else 0.0
        figures["alert_recall"] = float(alerted[label == 1].mean())
        run.log_figure("precision_recall", plots.pr_curve(label, ours, threshold=threshold))
        run.log_figure("precision_at_budget", plots.precision_at_budget(label, ours))
        columns: dict[str, Sequence[object]] = {
            "scorer": list(precisions),
            "average_precision": list(precisions.values()),
        }
        run.log_table("comparison", columns)
    run.log_metrics({f"validation_{name}": value for name, value in figures.items()})
    return figures


def _words(figures: dict[str, float]) -> str:
    return "Validation period: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
