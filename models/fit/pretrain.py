"""Self-supervised pretraining: predict hidden fields from the other fields and from earlier events."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.cells import CHUNK, CellCoding, Cells
from models.fit import workers
from models.fit.checkpoint import Checkpoint, weights_of
from models.fit.distill import distill
from models.fit.label_free import label_free
from models.fit.probe import Probe
from models.fit.recurrence import Recurrence, Watched, choose
from models.fit.schedule import OnMetrics, OnShare, Schedule
from models.fit.split import last_share
from models.net.batches import Batches, as_batch, chunks, surprises_of
from models.net.expectation import CellTensors, Expectation
from models.score.budget import Budget
from models.score.calibrate import LogitCalibration, TailCalibration
from models.score.rules import Rules
from models.table import Table, TableError

FIELD_LOSS = "field_loss/"  # first part of the names of reported metrics: the masked loss of each field
MIN_SKILL = 0.05  # nats that a prediction must gain over the field's marginal distribution on later rows


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of pretraining. The number of steps is ``min(max_steps, epochs * rows / batch)``.

    Args:
        width: units of a hidden layer.
        n_layers: hidden layers after the first.
        n_bins: quantile bins of a numeric column.
        epochs: maximum passes over the rows.
        max_steps: maximum optimiser steps.
        min_steps: minimum optimiser steps, for small tables.
        batch: rows per step, of all workers together.
        lr: peak learning rate, with cosine decay to zero.
        trim: share of the largest residuals per column and step that is ignored, for robustness to frauds.
        extra_mask: share of rows in which more cells are hidden.
        validation: share of rows, the last in time, for early stopping.
        n_checks: number of validations; each also saves a checkpoint. Of those with the highest
            `recurrence`, the one with the lowest validation loss is kept.
        patience: number of checks without improvement before training stops.
        bf16: whether products are computed in bfloat16; None = on a GPU.
    """

    width: int = 96
    n_layers: int = 1
    n_bins: int = 16
    epochs: float = 8.0
    max_steps: int = 1600
    min_steps: int = 200
    batch: int = 2048
    lr: float = 2e-3
    trim: float = 0.02
    extra_mask: float = 0.25
    validation: float = 0.1
    n_checks: int = 6
    patience: int = 3
    bf16: bool | None = None


@dataclass(frozen=True)
class Pretrained:
    """A pretrained network and its fitted ``rules``, which score without labels.

    Args:
        expectation: the network; it gives the expected values of explanations.
        student: a small network that predicts the same; it gives the surprises of scores.
        rules: the other fitted parts.
        config: settings of the training.
        metrics: of the last rows in time. `marginal.x` is the loss of field x by its marginal distribution, in nats;
            `skill.x` is what its prediction from the other fields gains.
    """

    expectation: Expectation
    student: Expectation
    rules: Rules
    config: PretrainConfig
    metrics: Mapping[str, float]

    def score(self, table: Table) -> NDArray[np.float32]:
        """Label-free scores in [0, 1], **shape (n,)**. They are ranks, not probabilities.

        Raises:
            TableError: the columns differ from those that the network was trained on.
        """
        table.require(self.rules.columns)
        found = [np.zeros(0, np.float32)]
        for start in range(0, len(table), CHUNK):
            part = table.take(slice(start, start + CHUNK))
            nats = surprises_of(self.student, self.rules.coding.cells(part))
            found.append(self.rules.score(np.zeros(len(nats), np.float32), nats, np.asarray(part.numeric)))
        return np.concatenate(found)


def pretrain(
    table: Table,
    *,
    config: PretrainConfig,
    seed: int,
    label: NDArray[np.int8] | None = None,
    known: NDArray[np.bool_] | None = None,
    report: OnMetrics | None = None,
    progress: OnShare | None = None,
    checkpoint: Path | None = None,
) -> Pretrained:
    """Train the expectation network on unlabelled rows.

    Started in several processes by torch's launcher, each trains on its share of every batch (`models.fit.workers`).
    All get the same result; only the first one reports and saves.

    Args:
        table: rows in time order; the last share of them is for validation.
        config: settings.
        seed: seed of weights, batches and masks.
        label, known: **shape (n,)**. Used only for the reported probe: the average precision of a linear model on
            the encoder's output (trunk and surprises), compared with an untrained encoder.
        report: called with metrics and the step; `FIELD_LOSS` and a field's name is the loss of this field, masked.
        progress: called with the share done and a description.
        checkpoint: folder to resume from and to save to. A checkpoint of another run is ignored.

    Raises:
        TableError: there are too few rows, or no column can be predicted.

    Source: masked cell modelling (ICLR 2024) with residuals trimmed as in least trimmed squares
    (Rousseeuw, 1984).
    """
    train, later = last_share(np.arange(len(table)), config.validation, at_least=1)
    n_train, past = len(train), table.take(slice(0, len(train)))
    if n_train < 2:
        raise TableError(f"the table has {len(table)} rows; pretraining needs at least 3 rows. Use a longer period")
    workers.join()
    device, rank, n_workers = workers.device(), workers.rank(), workers.count()
    torch.manual_seed(seed)
    random = np.random.default_rng(seed if n_workers == 1 else (seed, rank))
    n_rows = -(-config.batch // n_workers)
    coding = CellCoding.fit(past, n_bins=config.n_bins)
    network = Expectation(
        table.columns,
        coding.edges,
        coding.n_codes,
        width=config.width,
        n_layers=config.n_layers,
        context=coding.context,
    ).to(device)
    if not network.fields:
        raise TableError("all columns are computed from labels; pretraining needs at least one other column")
    fields = network.fields
    steps = int(min(config.max_steps, max(config.min_steps, config.epochs * n_train / config.batch)))
    schedule = Schedule(steps, config.n_checks, config.lr, warm_up=20)
    valid = coding.cells(table, later[:: max(1, len(later) // 20_000)])
    _set_marginal(network, coding, past)
    marginal = field_losses(network, valid, trim=config.trim, trusted=False)
    probe = Probe.of(table, coding, label, known, n_train) if rank == 0 else None
    untrained = probe.score(network) if probe else None

    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=1e-4)
    run = Checkpoint.of(checkpoint, table, config, seed)
    watched = Watched.of(past, coding)
    checks: list[dict[str, Any]] = []
    start = 0
    if resumed := run.load() if run else None:
        network.load_state_dict(resumed["network"])
        optimizer.load_state_dict(resumed["optimizer"])
        checks, start = resumed["checks"], resumed["step"]
        random.bit_generator.state = resumed["random"][rank]
        torch.set_rng_state(resumed["torch_random"])
    batches = Batches(coding, past, device)
    view_masks = torch.tensor(network.views, device=device)
    metrics: dict[str, float] = {}
    began = time.monotonic()
    bf16 = device.type == "cuda" if config.bf16 is None else config.bf16

    def checked() -> tuple[NDArray[np.float64], Recurrence]:
        by_field = field_losses(network, valid, trim=config.trim)
        if watched is None:
            return by_field, Recurrence(0.0, 0.0)
        _trust(network, marginal - by_field)
        recurs = watched.measure(network)
        network.train().trust.fill_(1.0)
        return by_field, recurs

    for step in range(start, steps):
        schedule.set_rate(optimizer, step)
        batch = batches.take(random.integers(0, n_train, n_rows))
        hidden, viewed = _masks(view_masks, n_rows, config.extra_mask, random)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = masked_loss(network, batch, hidden, viewed, trim=config.trim)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        workers.average_gradients(network.parameters())
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        done = step + 1
        if schedule.checks(done):
            by_field, recurs = workers.of_first(checked)
            # fields that their marginal distribution describes better are not predicted and must not stop training
            found = float(np.minimum(by_field, marginal).sum())
            metrics = {"train_loss": float(loss.detach()), "validation_loss": found}
            if watched:
                metrics["recurrence"] = recurs.value
            checks.append({"step": done, "loss": found, "recurs": tuple(recurs), "weights": weights_of(network)})
            if probe and untrained is not None:
                metrics |= {"probe_ap": probe.score(network), "probe_ap_untrained": untrained}
            if report and rank == 0:
                losses = {f"{FIELD_LOSS}{field.name}": float(one) for field, one in zip(fields, by_field, strict=True)}
                report(metrics | losses | {"seconds": time.monotonic() - began}, done)
            if progress and rank == 0:
                progress(done / steps, f"step {done} of {steps}, validation loss {found:.4f}")
            randoms = workers.of_all(random.bit_generator.state)
            if run and rank == 0:
                run.save(
                    {
                        "network": network.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "checks": checks,
                        "step": done,
                        "random": randoms,
                        "torch_random": torch.get_rng_state(),
                    }
                )
            lowest = min(checks, key=lambda one: float(one["loss"]))
            if done - lowest["step"] >= config.patience * schedule.every:
                break
    best: dict[str, Any] = {"step": 0, "loss": float("inf")}
    if checks:
        best = checks[choose([Recurrence(*one["recurs"]) for one in checks], [one["loss"] for one in checks])]
        network.load_state_dict(best["weights"])
    skill = marginal - field_losses(network, valid, trim=config.trim)
    _trust(network, skill)
    student = workers.of_first(
        lambda: distill(network, batches, max_steps=4 * steps, seed=seed, progress=progress).cpu()
    )
    network = network.cpu().eval()
    rules = workers.of_first(lambda: label_free_rules(student, coding, table))
    for field, own, gain in zip(network.fields, marginal, skill, strict=True):
        metrics |= {f"skill.{field.name}": float(gain), f"marginal.{field.name}": float(own)}
    metrics = {**metrics, "best_validation_loss": best["loss"], "best_step": float(best["step"])}
    return Pretrained(network, student, rules, config, metrics)


def _trust(network: Expectation, skill: NDArray[np.float64]) -> None:
    """Fields that cannot be predicted on later rows, such as the calendar, would drift: they are not predicted."""
    for field, gain in zip(network.fields, skill, strict=True):
        network.trust[field.target] = float(gain > MIN_SKILL)


def masked_loss(
    network: Expectation,
    batch: CellTensors,
    hidden: Tensor,
    viewed: Tensor,
    *,
    trim: float,
    extra_weight: float = 0.1,
) -> Tensor:
    """Trimmed mean loss of the hidden cells.

    Args:
        network: network that predicts.
        batch: cells as tensors.
        hidden: cells hidden from the network, bool, **shape (n, d)**.
        viewed: the part of them that is also hidden in scoring, bool, **shape (n, d)**. The others have the weight
            ``extra_weight``.
        trim: share of the largest residuals per column that is ignored.
    """
    values, present, codes = batch
    d_num = network.d_num
    mean, spread, logits = (out.float() for out in network.hidden_predicted(batch, hidden))
    weight = torch.where(viewed, 1.0, extra_weight)
    residual = (values.clamp(-20, 20) - mean) * torch.exp(-spread)
    nats = spread + 0.5 * residual * residual
    use = hidden[:, :d_num] & (present * network.readable > 0)
    total = (nats * weight[:, :d_num] * _kept(residual.detach().abs(), use, trim)).sum()
    for j in range(codes.shape[1]):
        nats_j = torch.nn.functional.cross_entropy(
            logits[:, network.code_slice(d_num + j)], codes[:, j], reduction="none"
        )
        use_j = (hidden[:, d_num + j] & (codes[:, j] > 0)).unsqueeze(1)
        keep = _kept(nats_j.detach().unsqueeze(1), use_j, trim)[:, 0]
        total = total + (nats_j * weight[:, d_num + j] * keep).sum()
    return total / len(values)


def field_losses(network: Expectation, cells: Cells, *, trim: float, trusted: bool = True) -> NDArray[np.float64]:
    """Trimmed mean loss of every field over the rows that have it, hidden as in scoring, **shape (n_fields,)**.

    Args:
        network: network that predicts.
        cells: rows to evaluate.
        trim: share of the largest losses that is ignored.
        trusted: False = evaluate the marginal distributions instead of the predictions.
    """
    before = network.trust.clone()
    network.trust.fill_(1.0 if trusted else 0.0)
    network.eval()
    with torch.no_grad():
        found = [
            network.surprises(*as_batch(part, network.readable.device), density=True).cpu().numpy()
            for part in chunks(cells)
        ]
    network.train()
    network.trust.copy_(before)
    losses = np.array([_trimmed_mean(column[np.isfinite(column)], trim) for column in np.concatenate(found).T])
    if not trusted:
        numeric = np.array([field.target < network.d_num for field in network.fields])
        # half the mean square of a constant prediction: use its best constant deviation for a fair comparison
        losses[numeric] = 0.5 + 0.5 * np.log(np.maximum(2 * losses[numeric], 1e-6))
    return losses


def _trimmed_mean(losses: NDArray[np.float32], trim: float) -> float:
    ranked = np.sort(losses.astype(np.float64))
    return float(ranked[: max(1, int(len(ranked) * (1 - trim)))].mean()) if len(ranked) else 0.0


def _kept(size: Tensor, use: Tensor, trim: float) -> Tensor:
    masked = torch.where(use, size, torch.full_like(size, float("nan")))
    limit = torch.nanquantile(masked, 1 - trim, dim=0)
    return use & (size <= torch.nan_to_num(limit, nan=float("inf")))


def _masks(view_masks: Tensor, n: int, extra_mask: float, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Cells to hide in `n` rows, and those of them that scoring hides too, bool, **shape (n, d)**."""
    device, d = view_masks.device, view_masks.shape[1]
    viewed = view_masks[torch.from_numpy(random.integers(0, len(view_masks), n)).to(device)]
    rate = 0.6 * random.random((n, 1)) * (random.random((n, 1)) < extra_mask)
    extra = torch.from_numpy(random.random((n, d)) < rate).to(device)
    return viewed | extra, viewed


def _set_marginal(network: Expectation, coding: CellCoding, table: Table) -> None:
    part = table.take(slice(None, None, max(1, len(table) // 100_000)))
    codes = coding.cells(part).codes
    for j, n in enumerate(network.n_codes):
        counts = np.bincount(codes[:, j], minlength=n).astype(np.float64)
        counts[0] = 0.0
        logits = torch.from_numpy(np.log((counts + 0.5) / (counts.sum() + 0.5 * n)).astype(np.float32))
        network.marginal[network.code_slice(network.d_num + j)] = logits.to(network.marginal.device)


def label_free_rules(network: Expectation, coding: CellCoding, table: Table) -> Rules:
    """Fit the rules that turn a network's surprises into label-free scores."""
    rows = np.arange(len(table))[:: max(1, len(table) // 200_000)]
    evidence, score = label_free(network, coding, table, rows)
    tail = TailCalibration.fit(score)
    return Rules(
        coding, evidence, tail, None, LogitCalibration(1.0, 0.0), 1.0, Budget(rate=0.005), dict(table.category_names)
    )
