"""Cells as tensors, in chunks that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from models.cells import CHUNK, CellCoding, Cells
from models.net.expectation import CellTensors, Expectation
from models.table import Table

RESIDENT_BYTES = 2**30  # larger tables are read a batch at a time


class Batches:
    """Rows of a table as tensors on a device: all of them in its memory, or read for each batch if they are too many.

    Args:
        coding: converts rows to cells.
        table: the rows.
        device: where the tensors are.
    """

    def __init__(self, coding: CellCoding, table: Table, device: torch.device) -> None:
        self.coding, self.table, self.device = coding, table, device
        fits = len(table) * 8 * len(table.columns) <= RESIDENT_BYTES
        self.resident = as_batch(coding.cells(table), device) if fits else None

    def take(self, rows: NDArray[np.int64]) -> CellTensors:
        """Some rows, in this order."""
        if self.resident is None:
            return as_batch(self.coding.cells(self.table, rows), self.device)
        at = torch.from_numpy(rows).to(self.device)
        values, present, codes = (part[at] for part in self.resident)
        return values, present, codes


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
