"""Fine-tuning: a calibrated model with a threshold. Without labels, its score is the calibrated surprise."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from models.cells import Cells
from models.fit.checkpoint import weights_of
from models.fit.pretrain import Pretrained
from models.fit.schedule import OnMetrics, OnShare, Schedule
from models.fit.split import last_share
from models.net.batches import as_batch, chunks, surprises_of
from models.net.encoder import Encoder
from models.net.expectation import Expectation
from models.net.risk import ScoringNetwork, beside, risk_network
from models.score.budget import Budget, threshold_for
from models.score.calibrate import LogitCalibration
from models.score.rules import Rules
from models.table import Table, TableError


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of fine-tuning. The steps per network are ``epochs * positives * (negatives + 1) / batch``.

    Args:
        budget: alert budget, converted to a threshold on the validation period.
        n_networks: number of risk networks, whose logits are averaged.
        epochs: maximum passes over the positives.
        min_steps, max_steps: limits of the optimiser steps per network.
        batch: rows per step.
        negatives: normal rows drawn per fraud, in training only. The calibration corrects for the changed prior.
        lr: peak learning rate, with cosine decay to zero.
        weight_decay: weight decay of AdamW.
        dropout: share of hidden units dropped.
        cell_dropout: share of rows with some hidden cells, for robustness to missing columns.
        validation: share of the known rows, the last in time, for early stopping, calibration and threshold.
        min_frauds: minimum number of frauds in training; a third of it in validation. With fewer frauds, the score
            is label-free.
        n_checks: number of validations per network.
    """

    budget: Budget = field(default_factory=lambda: Budget(rate=0.005))
    n_networks: int = 2
    epochs: float = 10.0
    min_steps: int = 400
    max_steps: int = 3000
    batch: int = 1024
    negatives: int = 60
    lr: float = 2e-3
    weight_decay: float = 1e-2
    dropout: float = 0.2
    cell_dropout: float = 0.1
    validation: float = 0.1
    min_frauds: int = 9
    n_checks: int = 6


@dataclass(frozen=True)
class TrainedModel:
    """A scoring network with its rules. ``metrics`` are those of the validation period.

    >>> TrainedModel.score.__doc__.split(",")[0]
    'Scores in [0'
    """

    network: ScoringNetwork
    rules: Rules
    metrics: Mapping[str, float]

    def score(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> NDArray[np.float32]:
        """Scores in [0, 1], high = anomalous, **shape (n,)**, computed by torch. `artifact.load` uses ONNX instead."""
        logit, nats = self.outputs(self.rules.coding.transform(numeric, categorical))
        return self.rules.score(logit, nats, numeric)

    def outputs(self, cells: Cells) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits (n,) and surprises (n, n_fields) of the network."""
        logits, nats = [np.zeros(0, np.float32)], [np.zeros((0, len(self.rules.fields)), np.float32)]
        dtype = self.network.expectation.readable.dtype
        with torch.no_grad():
            for part in chunks(cells):
                values, present, codes = as_batch(part)
                logit, surprise = self.network(values.to(dtype), present.to(dtype), codes)
                logits.append(logit.numpy())
                nats.append(surprise.numpy())
        return np.concatenate(logits), np.concatenate(nats)


def finetune(
    pretrained: Pretrained,
    table: Table,
    *,
    label: NDArray[np.int8],
    known: NDArray[np.bool_],
    config: FinetuneConfig,
    seed: int,
    report: OnMetrics | None = None,
    progress: OnShare | None = None,
) -> TrainedModel:
    """Train the risk networks on known labels, calibrate, and turn the budget into a threshold.

    Args:
        pretrained: pretrained network with the same columns as the table.
        table: rows in time order. If labels are known, rows after the last known one are not used.
        label: 1 = fraud, int8, **shape (n,)**; read only where ``known`` is true.
        known: which labels have matured, **shape (n,)**. If none has, the model is label-free.
        config: settings.
        seed: seed of weights and batches.
        report: called with metrics and the step.
        progress: called with the share done and a description.

    Raises:
        TableError: the columns or the shapes differ.
    """
    table.require(pretrained.rules.columns)
    if label.shape != (len(table),) or known.shape != (len(table),):
        raise TableError(f"label and known have shapes {label.shape} and {known.shape}; both must be ({len(table)},)")
    train, valid = last_share(np.flatnonzero(known), config.validation)
    n_frauds, n_valid_frauds = int((label[train] == 1).sum()), int((label[valid] == 1).sum())
    enough = n_frauds >= config.min_frauds and 3 * n_valid_frauds >= config.min_frauds and n_frauds < len(train)
    rules = replace(pretrained.rules, category_names=dict(table.category_names), budget=config.budget)
    if not enough:
        return _day_zero(pretrained, rules, table, label, known, valid, {"frauds": float(n_frauds + n_valid_frauds)})

    expectation, coding = pretrained.expectation, rules.coding
    frauds, others = train[label[train] == 1], train[label[train] != 1]
    random = np.random.default_rng(seed)
    if len(others) > 40 * config.negatives * len(frauds):
        others = np.sort(random.choice(others, 40 * config.negatives * len(frauds), replace=False))
    pool = np.concatenate([frauds, others])
    cells = coding.cells(table, pool)
    nats = surprises_of(expectation, cells)
    valid_cells = coding.cells(table, valid)
    valid_nats = surprises_of(expectation, valid_cells)
    valid_fraud = label[valid] == 1

    risks: list[Encoder] = []
    steps = int(
        np.clip(
            config.epochs * len(frauds) * (config.negatives + 1) / config.batch,
            config.min_steps,
            config.max_steps,
        )
    )
    schedule = Schedule(steps, config.n_checks, config.lr, warm_up=10)
    n_fraud_rows = max(config.batch // (config.negatives + 1), min(len(frauds), config.batch // 16))
    began = time.monotonic()
    for k in range(config.n_networks):
        torch.manual_seed(seed * 1000 + k)
        random = np.random.default_rng((seed, k))
        risk = risk_network(expectation, nats, dropout=config.dropout)
        optimizer = torch.optim.AdamW(risk.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        best, best_ap = weights_of(risk), -1.0
        for step in range(steps):
            schedule.set_rate(optimizer, step)
            drawn = np.concatenate(
                [
                    random.integers(0, len(frauds), n_fraud_rows),
                    len(frauds) + random.integers(0, len(others), config.batch - n_fraud_rows),
                ]
            )
            values, present, codes = as_batch(cells.take(drawn))
            values, present = beside(expectation, values, present, codes, torch.from_numpy(nats[drawn]))
            hide = random.random((config.batch, 1)) < config.cell_dropout
            present = present * torch.from_numpy(random.random(present.shape) >= 0.3 * hide).float()
            logit = risk(values, present, codes)[:, 0]
            target = torch.zeros(config.batch)
            target[:n_fraud_rows] = 1.0
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, target)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done = step + 1
            if schedule.checks(done):
                ap = float(average_precision_score(valid_fraud, _logits(expectation, [risk], valid_cells, valid_nats)))
                if ap > best_ap:
                    best, best_ap = weights_of(risk), ap
                if report:
                    found = {
                        "train_loss": float(loss.detach()),
                        "validation_ap": ap,
                        "seconds": time.monotonic() - began,
                    }
                    report(found, k * steps + done)
                if progress:
                    share = (k * steps + done) / (config.n_networks * steps)
                    progress(share, f"network {k + 1} of {config.n_networks}, validation AP {ap:.4f}")
        risk.load_state_dict(best)
        risks.append(risk.eval())

    logit = _logits(expectation, risks, valid_cells, valid_nats)
    day_zero = rules.score(logit, valid_nats)
    metrics = {
        "frauds": float(n_frauds + n_valid_frauds),
        "validation_ap": float(average_precision_score(valid_fraud, logit)),
        "validation_ap_label_free": float(average_precision_score(valid_fraud, day_zero)),
    }
    if metrics["validation_ap"] < metrics["validation_ap_label_free"]:
        return _day_zero(pretrained, rules, table, label, known, valid, metrics)
    rules = replace(rules, logit=LogitCalibration.fit(logit.astype(np.float64), label[valid]))
    scores = rules.score(logit, valid_nats)
    threshold = threshold_for(config.budget, scores, table.time_ms[valid], label[valid], np.ones(len(valid), bool))
    alerts = scores > threshold
    metrics |= {
        "validation_alert_rate": float(alerts.mean()),
        "validation_recall_at_budget": float(valid_fraud[alerts].sum() / valid_fraud.sum()),
        "validation_precision_at_budget": float(valid_fraud[alerts].mean()) if alerts.any() else 0.0,
        "has_head": 1.0,
    }
    return TrainedModel(ScoringNetwork(expectation, risks).eval(), replace(rules, threshold=threshold), metrics)


def _day_zero(
    pretrained: Pretrained,
    rules: Rules,
    table: Table,
    label: NDArray[np.int8],
    known: NDArray[np.bool_],
    valid: NDArray[np.int64],
    metrics: Mapping[str, float],
) -> TrainedModel:
    """The label-free model. Its threshold is computed on the validation rows, or on the last tenth of all rows."""
    rows = valid if len(valid) >= 1000 else last_share(np.arange(len(table)), 0.1, at_least=1).valid
    model = TrainedModel(ScoringNetwork(pretrained.expectation, []).eval(), rules, {})
    scores = rules.score(*model.outputs(rules.coding.cells(table, rows)))
    threshold = threshold_for(rules.budget, scores, table.time_ms[rows], label[rows], known[rows])
    found = {**metrics, "validation_alert_rate": float((scores > threshold).mean()), "has_head": 0.0}
    return replace(model, rules=replace(rules, threshold=threshold), metrics=found)


def _logits(
    expectation: Expectation, risks: list[Encoder], cells: Cells, nats: NDArray[np.float32]
) -> NDArray[np.float32]:
    found, start = [], 0
    for risk in risks:
        risk.eval()
    with torch.no_grad():
        for part in chunks(cells):
            n = len(part.values)
            values, present, codes = as_batch(part)
            inputs = beside(expectation, values, present, codes, torch.from_numpy(nats[start : start + n]))
            found.append(torch.stack([risk(*inputs, codes)[:, 0] for risk in risks]).mean(dim=0).numpy())
            start += n
    for risk in risks:
        risk.train()
    return np.concatenate(found)
