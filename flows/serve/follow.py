"""Read scores and alerts with a plain consumer."""

import logging
from collections.abc import Iterator, Mapping, Sequence

from pipelines.contracts.contract import UNDECODABLE
from pipelines.contracts.messages import Alert, Score, T, decode_lines
from pipelines.contracts.stream import Stream
from pipelines.kafka import progress, topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Position
from pipelines.record import Received

log = logging.getLogger(__name__)

_KINDS: Mapping[type, str] = {Alert: "an alert", Score: "a score"}


def past_alerts(connection: Connection, stream: Stream, *, last: int) -> tuple[list[Alert], dict[Position, int]]:
    """The newest `last` alerts by arrival, and the offsets from which `new_alerts` continues."""
    topic = stream.topic("alerts")
    spans = topics.bounds(connection, [topic])
    # Each transaction also writes a control record, so start twice as far back.
    starts = {position: (max(first, end - 2 * last), end) for position, (first, end) in spans.items()}
    kept = [alert for batch in topics.read_between(connection, starts) for alert in readable(batch, Alert)]
    newest = sorted(kept, key=lambda a: a.arrival)[-last:] if last else []
    return newest, {position: end for position, (_, end) in spans.items()}


def new_alerts(connection: Connection, starts: Mapping[Position, int]) -> Iterator[Alert]:
    """Yield alerts from these offsets on as they arrive, without end."""
    with connection.reader(starts) as reader:
        while True:
            yield from readable(reader.poll(timeout_ms=500), Alert)


def count_scored(connection: Connection, stream: Stream) -> int:
    """Number of events scored since the first start, from the progress records."""
    n_partitions = len(topics.partitions_of(connection, stream.topic("progress")))
    found = progress.all_progress(connection, stream, n_partitions).values()
    return sum(record.n_scored for record in found if record is not None)


def readable(records: Sequence[Received], kind: type[T]) -> Iterator[T]:
    """Decode messages of one kind. Other records are skipped with a warning that contains their offset."""
    for record in records:
        try:
            yield from decode_lines(record.value, kind)
        except UNDECODABLE:
            log.warning(
                "%s [%d], offset %d, is not %s of Unmask; skipped",
                record.topic, record.partition, record.offset, _KINDS[kind],
            )  # fmt: skip
