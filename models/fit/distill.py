"""Distillation: a small network that predicts what the pretrained one predicts, at a fraction of the cost."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.fit.schedule import OnShare, Schedule
from models.net.batches import Batches
from models.net.expectation import CellTensors, Expectation

WIDTH, N_EDGES = 48, 12
STEPS, BATCH, LR = 400, 1024, 5e-3
STEPS_A_VIEW, MOST_VIEWS = 75, 4  # more steps for more fields, as each row of a batch has one view


def distill(
    teacher: Expectation, batches: Batches, *, max_steps: int, seed: int, progress: OnShare | None = None
) -> Expectation:
    """Train a student on unlabelled rows, hidden as in scoring.

    Only fields that the teacher predicts (`Expectation.trust`) are learnt; the others have the same marginal
    distribution in both networks. Rows, steps and initial weights depend only on the seed.

    Args:
        teacher: the pretrained network.
        batches: training rows.
        max_steps: most optimiser steps.
        seed: seed of weights and batches.
        progress: called with the share done and a description.

    Source: knowledge distillation (Hinton et al., 2015) with the divergence of the predicted distributions as loss.
    """
    torch.manual_seed(seed)
    random, device = np.random.default_rng(seed), teacher.readable.device
    student = untrained_student(teacher).to(device)
    targets = [field.target for field in teacher.fields if teacher.trust[field.target] > 0]
    views = teacher.views[teacher.views[:, targets].any(axis=1)]
    if not targets:
        return student.eval()
    teacher.eval()
    masks = torch.tensor(views, device=device)
    outputs = teacher.outputs_of(*targets)
    steps = min(max_steps, STEPS + STEPS_A_VIEW * min(MOST_VIEWS, len(views)))
    schedule = Schedule(steps, 10, LR, warm_up=20)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LR, weight_decay=0.0)
    for step in range(steps):
        schedule.set_rate(optimizer, step)
        batch = batches.take(random.integers(0, len(batches.table), BATCH))
        hidden = masks[torch.from_numpy(random.integers(0, len(views), BATCH)).to(device)]
        loss = _divergence(teacher, student, batch, hidden, targets, outputs)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        if progress and schedule.checks(step + 1):
            progress((step + 1) / steps, f"distillation, step {step + 1} of {steps}")
    return student.eval()


def untrained_student(teacher: Expectation) -> Expectation:
    """A network of the student's size, with the marginal distributions of the teacher."""
    student = Expectation(
        teacher.columns, _fewer_edges(teacher), teacher.n_codes, width=WIDTH, n_layers=1, context=teacher.context
    )
    student.trust.copy_(teacher.trust)
    student.marginal.copy_(teacher.marginal)
    return student


def _divergence(
    teacher: Expectation,
    student: Expectation,
    batch: CellTensors,
    hidden: Tensor,
    targets: list[int],
    outputs: Tensor,
) -> Tensor:
    """Mean divergence of the student's predictions from the teacher's, in nats, over the hidden targets."""
    with torch.no_grad():
        mean, spread, logits = teacher.hidden_predicted(batch, hidden, outputs)
    near, width, guesses = student.hidden_predicted(batch, hidden, outputs)
    numbers = [t for t in targets if t < teacher.d_num]
    use = hidden[:, numbers]
    away = (mean - near)[:, numbers] ** 2 + torch.exp(2 * spread[:, numbers])
    nats = (width - spread)[:, numbers] + 0.5 * away * torch.exp(-2 * width[:, numbers]) - 0.5
    total = (nats * use).sum()
    for t in targets:
        if t >= teacher.d_num:
            at = teacher.code_slice(t)
            wanted, found = (torch.log_softmax(x[:, at], dim=1) for x in (logits, guesses))
            total = total + ((wanted.exp() * (wanted - found)).sum(dim=1) * hidden[:, t]).sum()
    return total / hidden[:, targets].sum().clamp(min=1)


def _fewer_edges(teacher: Expectation) -> NDArray[np.float32]:
    """At most `N_EDGES` of the teacher's edges of each column, with the outermost ones."""
    fewer = []
    for ladder in teacher.edges:
        own = np.unique(ladder)
        kept = own[np.unique(np.linspace(0, len(own) - 1, min(N_EDGES, len(own))).round().astype(int))]
        fewer.append(np.pad(kept, (0, N_EDGES - len(kept)), mode="edge"))
    return np.array(fewer, np.float32).reshape(len(fewer), N_EDGES)
