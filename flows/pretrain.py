"""Flow: train an encoder on the events of the lake, without labels."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from prefect import flow
from prefect.artifacts import create_link_artifact

from flows import encoder, progress, stages
from flows.alone import alone
from flows.lineage import AS_OF, flow_run_tag, lineage
from flows.retries import retry_unless_mistaken
from flows.review.runs import Trained, name_of, report_encoder
from flows.settings import Settings
from flows.stages import artifact_key, run_log, run_name, stage
from flows.streams.shipped import load
from flows.together import Work, share
from flows.training_data import TrainingData
from models.fit import workers
from models.fit.pretrain import PretrainConfig, Pretrained
from models.fit.pretrain import pretrain as pretrain_encoder
from models.ship import registry
from models.ship.pretrained import save_pretrained
from pipelines.contracts.messages import rfc3339


@flow(name="pretrain", flow_run_name=run_name, retries=1, retry_delay_seconds=10)
@retry_unless_mistaken
@alone
def pretrain(stream: Path, as_of: datetime | None = None, seed: int = 0) -> str:
    """Train the encoder on all events, without labels. An interrupted run resumes from its checkpoint.

    Args:
        stream: path of the stream file, or the name of a shipped stream.
        as_of: use only events that had arrived by this time; empty is now.
        seed: seed of weights, masks and batches.

    Returns:
        The id of the MLflow run, which contains the encoder.
    """
    settings, spec = Settings(), load(stream)
    lake = settings.lake(spec).snapshot()
    data = stages.read(settings, lake, spec, as_of=as_of)
    tags = lineage(spec, lake) | {AS_OF: rfc3339(data.as_of_ms), "features": data.features_key, "seed": str(seed)}
    with registry.open_run(
        f"{spec.name}/pretrain",
        tracking_uri=settings.tracking_uri(),
        run_name=name_of(data),
        tags=tags | flow_run_tag(),
    ) as run:
        trained = Trained(run, spec, lake, data, tags)
        trained.log_data()
        curves: dict[str, list[tuple[float, float]]] = {}
        checkpoint = (settings.work_folder(spec, "pretrain") / "checkpoint").resolve()
        work = Work(lake, spec, settings.features(spec).resolve(), data.as_of_ms, PretrainConfig(), seed, checkpoint)
        pretrained = _train(run, data, work, curves)
        _publish(run, pretrained, tags)
        _report(trained, pretrained, curves)
    create_link_artifact(key=artifact_key(spec.name, "pretrain"), link=run.url, link_text="MLflow run")
    return run.run_id


@stage("train the encoder")
def _train(
    run: registry.Run, data: TrainingData, work: Work, curves: dict[str, list[tuple[float, float]]]
) -> Pretrained:
    def log(values: Mapping[str, float], step: int) -> None:
        run.log_metrics(values, step)
        for name, value in values.items():
            curves.setdefault(name, []).append((step, value))

    share(work)
    size = {"rows": len(data.table), "columns": len(data.table.columns), "processes": workers.count()}
    run.log_params(vars(work.config) | size)
    with progress.shown("pretrain") as report:
        pretrained = pretrain_encoder(
            data.table,
            config=work.config,
            seed=work.seed,
            label=data.label,
            known=data.known,
            report=log,
            progress=report,
            checkpoint=work.checkpoint,
        )
    run_log().info("trained on %s rows of %d columns", f"{len(data.table):,}", len(data.table.columns))
    return pretrained


@stage("store the encoder in MLflow")
def _publish(run: registry.Run, pretrained: Pretrained, tags: Mapping[str, str]) -> None:
    with TemporaryDirectory() as draft:
        digest = save_pretrained(pretrained, Path(draft), lineage=tags)
        registry.publish_folder(run, Path(draft), encoder.FOLDER, digest=digest)
    run_log().info("stored the encoder %s in %s", digest[:12], run.url)


@stage("write the report")
def _report(trained: Trained, pretrained: Pretrained, curves: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    report_encoder(trained, pretrained, curves)
