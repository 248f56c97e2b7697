"""Finds a published score, and the alert with it, by the id of the alert or event or by the place of the event."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import polars as pl
import pyarrow.compute as pc

from pipelines.contracts.contract import UNDECODABLE
from pipelines.contracts.messages import Alert, Review, SuppressedAlert, decode_alert
from pipelines.contracts.stream import Stream
from pipelines.errors import UnmaskError
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.letters import Choice, letters
from pipelines.kafka.progress import read_progress
from pipelines.lake.ingest import ingest
from pipelines.lake.tables import Lake

_PLACE = re.compile(r"(\d{1,9}):(\d{1,18})")
_ALERT_ID = re.compile(r"[0-9a-f]{8,32}")


Told = Alert | SuppressedAlert | Review  # a record about one event on the alerts topic


class NoScoreError(UnmaskError):
    """There is no such score; the message says why."""


class Published(NamedTuple):
    """A score as it was published. `alert` is None if there is none, or if Kafka does not have it any more.

    With a suppressed alert, `alert` is the record that says so.
    """

    partition: int
    offset: int
    event_id: str
    score: float
    is_alert: bool
    model: str
    features_hash: str
    alert: Told | None


def published(
    connection: Connection,
    stream: Stream,
    lake: Lake,
    named: str,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Published:
    """Find a score. If the lake does not have it yet, the lake is brought up to date.

    Args:
        named: id of an alert or review (8 digits at least), event id, or `partition:offset` of the event.
        progress: called with the number of records ingested and the total.

    Raises:
        NoScoreError: there is no such score.
        LakeError: the lake cannot be read or brought up to date.
    """
    alert = None
    if _ALERT_ID.fullmatch(named):
        alert = _alert(connection, stream, lambda one: _id_of(one).startswith(named))
    place = _PLACE.fullmatch(named)
    if alert is not None:
        at: tuple[int, int] | None = (alert.source.partition, alert.source.offset)
    else:
        at = (int(place[1]), int(place[2])) if place else None
    where = is_at(*at) if at else pc.field("event_id") == named
    for is_new in (False, True):
        if is_new:
            ingest(connection, stream, lake, progress=progress)
        rows = lake.read("scores", where=where)
        if rows.height:
            return _with_alert(connection, stream, rows, alert)
    raise NoScoreError(_why_none(connection, stream, lake, named, at))


def is_at(partition: int, offset: int) -> pc.Expression:
    """The rows about one record of a partition."""
    return (pc.field("partition") == partition) & (pc.field("offset") == offset)


def _with_alert(connection: Connection, stream: Stream, rows: pl.DataFrame, alert: Told | None) -> Published:
    row = rows.sort("scores_offset").row(-1, named=True)
    at = row["partition"], row["offset"]
    if alert is None and (row["alert"] or stream.review_share):
        alert = _alert(
            connection,
            stream,
            lambda one: (one.source.partition, one.source.offset, one.model) == (*at, row["model"]),
            partitions={at[0]},
        )
    return Published(*at, row["event_id"], row["score"], row["alert"], row["model"], row["features_hash"], alert)


def _alert(
    connection: Connection, stream: Stream, is_it: Callable[[Told], bool], *, partitions: Iterable[int] | None = None
) -> Told | None:
    """The first record about one event for which `is_it` holds."""
    topic = stream.topic("alerts")
    spans = topics.bounds(connection, [topic])
    if partitions is not None:
        spans = {(topic, p): spans[topic, p] for p in partitions if (topic, p) in spans}
    for batch in topics.read_between(connection, spans):
        for record in batch:
            try:
                one = decode_alert(record.value)
            except UNDECODABLE:
                continue
            if isinstance(one, Told) and is_it(one):
                return one
    return None


def _id_of(told: Told) -> str:
    return told.review_id if isinstance(told, Review) else told.alert_id


def _why_none(connection: Connection, stream: Stream, lake: Lake, named: str, at: tuple[int, int] | None) -> str:
    """Why there is no score of an event, in words."""
    if at is None:
        rows = lake.read("events", columns=["partition", "offset"], where=pc.field("event_id") == named)
        if not rows.height:
            return (
                f"stream {stream.name} has no alert, event or score {named!r}: check it; a refused event is found by "
                "its place, partition:offset"
            )
        at = rows.row(-1)
    partition, offset = at
    event = f"the event at {partition}:{offset} of {stream.topic('events')}"
    told = read_progress(connection, stream, partition) if _has(connection, stream, partition) else None
    if told is None:
        return f"{stream.topic('events')} has no partition {partition}, or nothing of it has been scored yet"
    if offset >= told.next_offset:
        return f"{event} has not been scored yet; the scorer is at offset {told.next_offset}"
    if offset < told.start:
        return f"{event} is history: scoring started at offset {told.start}"
    for batch in letters(connection, stream, Choice(partitions=frozenset({partition}))):
        for letter in batch:
            refused = letter.refused
            if refused.source.offset == offset:
                if refused.duplicate_of is not None:
                    return f"{event} is a duplicate; its original is at {partition}:{refused.duplicate_of}"
                return f"{event} was refused: {refused.rule}, {refused.detail}"
    return f"{event} has neither a score nor a dead letter; run `unmask reconcile`"


def _has(connection: Connection, stream: Stream, partition: int) -> bool:
    topic = stream.topic("progress")
    return (topic, partition) in topics.partitions_of(connection, topic)
