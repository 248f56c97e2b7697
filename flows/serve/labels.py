"""Send the label of an event, as reported by a person, and find all labels of an event."""

import time
from collections.abc import Callable
from typing import Any

import msgspec
import polars as pl

from pipelines.contracts.messages import rfc3339
from pipelines.contracts.stream import Stream
from pipelines.errors import UnmaskError
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message
from pipelines.lake.ingest import ingest
from pipelines.lake.labels import reports_of
from pipelines.lake.tables import Lake


class UnknownEventError(UnmaskError):
    """The lake has no event with this id."""


def send_label(
    connection: Connection,
    stream: Stream,
    lake: Lake,
    *,
    event_id: str,
    label: int,
    source: str,
    by: str | None = None,
    why: str | None = None,
) -> None:
    """Write the label record of an event in the lake.

    Args:
        source: the kind of source, such as `analyst`; the stream file may rank it.
        by, why: who reports it, and the reason; they are kept with the label.

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
        **{name: text for name, text in (("by", by), ("why", why)) if text},
    }
    value, key = msgspec.json.encode(record), event[stream.key].encode()
    with connection.writer() as writer:
        writer.send(Message(stream.topic("labels"), value, key, event["partition"]))
        writer.flush()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A label of an event: what was reported, by whom, and whether it is the one that `holds`.

    - `labelled_at`, `arrived`, `in_effect`: when it was made, when it came to Kafka, from when on features count it.
    """

    label: int
    source: str
    by: str | None
    why: str | None
    labelled_at: str
    arrived: str
    in_effect: str
    holds: bool


def labels_of_event(
    connection: Connection,
    stream: Stream,
    lake: Lake,
    event_id: str,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[Report]:
    """All labels of an event in the order in which they count. First, the lake is brought up to date.

    Args:
        progress: called with the number of records ingested and the total.

    Raises:
        LakeError: the lake cannot be read or brought up to date.
    """
    ingest(connection, stream, lake, progress=progress)
    return [_report_of(row) for row in reports_of(lake, stream, event_id).iter_rows(named=True)]


def _report_of(row: dict[str, Any]) -> Report:
    return Report(
        label=row["label"],
        source=row["source"],
        by=row["labelled_by"],
        why=row["label_why"],
        labelled_at=rfc3339(row["labelled_at_ms"]),
        arrived=rfc3339(row["arrival_ms"]),
        in_effect=rfc3339(row["effective_ms"]),
        holds=row["holds"],
    )


def _typed(stream: Stream, field: str, text: str) -> int | str:
    return int(text) if stream.field(field).type == "int" else text
