"""The writer of a partition's owner: what an owner before it left open is ended before anything else is written."""

import msgspec

from pipelines.contracts.contract import UNDECODABLE
from pipelines.contracts.messages import RecordSource, decode_lines
from pipelines.contracts.stream import Stream
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Position, TransactionalWriter
from pipelines.kafka.progress import read_progress, transactional_id
from pipelines.kafka.topics import last_records
from pipelines.record import Received

PUBLISHED = ("scores", "alerts", "refused", "progress")  # the topics that only the owner of a partition writes to


class Outcome(msgspec.Struct):
    """What a score and a dead letter have in common."""

    source: RecordSource
    model: str = ""
    out_of_order: bool = False
    duplicate_of: int | None = None


def outcomes_in(record: Received) -> list[Outcome]:
    """The scores or the dead letter in a record; none if it was not written by Unmask."""
    try:
        return decode_lines(record.value, Outcome)
    except UNDECODABLE:
        return []


def open_owner(
    connection: Connection,
    stream: Stream,
    partition: int,
    *,
    kinds: tuple[str, ...] = PUBLISHED,
    asked: Connection | None = None,
) -> TransactionalWriter:
    """The writer of a partition's owner; fences the one before.

    Args:
        kinds: topics that have the partition.
        asked: the connection that is asked about the partitions; by default the same.

    Raises:
        BrokerError: Kafka does not answer, or a transaction stays open.
    """
    asked = asked or connection

    def is_confirmed(left_open: list[Position]) -> bool:
        """Whether the progress record of what is left open is committed, but not the outcomes that it tells of."""
        progress_at = (stream.topic("progress"), partition)
        progress = None if progress_at in left_open else read_progress(asked, stream, partition)
        if progress is None or not progress.n_scored + progress.n_refused + progress.n_duplicates:
            return False
        last = last_records(asked, [(stream.topic(kind), partition) for kind in ("scores", "refused")])
        ends = [outcome.source.offset + 1 for record in last.values() for outcome in outcomes_in(record)]
        return max(ends, default=0) < progress.next_offset

    positions = [(stream.topic(kind), partition) for kind in kinds]
    return connection.transactional_writer(
        transactional_id(stream, partition), positions, is_confirmed=is_confirmed, asked=asked
    )
