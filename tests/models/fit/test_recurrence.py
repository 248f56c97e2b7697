from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.fit.pretrain import PretrainConfig, pretrain
from models.fit.recurrence import Watched, recurrence

SMALL = PretrainConfig(width=16, max_steps=40, min_steps=40, batch=256, n_checks=4, patience=4)


def test_frauds_that_come_again_are_told_from_odd_events_that_do_not() -> None:
    random = np.random.default_rng(0)
    n = 40_000
    entity, time_ms = random.integers(0, 400, n).astype(np.uint64), np.sort(random.integers(0, 90 * 86_400_000, n))
    frauds = np.isin(entity, [3, 50, 120, 300, 301]) & (time_ms % (30 * 86_400_000) < 5 * 86_400_000)
    noise = random.random(n)
    assert abs(recurrence(noise, entity, time_ms).value) < 0.5
    all_of_them = recurrence(noise + frauds, entity, time_ms)
    assert all_of_them.value > 1
    assert recurrence(noise + 0.02 * frauds, entity, time_ms).value < all_of_them.value - all_of_them.error


def test_every_checkpoint_is_judged_and_an_interruption_changes_nothing(trained, tmp_path: Path) -> None:
    table = replace(trained.table, entity=np.arange(len(trained.table)).astype(np.uint64) % 300)
    seen: dict[int, float] = {}

    def note(metrics, step: int) -> None:
        assert np.isfinite(metrics["recurrence"])
        seen[step] = metrics["validation_loss"]

    whole = pretrain(table, config=SMALL, seed=3, report=note)
    assert len(seen) == 4
    assert whole.metrics["best_validation_loss"] == seen[int(whole.metrics["best_step"])]

    class Cut(Exception):
        pass

    def cut(metrics, step: int) -> None:
        if step == 30:
            raise Cut

    with pytest.raises(Cut):
        pretrain(table, config=SMALL, seed=3, report=cut, checkpoint=tmp_path)
    resumed = pretrain(table, config=SMALL, seed=3, checkpoint=tmp_path)
    assert resumed.metrics["best_step"] == whole.metrics["best_step"]
    for name, tensor in whole.expectation.state_dict().items():
        torch.testing.assert_close(tensor, resumed.expectation.state_dict()[name], rtol=0, atol=0)


def test_without_entities_or_with_few_rows_nothing_is_watched(trained) -> None:
    coding = trained.pretrained.rules.coding
    assert Watched.of(trained.table, coding) is None
    few = replace(trained.table, entity=np.zeros(len(trained.table), np.uint64)).take(slice(0, 500))
    assert Watched.of(few, coding) is None
