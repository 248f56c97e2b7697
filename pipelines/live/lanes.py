"""The lanes of a scorer, one for each partition that it owns."""

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
        """Memory of what waits in the outboxes."""
        return sum(lane.outbox.n_bytes for lane in self)

    @property
    def progress(self) -> dict[int, Progress]:
        """The last progress record of every partition."""
        return {lane.partition: lane.progress for lane in self if lane.progress}

    def start(self) -> None:
        """Let every lane publish from a thread of its own."""
        for lane in self:
            lane.start()

    def put(self, puts: Sequence[Put]) -> None:
        """Give every lane what one fold left for it."""
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
        """Raise what a lane failed with, or InternalError where its thread has ended."""
        for lane in self:
            if lane.failure is not None:
                raise lane.failure
            if lane.is_dead:
                raise InternalError(f"the thread of partition {lane.partition} ended unexpectedly")

    def release(self) -> None:
        """Publish what is in the outboxes, then close every lane; all together take no longer than one."""
        if self:
            with ThreadPoolExecutor(len(self)) as pool:
                list(pool.map(Lane.stop, self))

    @property
    def failures(self) -> list[BaseException]:
        """Of released lanes: what they failed with, but for those that a successor fenced while they stopped."""
        failures = []
        for lane in self:
            if isinstance(lane.failure, FencedError) and lane.was_stopping:
                log.warning("partition %d: another scorer has taken over and publishes the rest", lane.partition)
            elif lane.failure is not None:
                failures.append(lane.failure)
        return failures
