import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.fit.finetune import FinetuneConfig, TrainedModel, finetune
from models.fit.pretrain import FIELD_LOSS, PretrainConfig, Pretrained, pretrain
from models.net.batches import surprises_of
from models.ship.pretrained import load_pretrained, save_pretrained
from models.table import Column, PickedRows, Table, TableError

SMALL = PretrainConfig(width=16, max_steps=20, min_steps=20, batch=64, n_checks=4, patience=4)


def test_a_multiple_of_the_customers_mean_surprises_more_than_an_ordinary_amount(trained) -> None:
    coding = trained.pretrained.rules.coding
    row = np.array([[50.0, 50.0, 1.0, 2.0, 0.0], [250.0, 50.0, 5.0, 2.0, 0.0], [95.0, 95.0, 1.0, 2.0, 0.0]])
    nats = surprises_of(trained.pretrained.expectation, coding.transform(row, np.full((3, 1), 22, np.uint64)))
    assert nats[1, 0] > 10 > 3 > max(nats[0, 0], nats[2, 0])


def test_surprises_never_read_a_label_fed_column(trained) -> None:
    coding = trained.pretrained.rules.coding
    numeric, other = trained.test.numeric[:200], trained.test.numeric[:200].copy()
    other[:, 4] = 0.77
    found = [
        surprises_of(trained.pretrained.expectation, coding.transform(x, trained.test.categorical[:200]))
        for x in (numeric, other)
    ]
    np.testing.assert_array_equal(found[0], found[1])


def test_the_shared_first_layer_gives_what_hiding_a_field_in_the_input_gives(trained) -> None:
    network, coding = trained.pretrained.expectation, trained.pretrained.rules.coding
    cells = coding.transform(trained.test.numeric[:100], trained.test.categorical[:100])
    present = cells.present.copy()
    present[:, [0, 2]] = 0
    with torch.no_grad():
        mean, spread, _ = network(*(torch.from_numpy(a) for a in (cells.values, present, cells.codes)))
    z = (cells.values[:, 0] - mean[:, 0].numpy()) * np.exp(-spread[:, 0].numpy())
    plain = 0.5 * z * z * cells.present[:, 0]
    np.testing.assert_allclose(surprises_of(network, cells)[:, 0], plain, rtol=1e-3, atol=1e-4)


def test_the_same_seed_gives_the_same_network_and_a_checkpoint_goes_on_where_it_was(trained, tmp_path: Path) -> None:
    table = trained.table.take(slice(0, 1000))
    whole = pretrain(table, config=SMALL, seed=3)

    class Cut(Exception):
        pass

    def cut(metrics: object, step: int) -> None:
        if step == 15:
            raise Cut

    with pytest.raises(Cut):
        pretrain(table, config=SMALL, seed=3, report=cut, checkpoint=tmp_path)
    steps: list[int] = []
    resumed = pretrain(table, config=SMALL, seed=3, report=lambda _, step: steps.append(step), checkpoint=tmp_path)
    assert steps == [15, 20]
    for name, tensor in whole.expectation.state_dict().items():
        torch.testing.assert_close(tensor, resumed.expectation.state_dict()[name], rtol=0, atol=0)


def test_a_checkpoint_of_another_run_is_not_taken(trained, tmp_path: Path) -> None:
    table = trained.table.take(slice(0, 1000))
    pretrain(table, config=SMALL, seed=3, checkpoint=tmp_path)
    steps: list[int] = []
    pretrain(table, config=SMALL, seed=4, report=lambda _, step: steps.append(step), checkpoint=tmp_path)
    assert steps == [5, 10, 15, 20]


def test_training_reports_a_probe_beside_the_untrained_encoder(trained) -> None:
    seen: list[dict[str, float]] = []
    table = trained.table.take(slice(0, 4000))
    pretrain(
        table,
        config=SMALL,
        seed=0,
        label=trained.label[:4000],
        known=np.ones(4000, bool),
        report=lambda m, _: seen.append(dict(m)),
    )
    assert {"train_loss", "validation_loss", "probe_ap", "probe_ap_untrained"} <= set(seen[-1])


def test_a_saved_encoder_comes_back_with_its_configuration_and_columns(trained, tmp_path: Path) -> None:
    save_pretrained(trained.pretrained, tmp_path)
    back = load_pretrained(tmp_path)
    assert back.config == trained.pretrained.config
    assert back.rules.columns == trained.pretrained.rules.columns


def test_a_slow_machine_trains_the_same_network(trained) -> None:
    table, label = trained.table.take(slice(0, 1500)), trained.label[:1500]
    known = np.ones(1500, bool)
    config = FinetuneConfig(n_trees=20, min_gain=0.5)

    def learn(pause_s: float) -> tuple[Pretrained, TrainedModel]:
        def pause(*_: object) -> None:
            time.sleep(pause_s)

        args: dict[str, Any] = {"seed": 3, "report": pause, "progress": pause}
        pretrained = pretrain(table, config=SMALL, **args)
        return pretrained, finetune(pretrained, table, label=label, known=known, config=config, **args)

    (fast, fast_model), (slow, slow_model) = learn(0.0), learn(0.4)
    assert len(fast_model.trees.feature)
    for name, tensor in fast_model.expectation.state_dict().items():
        torch.testing.assert_close(tensor, slow_model.expectation.state_dict()[name], rtol=0, atol=0)
    for name, array in fast_model.trees.arrays().items():
        np.testing.assert_array_equal(array, slow_model.trees.arrays()[name])
    assert fast.metrics == slow.metrics
    assert fast_model.metrics == slow_model.metrics
    assert fast_model.rules.config() == slow_model.rules.config()


def test_a_mapped_file_read_in_another_order_trains_the_network_of_an_array_in_memory(trained, tmp_path: Path) -> None:
    table = trained.table.take(slice(0, 1500))
    stored = np.random.default_rng(0).permutation(1500)
    blocks = []
    for name, matrix in (("numeric", table.numeric), ("categorical", table.categorical)):
        np.save(tmp_path / f"{name}.npy", np.asarray(matrix)[stored])
        blocks.append(PickedRows(np.load(tmp_path / f"{name}.npy", mmap_mode="r"), np.argsort(stored)))
    mapped = replace(table, numeric=blocks[0], categorical=blocks[1])
    (one, other) = (pretrain(each, config=SMALL, seed=3) for each in (table, mapped))
    for name, tensor in one.expectation.state_dict().items():
        torch.testing.assert_close(tensor, other.expectation.state_dict()[name], rtol=0, atol=0)
    assert one.rules.config() == other.rules.config()
    np.testing.assert_array_equal(one.score(table), other.score(mapped))


def test_tables_that_cannot_be_learned_from_are_refused() -> None:
    fed = (Column("rate", "numeric", label_fed=True),)
    table = Table(fed, np.zeros((50, 1)), np.zeros((50, 0), np.uint64), np.arange(50), {})
    with pytest.raises(TableError, match="all columns are computed from labels"):
        pretrain(table, config=SMALL, seed=0)
    with pytest.raises(TableError, match="at least 3 rows"):
        pretrain(table.take(slice(0, 2)), config=replace(SMALL, validation=0.5), seed=0)


def test_the_masked_loss_of_each_field_is_reported_at_every_check_and_compared_with_its_own_distribution(
    trained,
) -> None:
    reported: dict[int, dict[str, float]] = {}
    table = trained.table.take(slice(0, 1000))
    found = pretrain(table, config=SMALL, seed=3, report=lambda metrics, step: reported.update({step: dict(metrics)}))
    names = {name.removeprefix("skill.") for name in found.metrics if name.startswith("skill.")}
    assert "amount" in names
    assert sorted(reported) == [5, 10, 15, 20]
    for metrics in reported.values():
        losses = {n.removeprefix(FIELD_LOSS): loss for n, loss in metrics.items() if n.startswith(FIELD_LOSS)}
        assert set(losses) == names
        least = sum(min(loss, found.metrics[f"marginal.{name}"]) for name, loss in losses.items())
        assert metrics["validation_loss"] == pytest.approx(least)
