"""Cells as tensors, in chunks that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.cells import CHUNK, Cells
from models.net.expectation import Expectation

CellTensors = tuple[Tensor, Tensor, Tensor]  # values, present, codes


def surprises_of(network: Expectation, cells: Cells) -> NDArray[np.float32]:
    """Nats per field, float32, **shape (n, n_fields)**, NaN = missing."""
    with torch.no_grad():
        found = [network.surprises(*as_batch(part, network.readable.device)).cpu().numpy() for part in chunks(cells)]
    return np.concatenate(found) if found else np.zeros((0, len(network.fields)), np.float32)


def as_batch(cells: Cells, device: torch.device | str = "cpu") -> CellTensors:
    """Cells as tensors on a device."""
    values, present, codes = (torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in cells)
    return values, present, codes


def chunks(cells: Cells) -> Iterator[Cells]:
    """Split cells into chunks that fit in memory together with their encoding."""
    for start in range(0, len(cells.values), CHUNK):
        yield cells.take(slice(start, start + CHUNK))
