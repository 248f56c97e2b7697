"""When scores come late: what a lane tells about it, once for each episode. No input or output."""

from typing import NamedTuple

from pipelines.contracts.delays import OpenDelay, ScoringDelayed
from pipelines.contracts.messages import DELAYED, Progress, cloudevent_headers, encode, rfc3339
from pipelines.contracts.stream import Stream
from pipelines.kafka.port import Message

RECOVERED_SHARE = 0.5  # of the bound: a lag below it is no delay any more


class Delays(NamedTuple):
    """Decides from the lag of a partition what is told, and what its progress record remembers.

    The owner of the partition tells it, in the transaction of the progress record: no restart and no take-over
    repeats or omits it.

    Args:
        bound_ms: lag above which scores are late, ms.
    """

    stream: Stream
    partition: int
    bound_ms: int

    def told(self, progress: Progress, *, oldest_ms: int | None, now_ms: int) -> tuple[OpenDelay | None, list[Message]]:
        """The delay that is open from now on, and the message about it, if there is one.

        Args:
            progress: after the events of this transaction.
            oldest_ms: arrival of the oldest event that waited; None if none does.
        """
        lag_ms = 0 if oldest_ms is None else max(now_ms - oldest_ms, 0)
        before = progress.delay
        if before is None:
            if oldest_ms is None or lag_ms <= self.bound_ms:
                return None, []
            opened = OpenDelay(oldest_ms, lag_ms)
            return opened, [self._message(progress, opened, lag_ms, now_ms, recovered=False)]
        delay = OpenDelay(before.since_ms, max(before.highest_ms, lag_ms))
        if lag_ms > self.bound_ms * RECOVERED_SHARE:
            return delay, []
        return None, [self._message(progress, delay, lag_ms, now_ms, recovered=True)]

    def _message(self, progress: Progress, delay: OpenDelay, lag_ms: int, now_ms: int, *, recovered: bool) -> Message:
        topic, kind = self.stream.topic("events"), "recovered" if recovered else "delayed"
        told = ScoringDelayed(
            topic=topic,
            partition=self.partition,
            since=rfc3339(delay.since_ms),
            at=rfc3339(now_ms),
            lag_ms=lag_ms,
            highest_lag_ms=delay.highest_ms,
            bound_ms=self.bound_ms,
            recovered=recovered,
            next_offset=progress.next_offset,
        )
        event = f"{topic}/{self.partition}/{delay.since_ms}/{kind}"
        headers = cloudevent_headers(DELAYED, self.stream.name, event)
        return Message(self.stream.topic("alerts"), encode(told), None, self.partition, None, headers)
