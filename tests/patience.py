"""Waiting for what must come about. No verdict by the clock: only a wait in which nothing moves any more fails."""

import os
import time
from collections.abc import Callable

HANG_S = float(os.environ.get("HANG_S", "300"))  # without any movement


def wait_until(
    holds: Callable[[], bool], *, seen: Callable[[], object] = lambda: None, alive: Callable[[], bool] = lambda: True
) -> None:
    """Return once `holds`.

    Args:
        seen: how far things are; each change of it starts the patience anew, and a failure names it.
        alive: whether what is waited for can still come about; once it cannot, the wait fails at once.
    """
    moved, before = time.monotonic(), seen()
    while not holds():
        assert alive() or holds(), f"it ended before it came about: {seen()}"
        now = seen()
        if now != before:
            moved, before = time.monotonic(), now
        assert time.monotonic() - moved < HANG_S, f"nothing moved for {HANG_S:g} s: {now}"
        time.sleep(0.02)
