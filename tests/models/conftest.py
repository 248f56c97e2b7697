"""A small stream whose frauds show in the amount, and models trained on it once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.fit.finetune import FinetuneConfig, TrainedModel, finetune
from models.fit.pretrain import PretrainConfig, Pretrained, pretrain
from models.score.budget import Budget
from models.ship.artifact import save
from models.table import Column, Table

COLUMNS = (
    Column("amount", "numeric", of="amount"),
    Column("customer_id.amount.mean.7d", "numeric", entity="customer_id", stat="mean"),
    Column("customer_id.amount.ratio.7d", "numeric", of="amount", entity="customer_id", stat="ratio"),
    Column("customer_id.count.1d", "numeric", entity="customer_id", stat="count"),
    Column("terminal_id.fraud_rate.7d", "numeric", label_fed=True, entity="terminal_id", stat="fraud_rate"),
    Column("channel", "categorical", of="channel"),
)
NAMES = {11: "web", 22: "shop", 33: "phone"}
PRETRAIN = PretrainConfig(width=48, max_steps=240, min_steps=240, batch=512)
FINETUNE = FinetuneConfig(budget=Budget(rate=0.02), validation=0.2)


def stream(n: int, seed: int) -> tuple[Table, NDArray[np.int8]]:
    """Payments: a customer's mean sets the amount; frauds are five times it, or at a terminal with past frauds."""
    random = np.random.default_rng(seed)
    mean = random.uniform(5, 100, n)
    amount = np.maximum(mean * (1 + 0.3 * random.normal(size=n)), 0.1)
    rate = np.where(random.random(n) < 0.02, random.uniform(0.3, 0.9, n), 0.0)
    by_amount, by_place = random.random(n) < 0.015, (rate > 0) & (random.random(n) < 0.6)
    amount[by_amount] *= random.uniform(3, 6, by_amount.sum())
    fraud = (by_amount | by_place).astype(np.int8)
    known_mean = mean * (1 + 0.1 * random.normal(size=n))
    numeric = np.stack([amount, known_mean, amount / known_mean, random.poisson(2.0, n).astype(float), rate], 1)
    numeric[random.random(n) < 0.02, 1] = np.nan
    channel = random.choice(np.array([11, 22, 33, 0], np.uint64), (n, 1), p=[0.3, 0.6, 0.05, 0.05])
    return Table(COLUMNS, numeric, channel, np.arange(n, dtype=np.int64) * 60_000, NAMES), fraud


@dataclass(frozen=True)
class Trained:
    """What the tests of scoring, explaining and shipping share."""

    table: Table
    label: NDArray[np.int8]
    test: Table
    truth: NDArray[np.int8]
    pretrained: Pretrained
    day_zero: TrainedModel
    labelled: TrainedModel


@pytest.fixture(scope="session")
def trained() -> Trained:
    table, label = stream(12_000, seed=1)
    test, truth = stream(6_000, seed=2)
    pretrained = pretrain(table, config=PRETRAIN, seed=0)
    none, every = np.zeros(len(table), bool), np.ones(len(table), bool)
    day_zero = finetune(pretrained, table, label=label, known=none, config=FINETUNE, seed=0)
    labelled = finetune(pretrained, table, label=label, known=every, config=FINETUNE, seed=0)
    return Trained(table, label, test, truth, pretrained, day_zero, labelled)


@pytest.fixture(scope="session")
def saved(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Folder and digest of each model."""
    found = {}
    for name, model in (("day_zero", trained.day_zero), ("labelled", trained.labelled)):
        folder = tmp_path_factory.mktemp(name)
        found[name] = folder, save(model, folder, lineage={"parent": "test"})
    return found
