"""Fault injection for tests: scorer and ingest call `fault(point)` at critical points, where a test can kill them."""

import os
import signal
from collections.abc import Callable

POINTS = (
    "between_claims",
    "after_poll",
    "mid_fold",
    "before_flush",
    "after_flush",
    "before_outbox_drop",
    "after_outbox_drop",
    "mid_snapshot",
    "mid_restore",
    "between_lake_and_kafka",
)
Fault = Callable[[str], None]


def no_fault(point: str) -> None:
    """The fault used in production: does nothing."""


def kill_at(spec: str) -> Fault:
    """A fault that sends SIGKILL to this process when a point is passed for the nth time, e.g. "after_flush:3".

    Raises:
        ValueError: the point is not one of `POINTS`.
    """
    point, _, count = spec.partition(":")
    if point not in POINTS:
        raise ValueError(f"the fault point is {point!r}; it must be one of {', '.join(POINTS)}")
    left = [int(count or 1)]

    def fault(passed: str) -> None:
        if passed == point:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return fault
