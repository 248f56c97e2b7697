"""Pretraining by several processes of torch's launcher: the first one runs the flow, the others only train with it.

They get from the first one which version of the lake to read, so all have the same rows. Only the first one talks to
MLflow and Prefect.
"""

from pathlib import Path
from typing import NamedTuple

from flows import training_data
from models.fit import workers
from models.fit.pretrain import PretrainConfig, pretrain
from pipelines.contracts.stream import Stream
from pipelines.lake.tables import Lake


class Work(NamedTuple):
    """What the others must know. `lake` is a snapshot; the folders are reached by all."""

    lake: Lake
    stream: Stream
    features: Path
    as_of_ms: int
    config: PretrainConfig
    seed: int
    checkpoint: Path


def share(work: Work) -> None:
    """Tell the others, if there are any."""
    workers.join()
    workers.of_first(lambda: work)


def help_to_train() -> None:
    """Wait for the first one, and train with it."""
    workers.join()
    work = workers.of_first(_not_first)
    data = training_data.load(work.lake, work.stream, work.features, as_of_ms=work.as_of_ms)
    pretrain(data.table, config=work.config, seed=work.seed, checkpoint=work.checkpoint)


def _not_first() -> Work:
    raise AssertionError("the first process runs the flow")
