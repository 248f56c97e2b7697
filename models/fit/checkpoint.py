"""Checkpoints, from which an interrupted training run resumes."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.fit import workers
from models.table import Table


def weights_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a network's weights and buffers."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


@dataclass(frozen=True)
class Checkpoint:
    """The saved state of a run. Its key identifies the inputs, so a checkpoint of another run is not used."""

    path: Path

    @classmethod
    def of(cls, folder: Path | None, table: Table, config: object, seed: int) -> Checkpoint | None:
        if folder is None:
            return None
        mark = hashlib.sha256(repr((table.columns, len(table), config, seed, workers.count())).encode())
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
