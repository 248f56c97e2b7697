"""Flow: train an encoder on the events of the lake, without labels."""

import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from prefect import flow
from prefect.artifacts import create_link_artifact

from flows import encoder, progress, training_data
from flows.alone import alone
from flows.lineage import lineage
from flows.retries import retry_unless_mistaken
from flows.settings import Settings
from flows.streams.shipped import load
from models import plots
from models.fit.pretrain import PretrainConfig
from models.fit.pretrain import pretrain as pretrain_encoder
from models.ship import registry
from models.ship.pretrained import save_pretrained


@flow(name="pretrain", retries=1, retry_delay_seconds=10, validate_parameters=False)
@retry_unless_mistaken
@alone
def pretrain(stream: Path, as_of_ms: int | None = None, seed: int = 0) -> str:
    """Train the encoder on the events that had arrived by `as_of_ms`. An interrupted run resumes from its checkpoint.

    Args:
        stream: path of the stream file.
        as_of_ms: use only events that had arrived by this time, ms since 1970; None is now.
        seed: seed of weights, masks and batches.

    Returns:
        The id of the MLflow run, which contains the encoder.
    """
    settings, spec = Settings(), load(Path(stream))
    lake = settings.lake(spec)
    data = training_data.load(lake, spec, settings.features(spec), as_of_ms=as_of_ms or int(time.time() * 1000))
    tags = lineage(spec, lake) | {"as_of_ms": str(data.as_of_ms), "features": data.features_key, "seed": str(seed)}
    curves: dict[str, list[tuple[float, float]]] = {}
    with (
        registry.open_run(
            f"{spec.name}/pretrain", tracking_uri=settings.tracking_uri(), run_name="pretrain", tags=tags
        ) as run,
        progress.shown("pretrain") as report,
    ):

        def log(values: Mapping[str, float], step: int) -> None:
            run.log_metrics(values, step)
            for name, value in values.items():
                curves.setdefault(name, []).append((step, value))

        config = PretrainConfig()
        run.log_params(vars(config) | {"rows": len(data.table), "columns": len(data.table.columns)})
        pretrained = pretrain_encoder(
            data.table,
            config=config,
            seed=seed,
            label=data.label,
            known=data.known,
            report=log,
            progress=report,
            checkpoint=settings.work_folder(spec, "pretrain") / "checkpoint",
        )
        with TemporaryDirectory() as draft:
            digest = save_pretrained(pretrained, Path(draft), lineage=tags)
            registry.publish_folder(run, Path(draft), encoder.FOLDER, digest=digest)
        losses = {name: points for name, points in curves.items() if "loss" in name}
        if losses:
            run.log_figure("loss", plots.training_curves(losses))
        probes = {name: points for name, points in curves.items() if "probe" in name}
        if probes:
            run.log_figure(
                "probe", plots.training_curves(probes, ylabel="probe average precision", higher_is_better=True)
            )
    create_link_artifact(key="pretrain", link=run.url, link_text="MLflow run")
    return run.run_id
