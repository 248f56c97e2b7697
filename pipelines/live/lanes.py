"""The lanes of a scorer, one per partition that it owns."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pipelines.contracts.messages import Progress
from pipelines.errors import FencedError, InternalError
from pipelines.live.health import Busy
from pipelines.live.lane import Lane
from pipelines.live.outbox import Put

log = logging.getLogger(__name__)


class Lanes(list[Lane]):
    """Claimed lanes by partition: started and released together."""

    @property
    def n_bytes(self) -> int:
        """Memory of the outboxes."""
        return sum(lane.outbox.n_bytes for lane in self)

    @property
    def progress(self) -> dict[int, Progress]:
        """The last progress record of every partition."""
        return {lane.partition: lane.progress for lane in self if lane.progress}

    def start(self) -> None:
        """Start the thread of every lane."""
        for lane in self:
            lane.start()

    def put(self, puts: Sequence[Put]) -> None:
        """Give every lane its put of one fold."""
        for lane, put in zip(self, puts, strict=True):
            lane.outbox.put(put)

    def busy(self) -> dict[str, Busy]:
        """Lanes with something to publish, for the health check."""
        return {
            f"publishing partition {lane.partition}": Busy(lane.n_commits, lane.trouble or "the commit does not return")
            for lane in self
            if len(lane.outbox)
        }

    def raise_failure(self) -> None:
        """Raise the failure of a lane, or InternalError if its thread ended unexpectedly."""
        for lane in self:
            if lane.failure is not None:
                raise lane.failure
            if lane.is_dead:
                raise InternalError(f"the thread of partition {lane.partition} ended unexpectedly")

    def release(self) -> None:
        """Publish the rest of the outboxes and close all lanes in parallel."""
        if self:
            with ThreadPoolExecutor(len(self)) as pool:
                list(pool.map(Lane.stop, self))

    @property
    def failures(self) -> list[BaseException]:
        """Failures of released lanes, except those fenced by a successor while they stopped."""
        failures = []
        for lane in self:
            if isinstance(lane.failure, FencedError) and lane.was_stopping:
                log.warning("partition %d: another scorer has taken over and publishes the rest", lane.partition)
            elif lane.failure is not None:
                failures.append(lane.failure)
        return failures
