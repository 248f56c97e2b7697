"""Send the label of an event, as reported by a person."""

import time

import msgspec
import polars as pl

from pipelines.contracts.messages import rfc3339
from pipelines.contracts.stream import Stream
from pipelines.errors import UnmaskError
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message
from pipelines.lake.tables import Lake


class UnknownEventError(UnmaskError):
    """The lake has no event with this id."""


def send_label(connection: Connection, stream: Stream, lake: Lake, *, event_id: str, label: int, source: str) -> None:
    """Write the label record of an event in the lake.

    Raises:
        UnknownEventError: the event is not in the lake (yet).
    """
    events = lake.read("events", columns=["partition", "event_id", "event_time_ms", *stream.entities])
    event = next(events.filter(pl.col("event_id") == event_id).iter_rows(named=True), None)
    if event is None:
        raise UnknownEventError(
            f"{stream.name}: event {event_id!r} is not in the lake; check the id, or run `unmask ingest` if it is new"
        )
    record = {
        stream.event_id: _typed(stream, stream.event_id, event_id),
        stream.event_time: event["event_time_ms"],
        **{e: _typed(stream, e, event[e]) for e in stream.entities if event[e] is not None},
        "label": label,
        "labelled_at": rfc3339(int(time.time() * 1000)),
        "source": source,
    }
    value, key = msgspec.json.encode(record), event[stream.key].encode()
    with connection.writer() as writer:
        writer.send(Message(stream.topic("labels"), value, key, event["partition"]))
        writer.flush()


def _typed(stream: Stream, field: str, text: str) -> int | str:
    return int(text) if stream.field(field).type == "int" else text
