"""A lane: the writer of one partition that this replica owns; it publishes the outbox in transactions."""

import logging
import threading
import time
from dataclasses import dataclass, field
from enum import IntEnum

import msgspec

from pipelines.contracts.delays import OpenDelay
from pipelines.contracts.messages import Progress, encode
from pipelines.contracts.stream import Stream
from pipelines.errors import (
    BrokerError,
    FencedError,
    InternalError,
    RejectedError,
    RestoreError,
    TooLargeError,
    UnmaskError,
)
from pipelines.faults import Fault, no_fault
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message, TransactionalWriter
from pipelines.kafka.progress import read_progress
from pipelines.live.alerting import Outcomes, outcomes_of, without_scores
from pipelines.live.delays import Delays
from pipelines.live.metrics import Lag, Published
from pipelines.live.outbox import MAX_ROWS, Outbox, OutboxBatch, progress_after
from pipelines.live.owner import open_owner
from pipelines.live.serving import Serving
from pipelines.live.stopping import FINISH_S, LEAVE_S
from pipelines.live.storms import storm_of
from pipelines.model import Model

log = logging.getLogger(__name__)

PACE_S = 0.015  # from the beginning of one transaction to that of the next, unless a whole one is waiting
TRANSACTION_S = 10.0  # for the end of a transaction, while the scorer goes on
CLAIM_S = 10.0  # maximum time between a new owner's fencing and its claim of the partition


class Shortening(IntEnum):
    """Steps to shorten the message of a row that the broker rejects for its size."""

    WHOLE = 0
    SHORT = 1  # an alert without reasons and features, a dead letter without raw bytes
    LETTER = 2  # a dead letter with the rule `unpublishable` instead of the score


@dataclass(frozen=True)
class LaneSetting:
    """Settings that all lanes of a scorer share."""

    connection: Connection
    stream: Stream
    serving: Serving
    definition: str
    owner: str
    stall_deadline_s: float = 300.0
    fault: Fault = no_fault
    published: Published = field(default_factory=Published)
    delayed_after_ms: int | None = None  # lag above which scores are late; None in a replay, which has its own clock


class Lane:
    """Publishes one partition's outbox: scores, alerts, dead letters and progress, in one transaction per batch.

    The progress record is authoritative: after a transaction that failed or has an unknown outcome, the lane opens a
    new producer (which aborts an open transaction), reads the last committed progress record and continues from the
    outbox. While it is stopping it opens no producer: that would fence a scorer that has taken over meanwhile.

    A batch that the broker rejects for its size is split until the row is found, which is then published in a shorter
    form (`Shortening`). Any other rejection ends the lane, and with it the scorer.

    Args:
        asked: the connection of a take-over; without it, the lane asks for itself.
    """

    def __init__(
        self, setting: LaneSetting, partition: int, outbox: Outbox | None = None, *, asked: Connection | None = None
    ) -> None:
        self._setting = setting
        self.partition = partition
        self._writer = self._open(asked)
        self.progress: Progress | None = None
        self.outbox = Outbox() if outbox is None else outbox
        self._stopping = threading.Event()
        self._is_leaving = False
        self._thread: threading.Thread | None = None
        self.failure: BaseException | None = None
        self.was_stopping = False  # time of the failure
        self.trouble = ""  # why the last transaction failed, until one succeeds
        self.n_commits = 0
        self._committed_s = time.monotonic()
        self._lag = 0.0, Lag(0, 0)  # when it was seen, by a monotonic clock
        self.n_alerts = 0
        self.n_rebuilt = 0
        self.n_shortened = 0

    @property
    def is_dead(self) -> bool:
        """Whether the thread ended without being asked to stop."""
        return self._thread is not None and not self._thread.is_alive() and not self._stopping.is_set()

    def claim(self, progress: Progress) -> None:
        """Write a progress record that names the new owner of the partition."""
        self._writer.commit([self._progress_message(progress)])
        self.progress = progress

    def start(self) -> None:
        """Publish in a separate thread until `stop`."""
        self._thread = threading.Thread(target=self._run, name=f"lane-{self.partition}", daemon=True)
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Let the thread publish the rest of the outbox, then end."""
        self._stopping.set()
        self.outbox.wake()

    def leave(self) -> None:
        """End after the current transaction; the next owner publishes the rest of the outbox."""
        self._is_leaving = True
        self._end(TRANSACTION_S)

    def stop(self) -> None:
        """Publish the rest of the outbox for a moment, or at least end the current transaction; then close."""
        self.ask_to_stop()
        if self._thread:
            self._thread.join(FINISH_S)
        self._is_leaving = True
        self._end(LEAVE_S)

    def _end(self, deadline_s: float) -> None:
        self.ask_to_stop()
        if self._thread:
            self._thread.join(deadline_s)
        self._writer.close()

    def _run(self) -> None:
        try:
            while not (self._stopping.is_set() and (self._is_leaving or not len(self.outbox))):
                began_s, batch = time.monotonic(), self.outbox.take()
                if batch is not None:
                    self._publish(batch)
                    if len(batch.rows) < MAX_ROWS:
                        self._stopping.wait(PACE_S - (time.monotonic() - began_s))
                elif (seen := self._seen_lag()) is not None:
                    self._tell_lag(seen)
        except BaseException as error:
            self.was_stopping = self._stopping.is_set()
            self.failure = error
            is_ours = isinstance(error, UnmaskError)
            why = error if is_ours else type(error).__name__  # the text of a defect may contain values of events
            log.error("partition %d: publishing failed: %s", self.partition, why, exc_info=None if is_ours else error)

    def _publish(self, batch: OutboxBatch, shortening: Shortening = Shortening.WHOLE) -> bool:
        """Commit a batch in one or several transactions; False if the rest must be taken from the outbox again."""
        assert self.progress is not None
        before, model = self.progress, self._setting.serving.champion
        if before.next_offset < self.outbox.complete_from:
            raise InternalError(f"partition {self.partition}: the outbox lacks events that are not published")
        if len(batch.rows) and int(batch.rows.offset[0]) < before.next_offset:
            raise InternalError(f"partition {self.partition}: the outbox holds events that are published already")
        outcomes, progress = self._messages(batch, shortening, model)
        fault = self._setting.fault
        try:
            fault("before_flush")
            self._writer.commit(outcomes.messages, before_commit=lambda: fault("after_flush"))
        except BrokerError as error:
            if isinstance(error, RejectedError) and not isinstance(error, TooLargeError):
                raise
            self._rebuild(error)
            if self.progress != progress:  # it was not committed
                return self._publish_smaller(batch, shortening, error) if isinstance(error, TooLargeError) else False
        fault("before_outbox_drop")
        self._setting.serving.count(model, progress.n_scored - before.n_scored, outcomes.n_alerts)
        now_ms = time.time() * 1000
        self._setting.serving.offer(model, batch.rows)
        counts = {"n_alerts": outcomes.n_alerts, "n_suppressed": outcomes.n_suppressed, "n_reviews": outcomes.n_reviews}
        self._setting.published.count(batch.rows, before, progress, **counts, now_ms=now_ms)
        self.progress = progress
        self._committed_s = time.monotonic()
        self.outbox.drop(batch)
        self.trouble = ""
        self.n_commits += 1
        self.n_alerts += outcomes.n_alerts
        self.n_shortened += shortening > Shortening.WHOLE
        fault("after_outbox_drop")
        return True

    def watch(self, lag: Lag) -> None:
        """Take note of how far the partition is behind; the lane tells of it while it has nothing to publish."""
        self._lag = time.monotonic(), lag

    def _seen_lag(self) -> Lag | None:
        """The lag, if it was seen after the last transaction: it concerns events that are not in the outbox yet."""
        seen_s, lag = self._lag
        return lag if seen_s > self._committed_s else None

    def _tell_lag(self, lag: Lag) -> None:
        assert self.progress is not None
        if lag.records and self.progress.delay is not None:
            return  # their age may be unknown; the transaction that publishes them tells whether the delay is over
        now_ms = round(time.time() * 1000)
        delay, told = self._delay(self.progress, oldest_ms=now_ms - lag.ms if lag.records else None, now_ms=now_ms)
        if not told:
            return
        progress = msgspec.structs.replace(self.progress, delay=delay, out_of_turn=[])
        try:
            self._writer.commit([*told, self._progress_message(progress)])
        except BrokerError as error:
            if isinstance(error, RejectedError):
                raise
            self._rebuild(error)
        else:
            self.progress = progress

    def _delay(
        self, progress: Progress, *, oldest_ms: int | None, now_ms: int
    ) -> tuple[OpenDelay | None, list[Message]]:
        bound_ms = self._setting.delayed_after_ms
        if bound_ms is None:
            return progress.delay, []
        return Delays(self._setting.stream, self.partition, bound_ms).told(progress, oldest_ms=oldest_ms, now_ms=now_ms)

    def _publish_smaller(self, batch: OutboxBatch, shortening: Shortening, error: TooLargeError) -> bool:
        if len(batch.rows) > 1:
            first, second = batch.halves()
            return self._publish(first) and self._publish(second)
        if not len(batch.rows) or shortening == Shortening.LETTER:
            raise error
        offset = batch.rows.offset[0]
        log.warning("partition %d: the message about offset %d is shortened: %s", self.partition, offset, error)
        return self._publish(batch, Shortening(shortening + 1))

    def _rebuild(self, error: BrokerError) -> None:
        """Open a new producer and read from the last committed progress record what has been published.

        A new producer fences the current one of its transactional id, so none is opened if the partition has a new
        owner already.
        """
        self.n_rebuilt += 1
        self._setting.published.rebuilt()
        self.trouble = str(error)
        log.warning("partition %d: %s; opening a new producer", self.partition, error)
        fenced, wait_s = isinstance(error, FencedError), 0.1
        until = time.monotonic() + self._setting.stall_deadline_s
        while True:
            try:
                if fenced:
                    self._wait_for_a_claim()
                else:
                    self._check_owner(self._read_progress())
                if self._stopping.is_set():
                    raise error
                self._writer.close()
                self._writer = self._open()
                progress = self._read_progress()
            except (FencedError, RejectedError):
                raise
            except BrokerError as again:
                if self._stopping.is_set():
                    raise
                if time.monotonic() > until:
                    raise BrokerError(
                        f"partition {self.partition}: nothing could be published for "
                        f"{self._setting.stall_deadline_s:g} s ({again}); nothing is lost; start the scorer again when "
                        "Kafka accepts records"
                    ) from again
                self.trouble = str(again)
                log.warning("partition %d: %s; retrying", self.partition, again)
                self._stopping.wait(wait_s)
                wait_s = min(2 * wait_s, 5.0)
                continue
            self._check_owner(progress)
            assert progress is not None
            if self.progress is not None and progress.next_offset < self.progress.next_offset:
                raise RestoreError(
                    f"partition {self.partition}: Kafka has lost a transaction that it had confirmed: events from "
                    f"offset {progress.next_offset} are not published; start the scorer again, it goes on from there"
                )
            self.progress = progress
            return

    def _wait_for_a_claim(self) -> None:
        """Wait for the claim of a new owner: a transaction that timed out looks like fencing.

        A new owner claims the partition within seconds. Opening a producer before that would fence the new owner.
        """
        until = time.monotonic() + CLAIM_S
        while time.monotonic() < until and not self._stopping.is_set():
            self._check_owner(self._read_progress())
            self._stopping.wait(0.25)

    def _check_owner(self, progress: Progress | None) -> None:
        if progress is None or progress.owner != self._setting.owner:
            raise FencedError(f"partition {self.partition}: another scorer has taken over")

    def _open(self, asked: Connection | None = None) -> TransactionalWriter:
        return open_owner(self._setting.connection, self._setting.stream, self.partition, asked=asked)

    def _read_progress(self) -> Progress | None:
        return read_progress(self._setting.connection, self._setting.stream, self.partition)

    def _messages(self, batch: OutboxBatch, shortening: Shortening, model: Model) -> tuple[Outcomes, Progress]:
        if shortening == Shortening.LETTER:
            batch = batch._replace(rows=without_scores(batch.rows))
        short = shortening > Shortening.WHOLE
        assert self.progress is not None
        storm, serving = storm_of(self._setting.stream, self.progress, self.partition), self._setting.serving
        outcomes = outcomes_of(
            batch.rows, self._setting.stream, model,
            storm=storm, suppressions=serving.suppressions, short=short, together=serving.together,
        )  # fmt: skip
        progress = progress_after(self.progress, batch, model.digest, storm.memory if storm else None)
        messages = outcomes.messages
        if len(batch.rows):
            oldest_ms, now_ms = int(batch.rows.arrival_ms[0]), round(time.time() * 1000)
            delay, told = self._delay(progress, oldest_ms=oldest_ms, now_ms=now_ms)
            progress, messages = msgspec.structs.replace(progress, delay=delay), [*messages, *told]
        return outcomes._replace(messages=[*messages, self._progress_message(progress)]), progress

    def _progress_message(self, progress: Progress) -> Message:
        return Message(self._setting.stream.topic("progress"), encode(progress), None, self.partition)
