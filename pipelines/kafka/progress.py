"""The progress records of a stream: what has been published, per partition."""

from pipelines.contracts.contract import UNDECODABLE
from pipelines.contracts.messages import PROGRESS_FORMAT, Progress, decode
from pipelines.contracts.stream import Stream
from pipelines.errors import RestoreError
from pipelines.kafka.connection import Connection
from pipelines.kafka.topics import last_record, last_records
from pipelines.record import Received


def transactional_id(stream: Stream, partition: int) -> str:
    """The transactional id of a partition. A producer that opens it fences the previous one."""
    return f"unmask.{stream.topics}.{partition}"


def all_progress(connection: Connection, stream: Stream, n_partitions: int) -> dict[int, Progress | None]:
    """The last committed progress record of every partition; None if there is none yet."""
    positions = {p: (stream.topic("progress"), p) for p in range(n_partitions)}
    found = last_records(connection, positions.values())
    return {p: progress_of(found[at]) if at in found else None for p, at in positions.items()}


def read_progress(connection: Connection, stream: Stream, partition: int) -> Progress | None:
    """The last committed progress record of a partition; None if there is none yet.

    Raises:
        RestoreError: it was not written by Unmask, or by a newer version.
    """
    record = last_record(connection, stream.topic("progress"), partition)
    return None if record is None else progress_of(record)


def progress_of(record: Received) -> Progress:
    """Decode the progress record in a Kafka record.

    Raises:
        RestoreError: it was not written by Unmask, or by a newer version.
    """
    named = f"{record.topic} [{record.partition}], offset {record.offset},"
    try:
        progress = decode(record.value, Progress)
    except UNDECODABLE as error:
        raise RestoreError(
            f"{named} is not a progress record of Unmask ({error}): another program wrote to this topic; stop it, then "
            "run `unmask recover`"
        ) from error
    if progress.format > PROGRESS_FORMAT:
        raise RestoreError(
            f"{named} has format {progress.format}, but this version of Unmask reads formats up to {PROGRESS_FORMAT}: "
            "it was written by a newer version of Unmask; run that version"
        )
    return progress
