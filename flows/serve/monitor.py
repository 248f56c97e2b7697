"""What operators see of a running scorer: the loop leaves a sample of itself, other threads read the newest one."""

import time
from dataclasses import dataclass

from pipelines.live.metrics import Lag, ScorerCounters
from pipelines.live.scorer import Scorer

LOOP_SILENT_S = 60.0  # without a step of the loop; the first one compiles
RESTORE_S = 600.0  # without a step while a state is restored


@dataclass(frozen=True)
class Sample:
    """A scorer at one moment. `lags` are of the partitions that it owns, `n_bytes` is memory by part."""

    health: str
    stall: str
    not_ready: str
    caught_up: bool
    lags: dict[int, Lag]
    n_bytes: dict[str, int]
    entities: dict[str, int]
    counters: ScorerCounters
    n_claims: int
    snapshot_age_s: float | None

    @classmethod
    def of(cls, scorer: Scorer) -> "Sample":
        """Called in the thread of the loop."""
        return cls(
            health=scorer.health,
            stall=scorer.stall,
            not_ready=scorer.not_ready,
            caught_up=scorer.caught_up,
            lags=scorer.lags(),
            n_bytes=scorer.n_bytes,
            entities=scorer.entities,
            counters=scorer.counters,
            n_claims=scorer.n_claims,
            snapshot_age_s=scorer.snapshot_age_s,
        )


class Monitor:
    """Whether a scorer is alive, and ready.

    It is alive if its loop goes on and no lane that has something to publish stands still. It is ready once it has
    caught up and owns the partitions that its group gives it; what only others can cause, such as a partition without a
    leader, makes it not ready, but leaves it alive.

    Example:
        >>> monitor = Monitor()
        >>> monitor.not_alive, monitor.not_ready
        ('', 'the state is being restored')
    """

    def __init__(self) -> None:
        self.sample: Sample | None = None
        self.n_restores = 0
        self.is_stopping = False
        self._moved_s = time.monotonic()

    def restored(self) -> None:
        """A state was restored, and the loop begins."""
        self.n_restores += 1
        self._moved_s = time.monotonic()

    def stepped(self) -> None:
        """The loop has taken a step."""
        self._moved_s = time.monotonic()

    @property
    def not_alive(self) -> str:
        """Why the process should be restarted; "" if it is alive."""
        silent_s = time.monotonic() - self._moved_s
        if silent_s > (RESTORE_S if self.sample is None else LOOP_SILENT_S):
            return f"no step of the loop for {silent_s:.0f} s"
        return "" if self.sample is None else self.sample.stall

    @property
    def not_ready(self) -> str:
        """Why it does not do its share of the work; "" if it is ready."""
        if self.is_stopping:
            return "it is stopping"
        if self.sample is None:
            return "the state is being restored"
        unhealthy = "" if self.sample.health == "ok" else self.sample.health
        return self.not_alive or self.sample.not_ready or unhealthy
