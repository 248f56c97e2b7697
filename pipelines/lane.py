"""A lane: the outbox of one partition, and the guarded transactions that empty it."""

import logging
import threading
import time
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.alerts import (
    PROGRESS_FORMAT,
    Model,
    Progress,
    RecordSource,
    Score,
    alert_of,
    cloudevent_headers,
    decode,
    encode,
    refused_of,
    rfc3339,
)
from pipelines.broker import Connection, Message, Received, TransactionalWriter, last_record
from pipelines.contract import Event
from pipelines.errors import BrokerError, FencedError, RestoreError
from pipelines.faults import Fault, no_fault
from pipelines.outbox import Batch, Outbox, Row, progress_after
from pipelines.stream import Stream

log = logging.getLogger(__name__)

CLAIM_S = 10.0  # how long a new owner may take from fencing us to claiming the partition


@dataclass(frozen=True)
class LaneSetting:
    """What all lanes of a scorer share."""

    connection: Connection
    stream: Stream
    model: Model
    definition: str
    owner: str
    fault: Fault = no_fault


class Lane:
    """Publishes one partition's outbox: scores, alerts, dead letters and progress, in one transaction per batch.

    The progress record is the authority: after a failed or doubtful transaction the lane opens a new producer (which
    aborts what was open), reads how far the last committed record says it came, and goes on from the outbox.
    """

    def __init__(self, setting: LaneSetting, partition: int) -> None:
        self._setting = setting
        self.partition = partition
        self._writer = self._open()
        self.progress = read_progress(setting.connection, setting.stream, partition)
        self.outbox = Outbox()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.failure: BaseException | None = None
        self.n_alerts = 0
        self.n_rebuilt = 0

    def claim(self, progress: Progress) -> None:
        """Write a progress record that says who owns the partition from now on."""
        self._writer.commit([self._progress_message(progress)])
        self.progress = progress

    def start(self) -> None:
        """Publish from a thread of its own until `stop`."""
        self._thread = threading.Thread(target=self._run, name=f"lane-{self.partition}", daemon=True)
        self._thread.start()

    def stop(self, *, deadline_s: float = 10.0) -> None:
        """Publish what is in the outbox, then close."""
        self._stopping.set()
        self.outbox.wake()
        if self._thread:
            self._thread.join(deadline_s)
        self._writer.close()

    def _run(self) -> None:
        try:
            while not (self._stopping.is_set() and not len(self.outbox)):
                batch = self.outbox.take()
                if batch.n_puts:
                    self._publish(batch)
        except BaseException as error:
            self.failure = error
            log.error("lane %d stops: %s", self.partition, error)

    def _publish(self, batch: Batch) -> None:
        messages, progress, n_alerts = self._messages(batch)
        fault = self._setting.fault
        try:
            fault("before_flush")
            self._writer.commit(messages, before_commit=lambda: fault("after_flush"))
        except BrokerError as error:
            self._rebuild(error)
            if self.progress != progress:
                return  # it was not committed: the batch is taken again
        fault("before_outbox_drop")
        self.progress = progress
        self.outbox.drop(batch)
        self.n_alerts += n_alerts
        fault("after_outbox_drop")

    def _rebuild(self, error: BrokerError) -> None:
        """Open a new producer and let the last committed progress record say what is out."""
        self.n_rebuilt += 1
        log.warning("lane %d: %s; rebuilding", self.partition, error)
        fenced, wait_s = isinstance(error, FencedError), 0.1
        while True:
            try:
                if fenced:
                    self._still_ours()
                self._writer.close()
                self._writer = self._open()
                progress = read_progress(self._setting.connection, self._setting.stream, self.partition)
            except FencedError:
                raise
            except BrokerError as again:
                if self._stopping.is_set():
                    raise
                log.warning("lane %d: %s; trying again", self.partition, again)
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, 5.0)
                continue
            if progress is None or progress.owner != self._setting.owner:
                raise FencedError(f"partition {self.partition}: another scorer has taken over")
            self.progress = progress
            return

    def _still_ours(self) -> None:
        """A transaction that timed out looks like fencing; the last progress record tells them apart.

        Whoever fenced us claims the partition within seconds: opening a producer before would fence it in turn.
        """
        until = time.monotonic() + CLAIM_S
        while time.monotonic() < until and not self._stopping.is_set():
            progress = read_progress(self._setting.connection, self._setting.stream, self.partition)
            if progress is None or progress.owner != self._setting.owner:
                raise FencedError(f"partition {self.partition}: another scorer has taken over")
            time.sleep(0.25)

    def _open(self) -> TransactionalWriter:
        return TransactionalWriter(self._setting.connection, transactional_id(self._setting.stream, self.partition))

    def _messages(self, batch: Batch) -> tuple[list[Message], Progress, int]:
        stream, model = self._setting.stream, self._setting.model
        scored = [row for row in batch.rows if row.event is not None]
        messages, n_alerts = [], 0
        if scored:
            numeric = np.stack([row.numeric for row in scored if row.numeric is not None])
            categorical = np.stack([row.categorical for row in scored if row.categorical is not None])
            found = model.score(numeric, categorical)
            alerting = found > np.float32(model.threshold)
            values = [float(f"{value:.9g}") for value in found.tolist()]  # nine digits keep a float32 whole
            n_alerts = int(alerting.sum())
            scores = [self._score(row, v, a) for row, v, a in zip(scored, values, alerting.tolist(), strict=True)]
            messages += [self._message("scores", row, score) for row, score in zip(scored, scores, strict=True)]
            if n_alerts:
                explained = model.explain(numeric[alerting], categorical[alerting])
                raised = [i for i, a in enumerate(alerting) if a]
                for i, why in zip(raised, explained, strict=True):
                    event = scored[i].event
                    assert event is not None
                    alert = alert_of(
                        scores[i],
                        threshold=model.threshold,
                        event=event,
                        entity_names=stream.entities,
                        explained=why,
                        features=features_of(stream, numeric[i], event),
                    )
                    messages.append(self._message("alerts", scored[i], alert))
        for row in batch.rows:
            if row.refusal is not None:
                source = self._source(row)
                refused = refused_of(row.refusal, source, row.record.value, duplicate_of=row.duplicate_of)
                messages.append(self._message("refused", row, refused))
        assert self.progress is not None
        progress = progress_after(self.progress, batch)
        messages.append(self._progress_message(progress))
        return messages, progress, n_alerts

    def _score(self, row: Row, value: float, alert: bool) -> Score:
        assert row.event is not None
        return Score(
            event_id=row.event.event_id,
            score=value,
            alert=alert,
            model=self._setting.model.digest,
            source=self._source(row),
            event_time=rfc3339(row.event.time_ms),
            arrival=rfc3339(row.arrival_ms),
            late_ms=row.late_ms,
            out_of_order=row.out_of_turn,
            features_hash=f"{row.features_hash:016x}",
        )

    def _source(self, row: Row) -> RecordSource:
        return RecordSource(self._setting.stream.topic("events"), self.partition, row.record.offset)

    def _message(self, kind: str, row: Row, value: msgspec.Struct) -> Message:
        stream = self._setting.stream
        headers = cloudevent_headers(kind, stream.name, self._source(row))
        return Message(stream.topic(kind), encode(value), row.record.key, self.partition, None, headers)

    def _progress_message(self, progress: Progress) -> Message:
        return Message(self._setting.stream.topic("progress"), encode(progress), None, self.partition)


def transactional_id(stream: Stream, partition: int) -> str:
    """Whoever opens a producer under a partition's id fences the one before."""
    return f"unmask.{stream.topics}.{partition}"


def features_of(stream: Stream, numeric: NDArray[np.float64], event: Event) -> dict[str, float | str | None]:
    """Every model input of one event by name, for people to read; None where it is missing."""
    values: dict[str, float | str | None] = {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(stream.numeric_columns, numeric.tolist(), strict=True)
    }
    return values | dict(zip(stream.categories, event.category_texts, strict=True))


def read_progress(connection: Connection, stream: Stream, partition: int) -> Progress | None:
    """The last committed progress record of a partition, None where there is none yet.

    Raises:
        RestoreError: it is none of ours, or of a version of Unmask that came later.
    """
    record = last_record(connection, stream.topic("progress"), partition)
    return None if record is None else progress_of(record)


def progress_of(record: Received) -> Progress:
    """The progress record in a Kafka record.

    Raises:
        RestoreError: it is none of ours, or of a version of Unmask that came later.
    """
    named = f"{record.topic} [{record.partition}], offset {record.offset},"
    try:
        progress = decode(record.value, Progress)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RestoreError(
            f"{named} is no progress record of Unmask ({error}): somebody else wrote to this topic; see to that, then "
            "run `unmask recover`"
        ) from error
    if progress.format > PROGRESS_FORMAT:
        raise RestoreError(
            f"{named} has format {progress.format}, this version of Unmask knows formats up to {PROGRESS_FORMAT}: it "
            "was written by a newer version of Unmask; run that version"
        )
    return progress
