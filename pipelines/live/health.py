"""Health checks: a scorer that makes no progress reports it, then ends."""

import logging
import threading
import time
from collections.abc import Hashable, Mapping
from typing import NamedTuple

from pipelines.contracts.messages import rfc3339
from pipelines.errors import BrokerError

MAX_STEP_S = 1.0


class Busy(NamedTuple):
    """A component with work to do: `moved` changes whenever it makes progress, `why` names the possible obstacle.

    If the cause may be outside of the scorer, `is_fatal` is False: health turns red, but the scorer continues.
    """

    moved: Hashable
    why: str
    is_fatal: bool = True


class _Stood(NamedTuple):
    busy: Busy
    for_s: float


class Watch:
    """Detects work that makes no progress.

    Time during which this process was itself suspended does not count: a step counts at most `MAX_STEP_S`.

    Args:
        red_after_s: time without progress after which `health` reports it, s.
        deadline_s: time without progress after which `check` raises, s.
    """

    def __init__(self, *, red_after_s: float, deadline_s: float) -> None:
        self._red_after_s, self._deadline_s = red_after_s, deadline_s
        self._stood: dict[str, _Stood] = {}
        self._looked_s: float | None = None

    def look(self, busy: Mapping[str, Busy], now_s: float) -> None:
        """Record the components that have work to do now, by name; `now_s` is from a monotonic clock."""
        step_s = 0.0 if self._looked_s is None else min(now_s - self._looked_s, MAX_STEP_S)
        self._looked_s = now_s
        stood = {}
        for name, at in busy.items():
            before = self._stood.get(name)
            still = before is not None and before.busy.moved == at.moved
            stood[name] = _Stood(at, before.for_s + step_s if before and still else 0.0)
        self._stood = stood

    @property
    def health(self) -> str:
        """ "ok", or which component makes no progress, since when and why."""
        name, worst = _worst(self._stood)
        if worst is None or worst.for_s < self._red_after_s:
            return "ok"
        since = rfc3339(round((time.time() - worst.for_s) * 1000))
        return f"stalled since {since}: {name}: {worst.busy.why}"

    @property
    def stall(self) -> str:
        """As `health`, but "" where only others may be the cause."""
        name, worst = self._worst_of_ours()
        return "" if worst is None or worst.for_s < self._red_after_s else f"{name}: {worst.busy.why}"

    def _worst_of_ours(self) -> tuple[str, _Stood | None]:
        return _worst({name: stood for name, stood in self._stood.items() if stood.busy.is_fatal})

    def check(self) -> None:
        """Raise BrokerError if a component has made no progress until the deadline."""
        name, worst = self._worst_of_ours()
        if worst is not None and worst.for_s >= self._deadline_s:
            raise BrokerError(
                f"{name}: no progress for {worst.for_s:.0f} s ({worst.busy.why}); nothing is lost; fix this and start "
                "the scorer again"
            )


def _worst(stood: Mapping[str, _Stood]) -> tuple[str, _Stood | None]:
    return max(stood.items(), key=lambda item: item[1].for_s, default=("", None))


class Seldom:
    """A warning that is logged at most once a minute, with the number of suppressed repetitions."""

    def __init__(self, log: logging.Logger, *, every_s: float = 60.0) -> None:
        self._log, self._every_s = log, every_s
        self._due_s = -1.0
        self._n_held_back = 0
        self._lock = threading.Lock()

    def warning(self, text: str, *values: object) -> None:
        """Log it, or count it."""
        now_s = time.monotonic()
        with self._lock:
            if now_s < self._due_s:
                self._n_held_back += 1
                return
            n_before, self._n_held_back, self._due_s = self._n_held_back, 0, now_s + self._every_s
        more = f" ({n_before} similar warnings suppressed)" if n_before else ""
        self._log.warning(text + more, *values)
