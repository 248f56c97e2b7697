"""The newest scores of a stream, read back from Kafka."""

from collections.abc import Sequence
from datetime import datetime

import polars as pl

from flows.serve.follow import readable_scores
from pipelines.contracts.stream import Stream
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.record import Received

_SCHEMA = {
    "partition": pl.Int32,
    "offset": pl.Int64,
    "score": pl.Float32,
    "alert": pl.Boolean,
    "arrival": pl.String,
    "model": pl.String,
}
_FIRST_WIDTH = 64  # offsets of a partition; with packed scores, each may be a thousand scores


def newest_scores(
    connection: Connection, stream: Stream, *, most: int = 0, since: datetime | None = None, kind: str = "scores"
) -> pl.DataFrame:
    """The newest scores of all partitions: all that arrived since some time.

    Args:
        most: so many, or somewhat more, if there are as many.
        since: all that arrived since then, and perhaps earlier ones.
        kind: `scores` or `shadow`.

    Returns:
        partition and offset (of the event), score, alert, arrival, model.
    """
    topic = stream.topic(kind)
    spans = topics.bounds(connection, [topic])
    ends, width = {at: end for at, (_, end) in spans.items()}, _FIRST_WIDTH
    found = _frame([])
    reach = datetime.max  # what arrived since then was read, of every partition
    while any(ends[at] > first for at, (first, _) in spans.items()):
        if len(found) >= most and reach < (since or datetime.max):
            break
        pieces = {at: (max(first, ends[at] - width), ends[at]) for at, (first, _) in spans.items() if ends[at] > first}
        found = pl.concat([found, *map(_frame, topics.read_between(connection, pieces))])
        ends |= {at: start for at, (start, _) in pieces.items()}
        width *= 4
        is_cut = [p for (_, p), start in ends.items() if start > spans[topic, p][0]]
        firsts = found.filter(pl.col("partition").is_in(is_cut)).group_by("partition").agg(pl.col("arrival").min())
        known = firsts["arrival"].to_list()
        reach = max(known, default=datetime.min) if len(known) == len(is_cut) else datetime.max
    return found.filter(pl.col("arrival") >= reach) if reach > datetime.min else found


def _frame(records: Sequence[Received]) -> pl.DataFrame:
    rows = [
        (one.source.partition, one.source.offset, one.score, one.alert, one.arrival, one.model)
        for one in readable_scores(records)
    ]
    frame = pl.DataFrame(rows, schema=_SCHEMA, orient="row")
    return frame.with_columns(pl.col("arrival").str.to_datetime("%Y-%m-%dT%H:%M:%S%.3fZ", time_unit="ms"))
