"""Heads for few labels on the piecewise-linear encoding: a linear layer beside a prior, and a pair network."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn

from models.cells import CHUNK, CellCoding, Cells
from models.net.encoder import Encoder
from models.table import TableError

MAX_BACKGROUND = 30_000
STRENGTH, STRENGTH_POWER = 20.0, 0.5  # total weight of the rows: 20 * sqrt(frauds)
PAIR_TARGETS = (8.0, 4.0, 0.0)  # two frauds, a fraud and another row, two other rows


def linear_head(
    coding: CellCoding,
    cells: Cells,
    fraud: NDArray[np.bool_],
    prior: NDArray[np.floating],
    *,
    known: NDArray[np.bool_] | None = None,
    seed: int = 0,
) -> Encoder:
    """Logistic regression whose logit is the prior plus a linear layer. The classes have equal weight.

    Their total weight, against a penalty of half the squared weights, grows with the number of frauds, so that few
    frauds hardly move the prior.

    Args:
        coding: the coding of the cells.
        cells: training rows.
        fraud: known frauds, at least one, **shape (n,)**. The other rows are background.
        prior: logits without labels, **shape (n,)**. They are not part of the result: add them to its output.
        known: background rows known to be legitimate, **shape (n,)**. Any other one may be a fraud: it is weighted by
            one minus the probability that a first fit gives it. None: no background row is known.
        seed: seed of the choice of `MAX_BACKGROUND` background rows.

    Returns:
        An `Encoder` with one output, whose trunk adds nothing.

    Raises:
        TableError: there is no fraud, or no other row.

    >>> from models.table import Column, Table
    >>> x = np.random.default_rng(0).normal(size=(400, 2))
    >>> table = Table((Column("a", "numeric"), Column("b", "numeric")), x, np.zeros((400, 0), np.uint64),
    ...     np.arange(400), {})
    >>> coding = CellCoding.fit(table)
    >>> head = linear_head(coding, coding.cells(table), x[:, 0] > 1.5, np.zeros(400))
    >>> logit = head_logits(head, coding.cells(table))
    >>> bool(logit[x[:, 0] > 1.5].mean() > 1 + logit[x[:, 0] < 1.5].mean())
    True

    Source: logistic regression with an offset; the encoding is that of arXiv 2203.05556.
    """
    rows = _training_rows(fraud, seed)
    target, offset = fraud[rows], prior[rows].astype(np.float64)
    strength = STRENGTH * float(target.sum()) ** STRENGTH_POWER
    certain = target if known is None else target | known[rows]
    inputs, used = _used_inputs(coding, cells.take(rows))
    weight = np.ones(len(rows))
    found = _logistic(inputs, target, offset, weight, strength)
    if not certain.all():
        logit = inputs @ found[:-1].astype(np.float32) + found[-1] + offset
        weight = np.where(certain, 1.0, 1 / (1 + np.exp(np.clip(logit, -30, 30))))
        found = _logistic(inputs, target, offset, weight, strength)
    head = Encoder(coding.edges, coding.n_codes, width=1, n_layers=0, d_out=1)
    _set_column(head, coding, found[:-1], used, 1)
    with torch.no_grad():
        head.bias[1] = float(found[-1])
    return head.eval()


def pair_head(
    coding: CellCoding,
    cells: Cells,
    fraud: NDArray[np.bool_],
    *,
    width: int = 20,
    steps: int = 1000,
    batch: int = 512,
    lr: float = 1e-3,
    weight_decay: float = 1e-2,
    seed: int = 0,
) -> Encoder:
    """A small network trained on pairs of rows, for as few as one fraud.

    It predicts 8 for two frauds, 4 for a fraud and another row, 0 for two other rows, with the absolute error, so
    that single frauds among the other rows hardly count. The prediction is linear in the hidden units of both rows,
    so its mean over all partners is a function of one row, up to a constant.

    Args:
        coding: the coding of the cells.
        cells: training rows.
        fraud: known frauds, at least one, **shape (n,)**. The other rows are background.
        width: hidden units.
        steps, batch, lr, weight_decay: of RMSprop.
        seed: seed of weights and pairs.

    Raises:
        TableError: there is no fraud, or no other row.

    Source: PReNet (arXiv 1910.13601). NOTE[DIFF]: on the piecewise-linear encoding, with a decaying rate.
    """
    rows = _training_rows(fraud, seed)
    array, used = _used_inputs(coding, cells.take(rows))
    inputs = torch.from_numpy(array)
    frauds, others = inputs[torch.from_numpy(fraud[rows])], inputs[torch.from_numpy(~fraud[rows])]
    random, quarter = np.random.default_rng(seed), batch // 4
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hidden, relation = nn.Linear(inputs.shape[1], width), nn.Linear(2 * width, 1)
    parameters = [*hidden.parameters(), *relation.parameters()]
    optimizer = torch.optim.RMSprop(parameters, lr=lr, weight_decay=weight_decay)
    counts = torch.tensor([quarter, quarter, 2 * quarter])
    target = torch.tensor(PAIR_TARGETS).repeat_interleave(counts)

    def drawn(pool: Tensor, n: int) -> Tensor:
        return pool[torch.from_numpy(random.integers(0, len(pool), n))]

    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        first = torch.cat([drawn(frauds, 2 * quarter), drawn(others, 2 * quarter)])
        second = torch.cat([drawn(frauds, quarter), drawn(others, 3 * quarter)])
        both = torch.cat([torch.relu(hidden(first)), torch.relu(hidden(second))], dim=1)
        loss = (relation(both)[:, 0] - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    head = Encoder(coding.edges, coding.n_codes, width=width, n_layers=0, d_out=1)
    weight, bias = (part.detach().numpy() for part in hidden.parameters())
    for unit in range(width):
        _set_column(head, coding, weight[unit], used, unit)
    with torch.no_grad():
        head.bias[:width] = torch.from_numpy(bias)
        head.out.weight[0] = (relation.weight[0, :width] + relation.weight[0, width:]) / 2
    return head.eval()


def head_logits(head: Encoder, cells: Cells) -> NDArray[np.float64]:
    """Outputs of a head, **shape (n,)**."""
    found = [np.zeros(0)]
    with torch.no_grad():
        for start in range(0, len(cells.values), CHUNK):
            values, present, codes = (torch.from_numpy(array) for array in cells.take(slice(start, start + CHUNK)))
            logits = head(values.to(head.bias.dtype), present.to(head.bias.dtype), codes)
            found.append(logits[:, 0].double().numpy())
    return np.concatenate(found)


def _training_rows(fraud: NDArray[np.bool_], seed: int) -> NDArray[np.int64]:
    """All frauds and at most `MAX_BACKGROUND` other rows, ascending."""
    frauds, others = np.flatnonzero(fraud), np.flatnonzero(~fraud)
    if not len(frauds) or not len(others):
        raise TableError(
            f"{len(frauds)} rows are known frauds and {len(others)} are not; a head needs at least one of each. "
            "Use the label-free score"
        )
    return np.sort(np.concatenate([frauds, np.random.default_rng(seed).permutation(others)[:MAX_BACKGROUND]]))


def _inputs(coding: CellCoding, cells: Cells) -> NDArray[np.float32]:
    """Pieces, missing flags and one-hot codes in the order of an `Encoder`'s weights, **shape (n, n_inputs)**."""
    left, right = coding.edges[:, :-1], coding.edges[:, 1:]
    slope = np.divide(1.0, right - left, out=np.zeros_like(left), where=right > left)
    pieces = np.clip((cells.values[..., None] - left) * slope, 0, 1) * cells.present[..., None]
    codes = [np.eye(n, dtype=np.float32)[column] for n, column in zip(coding.n_codes, cells.codes.T, strict=True)]
    return np.concatenate([pieces.reshape(len(pieces), -1), 1 - cells.present, *codes], axis=1, dtype=np.float32)


def _used_inputs(coding: CellCoding, cells: Cells) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Inputs that are not 0 in all rows, and which they are: binary columns have only one piece."""
    inputs = _inputs(coding, cells)
    used = np.asarray(inputs.any(axis=0), np.bool_)
    return np.ascontiguousarray(inputs[:, used]), used


def _set_column(
    head: Encoder, coding: CellCoding, weight: NDArray[np.floating], used: NDArray[np.bool_], column: int
) -> None:
    """Set one column of the joint layer, a hidden unit or the skip, to the weights of the used inputs and 0."""
    whole = np.zeros(len(used), np.float32)
    whole[used] = weight
    parts = torch.from_numpy(whole).split([head.pieces_weight.shape[0], coding.d_num, *coding.n_codes])
    with torch.no_grad():
        for target, part in zip((head.pieces_weight, head.missing_weight, *head.code_weights), parts, strict=True):
            target[:, column] = part


def _logistic(
    inputs: NDArray[np.float32],
    target: NDArray[np.bool_],
    offset: NDArray[np.float64],
    weight: NDArray[np.float64],
    strength: float,
) -> NDArray[np.float64]:
    """Weights and, last, the bias, **shape (n_inputs + 1,)**."""
    each = np.where(target, weight / weight[target].sum(), weight / weight[~target].sum()) * strength / 2
    sign = np.where(target, 1.0, -1.0)

    def loss(at: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margin = sign * (inputs @ at[:-1].astype(np.float32) + at[-1] + offset)
        slope = -sign * each / (1 + np.exp(np.clip(margin, -60, 60)))
        gradient = np.append(inputs.T @ slope.astype(np.float32) + at[:-1], slope.sum())
        return float((each * np.logaddexp(0, -margin)).sum() + 0.5 * (at[:-1] ** 2).sum()), gradient

    start = np.zeros(inputs.shape[1] + 1)
    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x)
