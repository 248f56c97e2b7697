"""The newest scores of a stream, read back from Kafka."""

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


def newest_scores(connection: Connection, stream: Stream, *, most: int, kind: str = "scores") -> pl.DataFrame:
    """The newest scores of all partitions, at least `most` if there are as many: all that arrived since some time.

    Args:
        kind: `scores`, or another topic of the same messages.

    Returns:
        partition and offset (of the event), score, alert, arrival, model.
    """
    topic = stream.topic(kind)
    spans = topics.bounds(connection, [topic])
    ends, width, n = {at: end for at, (_, end) in spans.items()}, _FIRST_WIDTH, 0
    parts = [pl.DataFrame(schema=_SCHEMA)]
    while n < most:
        pieces = {at: (max(first, ends[at] - width), ends[at]) for at, (first, _) in spans.items() if ends[at] > first}
        if not pieces:
            break
        read = [_frame(batch) for batch in topics.read_between(connection, pieces)]
        parts += read
        n += sum(map(len, read))
        ends |= {at: start for at, (start, _) in pieces.items()}
        width *= 4
    found = pl.concat(parts).with_columns(pl.col("arrival").str.to_datetime("%Y-%m-%dT%H:%M:%S%.3fZ", time_unit="ms"))
    is_cut = [p for (_, p), start in ends.items() if start > spans[topic, p][0]]
    since = found.filter(pl.col("partition").is_in(is_cut)).group_by("partition").agg(pl.col("arrival").min())
    return found.filter(pl.col("arrival") >= since["arrival"].max()) if len(since) else found


def _frame(records: list[Received]) -> pl.DataFrame:
    rows = [
        (one.source.partition, one.source.offset, one.score, one.alert, one.arrival, one.model)
        for one in readable_scores(records)
    ]
    return pl.DataFrame(rows, schema=_SCHEMA, orient="row")
