"""A stream on a broker with a home in which models lie in the cache, as they do where MLflow is not available."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from flows.settings import Settings, registry_name
from flows.training_data import columns_of
from models.fit.finetune import FinetuneConfig, TrainedModel, finetune
from models.fit.pretrain import PretrainConfig, pretrain
from models.score.budget import Budget
from models.ship.artifact import save
from models.table import Column, Table
from pipelines.kafka import topics
from pipelines.kafka.topics import KEEP_FOR_EVER
from tests.pipelines.live.kill_stream import TEXTS
from tests.pipelines.live.rig import Rig

N_ROWS = 2_000


@cache
def trained(columns: tuple[Column, ...]) -> TrainedModel:
    """A small model without labels, trained once."""
    random = np.random.default_rng(0)
    n_numeric = sum(column.kind == "numeric" for column in columns)
    numeric = random.gamma(2.0, 2.0, (N_ROWS, n_numeric))
    categorical = random.integers(1, 6, (N_ROWS, len(columns) - n_numeric)).astype(np.uint64)
    table = Table(columns, numeric, categorical, np.arange(N_ROWS), {})
    short = PretrainConfig(width=16, max_steps=20, min_steps=20, batch=64)
    none = np.zeros(N_ROWS, bool)
    config = FinetuneConfig(budget=Budget(rate=0.01), n_trees=10, validation=0.2)
    encoder = pretrain(table, config=short, seed=0)
    return finetune(encoder, table, label=none.astype(np.int8), known=none, config=config, seed=0)


class Home:
    """A rig with a control topic, a stream file, and a home whose model cache the test fills.

    With `MLFLOW_TRACKING_URI` unset, the champion is the last good copy: the first model that is put here.
    """

    def __init__(self, kafka: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kafka, self.folder = kafka, folder
        self.rig = Rig(kafka, folder)
        self.stream = self.rig.stream
        topics.create_topics(self.rig.connection, {self.stream.topic("control"): 1}, config=KEEP_FOR_EVER)
        self.stream_file = folder / "stream.toml"
        self.stream_file.write_text(TEXTS["merged"].format(name=self.stream.name))
        monkeypatch.setenv("UNMASK_HOME", str(folder / "home"))
        monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        self.settings = Settings()

    def put(self, name: str, *, threshold: float = 0.5, columns: Sequence[Column] | None = None) -> str:
        """Put a model into the cache; its digest. It differs from others by its threshold and its name."""
        model = trained(tuple(columns or columns_of(self.stream)))
        rules = replace(model.rules, threshold=threshold)
        draft = self.folder / f"draft-{name}"
        digest = save(replace(model, rules=rules), draft, lineage={"name": name})
        target = self.settings.model_cache / digest
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(draft, target)
        pointer = self.settings.model_cache / f"{registry_name(self.stream)}.champion.json"
        if not pointer.exists():
            pointer.write_text(json.dumps({"version": 1, "digest": digest}))
        return digest
