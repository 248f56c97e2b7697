"""Read scores and alerts with a plain consumer."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from pipelines.contracts.contract import UNDECODABLE
from pipelines.contracts.delays import ScoringDelayed
from pipelines.contracts.messages import (
    Alert,
    AlertOverflow,
    AlertRecord,
    AlertUpdate,
    Review,
    Score,
    SuppressedAlert,
    T,
    decode_alert,
    decode_lines,
)
from pipelines.contracts.stream import Stream
from pipelines.kafka import progress, topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Position
from pipelines.record import Received

log = logging.getLogger(__name__)


def past_alerts(connection: Connection, stream: Stream, *, last: int) -> tuple[list[AlertRecord], dict[Position, int]]:
    """The newest `last` alerts and reviews by arrival, what followed them, and where `new_alerts` continues."""
    spans = topics.bounds(connection, [stream.topic("alerts")])
    kept = [record for records in _tails(connection, spans, last).values() for record in records] if last else []
    return newest(kept, last), {position: end for position, (_, end) in spans.items()}


def _tails(
    connection: Connection, spans: Mapping[Position, tuple[int, int]], last: int
) -> dict[Position, list[AlertRecord]]:
    """The end of each partition, with at least `last` alerts and reviews if there are as many."""
    tails: dict[Position, list[AlertRecord]] = {}
    width = 2 * last  # each transaction also writes a control record
    while spans:
        starts = {position: (max(first, end - width), end) for position, (first, end) in spans.items()}
        tails |= {position: [] for position in starts}
        for batch in topics.read_between(connection, starts):
            for received in batch:
                tails[received.topic, received.partition] += readable_alerts([received])
        spans = {
            position: (first, end)
            for position, (first, end) in spans.items()
            if starts[position][0] > first and sum(isinstance(one, Alert | Review) for one in tails[position]) < last
        }
        width *= 4
    return tails


def newest(records: Iterable[AlertRecord], last: int) -> list[AlertRecord]:
    """The newest `last` alerts and reviews by arrival; since then the newest update of each group, and all else."""
    by_arrival = sorted(records, key=_time_of)
    full = [record for record in by_arrival if isinstance(record, Alert | Review)][-last:] if last else []
    if not full:
        return []
    updates = {record.group_id: record for record in by_arrival if isinstance(record, AlertUpdate)}
    others = [one for one in by_arrival if not isinstance(one, Alert | Review | AlertUpdate)]
    since = [record for record in (*updates.values(), *others) if _time_of(record) >= full[0].arrival]
    return sorted([*full, *since], key=_time_of)


def _time_of(record: AlertRecord) -> str:
    return record.at if isinstance(record, ScoringDelayed) else record.arrival


def n_alerted(records: Iterable[AlertRecord]) -> int:
    """Number of scores over the threshold that some records account for: alone, in a group, listed, suppressed."""
    alone, groups = 0, defaultdict[str, int](int)
    for record in records:
        if isinstance(record, ScoringDelayed | Review):
            continue
        if isinstance(record, AlertOverflow):
            alone += len(record.events)
        elif isinstance(record, SuppressedAlert) or record.group_id is None:
            alone += 1
        else:
            groups[record.group_id] = max(groups[record.group_id], record.count or 1)
    return alone + sum(groups.values())


def new_alerts(connection: Connection, starts: Mapping[Position, int]) -> Iterator[AlertRecord]:
    """Yield what is published about alerts from these offsets on as it arrives, without end."""
    with connection.reader(starts) as reader:
        while True:
            yield from readable_alerts(reader.poll(timeout_ms=500))


def count_scored(connection: Connection, stream: Stream) -> int:
    """Number of events scored since the first start, from the progress records."""
    n_partitions = len(topics.partitions_of(connection, stream.topic("progress")))
    found = progress.all_progress(connection, stream, n_partitions).values()
    return sum(record.n_scored for record in found if record is not None)


def readable_alerts(records: Sequence[Received]) -> Iterator[AlertRecord]:
    """Decode the records of the alerts topic. Others are skipped with a warning that contains their offset."""
    return _readable(records, lambda value: [decode_alert(value)], "an alert")


def readable_scores(records: Sequence[Received]) -> Iterator[Score]:
    """Decode scores. Other records are skipped with a warning that contains their offset."""
    return _readable(records, lambda value: decode_lines(value, Score), "a score")


def _readable(records: Sequence[Received], decoded: Callable[[bytes | None], Iterable[T]], kind: str) -> Iterator[T]:
    for record in records:
        try:
            yield from decoded(record.value)
        except UNDECODABLE:
            log.warning(
                "%s [%d], offset %d, is not %s of Unmask; skipped",
                record.topic, record.partition, record.offset, kind,
            )  # fmt: skip
