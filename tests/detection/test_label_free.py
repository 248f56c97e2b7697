"""The label-free score finds what is odd and ignores noise, on streams that it was not tuned on."""

from datetime import UTC, datetime

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from flows.streams import shipped
from flows.training_data import offline_table
from models.fit.finetune import FinetuneConfig, finetune
from models.fit.pretrain import PretrainConfig, pretrain
from models.table import Column, Table
from pipelines.play.simulate import payments
from tests.detection.logins import KINDS, logins, stream


@pytest.mark.parametrize("seed", [101, pytest.param(102, marks=pytest.mark.bench)])
def test_bursts_takeovers_and_exfiltrations_of_logins_are_found_within_the_budget(seed: int) -> None:
    frame = logins(seed=seed)
    table, kind = offline_table(frame, stream()), frame["kind"].to_numpy()
    none = np.zeros(len(table), bool)
    model = finetune(
        pretrain(table, config=PretrainConfig(), seed=0),
        table,
        label=np.zeros(len(table), np.int8),
        known=none,
        config=FinetuneConfig(),
        seed=0,
    )
    scores = model.score(np.asarray(table.numeric), np.asarray(table.categorical))
    alerts = scores > np.quantile(scores, 1 - 0.005)
    recall = {name: float(alerts[kind == number].mean()) for number, name in KINDS.items()}
    assert all(share >= 0.5 for share in recall.values()), recall


def with_noise(table: Table, seed: int) -> Table:
    """Eight categories that say nothing: of 2, 20 and 2,000 values, Zipf, constant per entity (two), drifting (two)."""
    random, n = np.random.default_rng(seed), len(table)
    assert table.entity is not None
    _, entity = np.unique(table.entity, return_inverse=True)
    n_entities = int(entity.max()) + 1
    days = (table.time_ms - table.time_ms[0]) / 86_400_000
    noise = [
        random.integers(0, 2, n),
        random.integers(0, 20, n),
        random.integers(0, 2_000, n),
        np.minimum(random.zipf(1.3, n), 500),
        random.integers(0, 30, n_entities)[entity],
        np.minimum(random.zipf(1.3, n_entities), 200)[entity],
        random.integers(0, 40, n) + (2 * days).astype(np.int64),
        random.integers(0, 5, n) + 10 * (days // 14).astype(np.int64),
    ]
    hashes = np.stack([hashed(column, i) for i, column in enumerate(noise)], axis=1)
    columns = tuple(Column(f"noise{i}", "categorical", of=f"noise{i}") for i in range(len(noise)))
    categorical = np.concatenate([np.asarray(table.categorical), hashes], axis=1)
    return Table(
        (*table.columns, *columns), table.numeric, categorical, table.time_ms, table.category_names, table.entity
    )


def hashed(values: NDArray[np.int64], column: int) -> NDArray[np.uint64]:
    return (values.astype(np.uint64) + np.uint64(1_000_003 * (column + 1))) * np.uint64(0x9E3779B97F4A7C15)


@pytest.mark.bench
def test_eight_categories_of_noise_cost_at_most_a_twentieth_of_the_average_precision() -> None:
    frame = payments(seed=11, n_customers=900, n_terminals=1_200, days=50, start=datetime(2026, 1, 1, tzinfo=UTC))
    plain = offline_table(frame, shipped.load("payments"))
    late = plain.time_ms >= plain.time_ms[0] + 35 * 86_400_000
    fraud = frame["label"].to_numpy()[late]
    found = []
    for table in (plain, with_noise(plain, seed=1)):
        pretrained = pretrain(table.take(~late), config=PretrainConfig(), seed=0)
        found.append(average_precision_score(fraud, pretrained.score(table.take(late))))
    assert found[1] >= 0.95 * found[0], found
