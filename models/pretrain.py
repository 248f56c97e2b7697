"""Self-supervised training: predict hidden fields from the rest of the event and from what came before."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from models.artifact import read_files, write_files
from models.calibrate import Budget, TailCalibration
from models.cells import CellCoding, Cells
from models.columns import Table, TableError
from models.head import Expectation
from models.rules import Rules
from models.surprise import SurpriseScale

Batch = tuple[Tensor, Tensor, Tensor]  # values, present, codes
Report = Callable[[Mapping[str, float], int], None]
Progress = Callable[[float, str], None]
FILES = ("pretrained.json", "pretrained.safetensors")
CHUNK = 8192
MIN_SKILL = 0.05  # nats a prediction must gain over the field's own distribution on later rows


@dataclass(frozen=True)
class PretrainConfig:
    """How to pretrain; steps are derived: ``min(max_steps, epochs * rows / batch)``, whatever time they take.

    Args:
        width: units of a hidden layer.
        n_layers: hidden layers after the first.
        n_bins: quantile bins of a numeric column.
        epochs: passes over the rows, at most.
        max_steps: optimiser steps, at most.
        min_steps: optimiser steps, at least, for small tables.
        batch: rows a step.
        lr: peak learning rate, cosine to zero.
        trim: share of largest residuals per column and step that is not learned from: robust to frauds.
        extra_mask: share of rows of which other cells are hidden too.
        validation: share of rows, the last in time, for early stopping.
        n_checks: how often to validate, probe and save a checkpoint.
        patience: checks without a better validation before stopping.
    """

    width: int = 192
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
    n_checks: int = 8
    patience: int = 3


@dataclass(frozen=True)
class Pretrained:
    """A pretrained network with all that was fitted beside it; ``rules`` score without labels."""

    expectation: Expectation
    rules: Rules
    config: PretrainConfig
    metrics: Mapping[str, float]

    def score(self, table: Table) -> NDArray[np.float32]:
        """Label-free scores in [0, 1], ranks and no probabilities, **shape (n,)**."""
        nats = surprises_of(self.expectation, self.rules.coding.transform(table.numeric, table.categorical))
        return self.rules.score(np.zeros(len(nats), np.float32), nats)


def pretrain(
    table: Table,
    *,
    config: PretrainConfig,
    seed: int,
    label: NDArray[np.int8] | None = None,
    known: NDArray[np.bool_] | None = None,
    report: Report | None = None,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> Pretrained:
    """Train the expectation network on unlabelled rows.

    Args:
        table: rows in time order; the last share of them validates.
        config: see there.
        seed: of weights, batches and masks.
        label, known: **shape (n,)**, only for the probe that is reported: average precision of a linear
            probe on the encoder's output (trunk and surprises), beside the untrained one's.
        report: called with metrics and the step.
        progress: called with the share done and a word.
        checkpoint: a folder to resume from and to save into; ignored where it holds another run's.

    Raises:
        TableError: too few rows, or no column that may be predicted.

    Source: masked cell modelling (ICLR 2024) with residuals trimmed as in least trimmed squares
    (Rousseeuw, 1984).
    """
    n_valid = max(1, int(len(table) * config.validation))
    n_train = len(table) - n_valid
    if n_train < 2:
        raise TableError(f"pretraining needs at least 3 rows, however: n={len(table)}; take a longer period")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    coding = CellCoding.fit(table.take(slice(0, n_train)), n_bins=config.n_bins)
    network = Expectation(table.columns, coding.edges, coding.n_codes, width=config.width, n_layers=config.n_layers).to(
        device
    )
    if not network.fields:
        raise TableError("pretraining needs a column not made from labels, however: every column is label_fed")
    steps = int(min(config.max_steps, max(config.min_steps, config.epochs * n_train / config.batch)))
    every = max(1, steps // config.n_checks)
    valid_rows = np.arange(n_train, len(table))[:: max(1, n_valid // 20_000)]
    valid = coding.transform(table.numeric[valid_rows], table.categorical[valid_rows])
    _set_marginal(network, coding, table.take(slice(0, n_train)))
    marginal = field_losses(network, valid, trim=config.trim, trusted=False)
    probe = _Probe.of(table, coding, label, known, n_train)
    untrained = probe.score(network) if probe else None

    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=1e-4)
    run = _Checkpoint.of(checkpoint, table, config, seed)
    best, best_loss, best_step, start = _copy(network), float("inf"), 0, 0
    if resumed := run.load() if run else None:
        network.load_state_dict(resumed["network"])
        optimizer.load_state_dict(resumed["optimizer"])
        best, best_loss, best_step, start = (
            resumed["best"],
            resumed["best_loss"],
            resumed["best_step"],
            resumed["step"],
        )
        random.bit_generator.state = resumed["random"]
        torch.set_rng_state(resumed["torch_random"])
    view_masks = torch.tensor(network.views, device=device)
    metrics: dict[str, float] = {}
    began = time.monotonic()
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, 20 * (step + 1) / steps) * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows = random.integers(0, n_train, config.batch)
        batch = as_batch(coding.transform(table.numeric[rows], table.categorical[rows]), device)
        hidden, viewed = _masks(view_masks, config, random, device)
        loss = masked_loss(network, batch, hidden, viewed, trim=config.trim)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        done = step + 1
        if done % every == 0 or done == steps:
            by_field = field_losses(network, valid, trim=config.trim)
            # what a field's own distribution says better will not be predicted, so it must not stop the training
            found = float(np.minimum(by_field, marginal).sum())
            metrics = {
                "train_loss": float(loss.detach()),
                "validation_loss": found,
                "seconds": time.monotonic() - began,
            }
            if probe and untrained is not None:
                metrics |= {"probe_ap": probe.score(network), "probe_ap_untrained": untrained}
            if report:
                report(metrics, done)
            if progress:
                progress(done / steps, f"pretrain: step {done} of {steps}, validation loss {found:.4f}")
            if found < best_loss:
                best, best_loss, best_step = _copy(network), found, done
            if run:
                run.save(
                    {
                        "network": network.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "best": best,
                        "best_loss": best_loss,
                        "best_step": best_step,
                        "step": done,
                        "random": random.bit_generator.state,
                        "torch_random": torch.get_rng_state(),
                    }
                )
            if done - best_step >= config.patience * every:
                break
    network.load_state_dict(best)
    skill = marginal - field_losses(network, valid, trim=config.trim)
    for field, gain in zip(network.fields, skill, strict=True):
        # a field that later rows do not let us predict (the calendar, say) would drift instead of surprise
        network.trust[field.target] = float(gain > MIN_SKILL)
    network = network.cpu().eval()
    rules = _label_free(network, coding, table)
    metrics |= {f"skill.{field.name}": float(gain) for field, gain in zip(network.fields, skill, strict=True)}
    metrics = {**metrics, "best_validation_loss": best_loss, "best_step": float(best_step)}
    return Pretrained(network, rules, config, metrics)


def masked_loss(
    network: Expectation,
    batch: Batch,
    hidden: Tensor,
    viewed: Tensor,
    *,
    trim: float,
    extra_weight: float = 0.1,
) -> Tensor:
    """Trimmed mean loss of the hidden cells.

    Args:
        network: predicts.
        batch: cells as tensors.
        hidden: bool, **shape (n, d)**, what the network may not see.
        viewed: bool, **shape (n, d)**, the part of it that scoring hides too; the rest weighs
            ``extra_weight``.
        trim: share of the largest residuals per column that is left out.
    """
    values, present, codes = batch
    d_num = network.d_num
    shown_codes = torch.where(hidden[:, d_num:], torch.zeros_like(codes), codes)
    mean, spread, logits = network(values, present * ~hidden[:, :d_num], shown_codes)
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
    """Trimmed mean loss of every field over the rows that have it, hidden as at scoring, **shape (n_fields,)**.

    Args:
        network: predicts.
        cells: rows to judge on.
        trim: share of the largest losses that is left out.
        trusted: False = judge the fields' own distributions instead of the predictions.
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
        # half the mean square of a constant prediction: give it the best constant deviation, else it loses by that
        losses[numeric] = 0.5 + 0.5 * np.log(np.maximum(2 * losses[numeric], 1e-6))
    return losses


def _trimmed_mean(losses: NDArray[np.float32], trim: float) -> float:
    ranked = np.sort(losses.astype(np.float64))
    return float(ranked[: max(1, int(len(ranked) * (1 - trim)))].mean()) if len(ranked) else 0.0


def surprises_of(network: Expectation, cells: Cells) -> NDArray[np.float32]:
    """Nats per field, float32, **shape (n, n_fields)**, NaN = missing."""
    with torch.no_grad():
        found = [network.surprises(*as_batch(part, network.readable.device)).cpu().numpy() for part in chunks(cells)]
    return np.concatenate(found) if found else np.zeros((0, len(network.fields)), np.float32)


def as_batch(cells: Cells, device: torch.device | str = "cpu") -> Batch:
    """Cells as tensors on a device."""
    values, present, codes = (torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in cells)
    return values, present, codes


def chunks(cells: Cells) -> Iterator[Cells]:
    """Cells in pieces that fit in memory beside their encoding."""
    for start in range(0, len(cells.values), CHUNK):
        yield cells.take(slice(start, start + CHUNK))


def _kept(size: Tensor, use: Tensor, trim: float) -> Tensor:
    masked = torch.where(use, size, torch.full_like(size, float("nan")))
    limit = torch.nanquantile(masked, 1 - trim, dim=0)
    return use & (size <= torch.nan_to_num(limit, nan=float("inf")))


def _masks(
    view_masks: Tensor, config: PretrainConfig, random: np.random.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    n, d = config.batch, view_masks.shape[1]
    viewed = view_masks[torch.from_numpy(random.integers(0, len(view_masks), n)).to(device)]
    rate = 0.6 * random.random((n, 1)) * (random.random((n, 1)) < config.extra_mask)
    extra = torch.from_numpy(random.random((n, d)) < rate).to(device)
    return viewed | extra, viewed


def _set_marginal(network: Expectation, coding: CellCoding, table: Table) -> None:
    part = table.take(slice(None, None, max(1, len(table) // 100_000)))
    codes = coding.transform(part.numeric, part.categorical).codes
    for j, n in enumerate(network.n_codes):
        counts = np.bincount(codes[:, j], minlength=n).astype(np.float64)
        counts[0] = 0.0
        logits = torch.from_numpy(np.log((counts + 0.5) / (counts.sum() + 0.5 * n)).astype(np.float32))
        network.marginal[network.code_slice(network.d_num + j)] = logits.to(network.marginal.device)


def _label_free(network: Expectation, coding: CellCoding, table: Table) -> Rules:
    rows = np.arange(len(table))[:: max(1, len(table) // 200_000)]
    nats = surprises_of(network, coding.transform(table.numeric[rows], table.categorical[rows])).astype(np.float64)
    surprise = SurpriseScale.fit(nats)
    tail = TailCalibration.fit(surprise.combine(nats))
    return Rules(coding, surprise, tail, None, 1.0, Budget(rate=0.005), dict(table.category_names))


def _copy(network: Expectation) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


@dataclass(frozen=True)
class _Probe:
    """A linear probe on trunk and surprises, fitted on known rows and judged on the last of them."""

    cells: Cells
    fraud: NDArray[np.bool_]
    n_fit: int

    @classmethod
    def of(
        cls,
        table: Table,
        coding: CellCoding,
        label: NDArray[np.int8] | None,
        known: NDArray[np.bool_] | None,
        n_train: int,
        *,
        max_rows: int = 12_000,
    ) -> _Probe | None:
        if label is None or known is None:
            return None
        ours = np.flatnonzero(known)
        frauds, others = ours[label[ours] == 1], ours[label[ours] != 1]
        if len(frauds) < 4 or len(others) < 4:
            return None
        frauds = frauds[:: max(1, len(frauds) // 1500)]
        others = others[:: max(1, len(others) // max_rows)]
        rows = np.sort(np.concatenate([frauds, others]))
        fraud = label[rows] == 1
        n_fit = int(np.searchsorted(np.cumsum(fraud), 0.6 * fraud.sum()))
        cells = coding.transform(table.numeric[rows], table.categorical[rows])
        return cls(cells, fraud, n_fit)

    def score(self, network: Expectation) -> float:
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import average_precision_score
        from sklearn.preprocessing import StandardScaler

        network.eval()
        encoder = network.encoder
        hidden: list[NDArray[np.float32]] = []
        with torch.no_grad():
            for part in chunks(self.cells):
                values, present, codes = as_batch(part, network.readable.device)
                joint = encoder.first(encoder.pieces(values), present * network.readable, codes)
                nats = network.surprises(values, present, codes)
                hidden.append(torch.cat([encoder.trunk(joint), torch.log1p(nats.nan_to_num(0.0))], dim=1).cpu().numpy())
        network.train()
        x = StandardScaler().fit_transform(np.concatenate(hidden))
        if self.fraud[: self.n_fit].all() or not self.fraud[: self.n_fit].any():
            return 0.0
        probe = LogisticRegression(C=0.01, max_iter=200).fit(x[: self.n_fit], self.fraud[: self.n_fit])
        return float(average_precision_score(self.fraud[self.n_fit :], probe.decision_function(x[self.n_fit :])))


@dataclass(frozen=True)
class _Checkpoint:
    """Where a run was; named by what it was made from, so another run's is never taken."""

    path: Path

    @classmethod
    def of(cls, folder: Path | None, table: Table, config: PretrainConfig, seed: int) -> _Checkpoint | None:
        if folder is None:
            return None
        mark = hashlib.sha256(repr((table.columns, len(table), config, seed)).encode())
        mark.update(np.ascontiguousarray(table.time_ms).tobytes())
        mark.update(np.ascontiguousarray(table.numeric[:: max(1, len(table) // 1000)]).tobytes())
        return cls(folder / f"pretrain-{mark.hexdigest()[:16]}.checkpoint")

    def load(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        loaded: dict[str, Any] = torch.load(self.path, weights_only=True)  # tensors and plain values only, never code
        return loaded

    def save(self, state: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".unfinished")
        torch.save(state, unfinished)
        os.replace(unfinished, self.path)


def save_pretrained(pretrained: Pretrained, folder: Path, *, lineage: Mapping[str, str] | None = None) -> str:
    """Write a pretrained network as safetensors and JSON under a manifest, no pickle; returns the manifest's sha256."""
    tensors = {f"expectation.{k}": v.contiguous() for k, v in pretrained.expectation.state_dict().items()}
    tensors |= {f"rules.{k}": torch.from_numpy(v) for k, v in pretrained.rules.arrays().items()}
    about = {
        "config": asdict(pretrained.config),
        "rules": pretrained.rules.config(),
        "metrics": dict(pretrained.metrics),
    }
    contents = {
        "pretrained.json": json.dumps(about, indent=1, sort_keys=True).encode(),
        "pretrained.safetensors": save(tensors),
    }
    return write_files(folder, contents, lineage=lineage or {})


def load_pretrained(folder: Path, *, expect: str | None = None) -> Pretrained:
    """The inverse of `save_pretrained`.

    Raises:
        ArtifactError: a file is missing or changed, or the digest is not the one expected.
    """
    _, contents = read_files(folder, FILES, expect=expect)
    about = json.loads(contents["pretrained.json"])
    tensors = load(contents["pretrained.safetensors"])
    arrays = {k.removeprefix("rules."): v.numpy() for k, v in tensors.items() if k.startswith("rules.")}
    rules, config = Rules.of_parts(about["rules"], arrays), PretrainConfig(**about["config"])
    network = Expectation(
        rules.columns, rules.coding.edges, rules.coding.n_codes, width=config.width, n_layers=config.n_layers
    )
    network.load_state_dict(
        {k.removeprefix("expectation."): v for k, v in tensors.items() if k.startswith("expectation.")}
    )
    return Pretrained(network.eval(), rules, config, about["metrics"])
