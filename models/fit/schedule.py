"""How a training proceeds: its learning rate and its checks go by the number of steps, never by time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch.optim import Optimizer

OnMetrics = Callable[[Mapping[str, float], int], None]
OnShare = Callable[[float, str], None]


@dataclass(frozen=True)
class Schedule:
    """So many steps: a linear warm-up, then a cosine to zero, and a check every so often.

    Args:
        steps: of the optimiser.
        n_checks: how often to check, beside the last step.
        lr: peak learning rate.
        warm_up: the inverse of the share of steps that warm up.

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
        return max(1, self.steps // self.n_checks)

    def checks(self, done: int) -> bool:
        """Whether to check after so many steps."""
        return done % self.every == 0 or done == self.steps

    def set_rate(self, optimizer: Optimizer, step: int) -> None:
        """Set the learning rate of a step, counted from 0."""
        warm, decay = min(1.0, self.warm_up * (step + 1) / self.steps), 1 + math.cos(math.pi * step / self.steps)
        for group in optimizer.param_groups:
            group["lr"] = self.lr * warm * 0.5 * decay
