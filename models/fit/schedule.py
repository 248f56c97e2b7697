"""Training schedule: learning rate and checks depend on the number of steps, not on time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch.optim import Optimizer

OnMetrics = Callable[[Mapping[str, float], int], None]
OnShare = Callable[[float, str], None]


@dataclass(frozen=True)
class Schedule:
    """A linear warm-up, then cosine decay to zero, with checks at equal intervals.

    Args:
        steps: number of optimiser steps.
        n_checks: number of checks; the last step is always checked.
        lr: peak learning rate.
        warm_up: inverse of the share of steps used for the warm-up.

    >>> schedule = Schedule(steps=10, n_checks=2, lr=1.0, warm_up=10)
    >>> [step for step in range(1, 11) if schedule.checks(step)]
    [5, 10]
    """

    steps: int
    n_checks: int
    lr: float
    warm_up: int

    @property
    def every(self) -> int:
        """Steps between two checks."""
        return max(1, -(-self.steps // self.n_checks))

    def checks(self, done: int) -> bool:
        """Whether to check after this step."""
        return done % self.every == 0 or done == self.steps

    def set_rate(self, optimizer: Optimizer, step: int) -> None:
        """Set the learning rate of a step, counted from 0."""
        warm, decay = min(1.0, self.warm_up * (step + 1) / self.steps), 1 + math.cos(math.pi * step / self.steps)
        for group in optimizer.param_groups:
            group["lr"] = self.lr * warm * 0.5 * decay
