"""The ingest: appends the records in Kafka to the lake, each record once."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec
import polars as pl

from pipelines.contracts.block import Block
from pipelines.contracts.contract import UNDECODABLE, provenance_of
from pipelines.contracts.decode import Decoder
from pipelines.contracts.messages import MAX_RAW_BYTES, Score, decode_lines
from pipelines.contracts.stream import Stream
from pipelines.errors import LakeError, RestoreError
from pipelines.faults import Fault, no_fault
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.letters import refused_earlier
from pipelines.kafka.port import Position
from pipelines.kafka.progress import read_progress
from pipelines.lake.tables import Lake
from pipelines.order import EVENT, LABEL, NO_RECORDS, Run, Source, SourceClock
from pipelines.record import Received

log = logging.getLogger(__name__)

COMMIT_RECORDS = 100_000
PIECE = 2_000  # records decoded at once; with more, garbage collection costs more than the larger batch saves
OnProgress = Callable[[int, int], None]
T = TypeVar("T")


@dataclass
class IngestCounts:
    """Number of rows written by one ingest. `n_unreadable`: skipped foreign messages in scores and progress."""

    n_events: int = 0
    n_labels: int = 0
    n_refused: int = 0
    n_scores: int = 0
    n_places: int = 0
    n_unreadable: int = 0

    @property
    def by_table(self) -> dict[str, int]:
        """The counts by the name of the table.

        >>> IngestCounts(n_events=3).by_table["events"]
        3
        """
        return {name.removeprefix("n_"): n for name, n in vars(self).items()}


def group_of(stream: Stream) -> str:
    """The Kafka group whose offsets show the position of the ingest."""
    return f"unmask.{stream.topics}.ingest"


def ingest(
    connection: Connection,
    stream: Stream,
    lake: Lake,
    *,
    fault: Fault = no_fault,
    progress: OnProgress | None = None,
) -> IngestCounts:
    """Append to the lake the records of every topic from the lake's position to the current end.

    The positions in the lake are authoritative. The offsets of the Kafka group are only for monitoring the lag.

    Args:
        fault: called with "between_lake_and_kafka" after every commit; tests use it to crash here.
        progress: called with the number of records done and the total.

    Raises:
        LakeError: Kafka has deleted records that are not in the lake, or a topic was recreated.
        BrokerError: Kafka does not answer, a topic is missing, or the broker stamps the events but not the labels.
    """
    inputs = stream.inputs
    topics.stamps_appends(connection, *(stream.topic(kind) for kind in inputs))
    lake.bind(topics.topic_ids(connection, [stream.topic(kind) for kind in (*inputs, "scores", "progress")]))
    spans: dict[Position, tuple[int, int]] = {}
    at = lake.positions()
    intake = Intake(stream, lake, _refused_earlier(connection, stream, at))
    at = _books_begin(connection, stream, at) | at
    # Ends of the outputs first, then of the inputs: the input of every score is then included.
    for kinds in (["scores"], ["progress"], inputs):
        for position, (first, end) in topics.bounds(connection, [stream.topic(k) for k in kinds]).items():
            spans[position] = (_checked(position, at.get(position, first), first, end, lake.folder), end)
    done, total = 0, sum(end - first for first, end in spans.values())
    append = {"events": intake.events, "labels": intake.labels, "scores": intake.scores, "progress": intake.places}
    for kind in (*inputs, "scores", "progress"):
        topic = stream.topic(kind)
        mine = {position: span for position, span in spans.items() if position[0] == topic}
        for records, through in _batches(connection, mine):
            append[kind](topic, records, through)
            fault("between_lake_and_kafka")
            done += len(records)
            if progress:
                progress(done, total)
    topics.note_group(connection, group_of(stream), {position: end for position, (_, end) in spans.items()})
    if progress:
        progress(total, total)
    return intake.counts


def _checked(position: Position, at: int, first: int, end: int, folder: Path) -> int:
    topic, partition = position
    if at < first:
        raise LakeError(
            f"{topic} [{partition}] starts at offset {first}, but the lake ends at {at}: Kafka has deleted "
            f"{first - at} records that were never ingested. Raise retention.ms above the longest interval between two "
            f"ingests; then move {folder} away and run `unmask ingest`, which starts a new lake"
        )
    if at > end:
        raise LakeError(
            f"{topic} [{partition}] ends at offset {end}, but the lake is at {at}: the topic was recreated; "
            "run `unmask recover`"
        )
    return at


def _books_begin(connection: Connection, stream: Stream, at: Mapping[Position, int]) -> dict[Position, int]:
    """For a new lake: first offsets of scores and progress records that are valid since the last recovery."""
    begin: dict[Position, int] = {}
    for topic, p in topics.partitions_of(connection, stream.topic("progress")):
        if (topic, p) not in at and (told := read_progress(connection, stream, p)):
            begin |= {(stream.topic(kind), p): n for kind, n in told.outcomes_from.items() if kind != "refused"}
    return begin


def _refused_earlier(connection: Connection, stream: Stream, at: Mapping[Position, int]) -> dict[tuple[int, int], str]:
    """Events to be ingested that were refused before the stream file was changed."""
    progress = {}
    for _, p in topics.partitions_of(connection, stream.topic("progress")):
        with suppress(RestoreError):  # a foreign record says nothing; the scorer reports it
            if told := read_progress(connection, stream, p):
                progress[p] = told
    return refused_earlier(connection, stream, progress, {p: at.get((stream.topic("events"), p), 0) for p in progress})


def _batches(
    connection: Connection, spans: dict[Position, tuple[int, int]]
) -> Iterator[tuple[list[Received], dict[int, int]]]:
    """Records in batches of one commit each, with the last offset covered per partition."""
    if all(first >= end for first, end in spans.values()):
        return
    records: list[Received] = []
    for batch in topics.read_between(connection, spans):
        records += batch
        if len(records) >= COMMIT_RECORDS:
            yield records, {r.partition: r.offset for r in records}
            records = []
    yield records, {p: end - 1 for (_, p), (_, end) in spans.items()}


class _ToldPlaces(msgspec.Struct):
    """The fields of a progress record that the ingest needs."""

    out_of_turn: list[tuple[int, int, int, int, int, int, int, int]]


class Intake:
    """Turns the records of each topic into rows of the lake."""

    def __init__(
        self, stream: Stream, lake: Lake, refused: Mapping[tuple[int, int], str] = MappingProxyType({})
    ) -> None:
        self.stream, self.lake = stream, lake
        self.counts = IngestCounts()
        self._decoder = Decoder(stream, refused)
        self._arrivals = lake.arrivals()
        self._clocks: dict[Position, SourceClock] = {}

    def events(self, topic: str, records: Sequence[Received], through: dict[int, int]) -> None:
        block = self._decoded(EVENT, topic, records, through)
        self.counts.n_events += self._append("events", _columns_of_events(block, self.stream), topic, through)

    def labels(self, topic: str, records: Sequence[Received], through: dict[int, int]) -> None:
        block = self._decoded(LABEL, topic, records, through)
        self.counts.n_labels += self._append("labels", _columns_of_labels(block, self.stream), topic, through)

    def scores(self, topic: str, records: Sequence[Received], through: dict[int, int]) -> None:
        rows = []
        for record, s in self._ours(records, Score):
            at = (s.source.partition, s.source.offset, record.offset, s.event_id)
            rows.append((*at, s.score, s.alert, s.model, s.features_hash, s.late_ms, s.out_of_order, s.threshold))
        self.counts.n_scores += self.lake.append(
            "scores", self.lake.frame("scores", rows), topic=topic, through=through
        )

    def places(self, topic: str, records: Sequence[Received], through: dict[int, int]) -> None:
        rows = [
            (record.partition, record.offset, *place)
            for record, progress in self._ours(records, _ToldPlaces)
            for place in progress.out_of_turn
        ]
        self.counts.n_places += self.lake.append(
            "places", self.lake.frame("places", rows), topic=topic, through=through
        )

    def _ours(self, records: Sequence[Received], kind: type[T]) -> Iterator[tuple[Received, T]]:
        """Decode messages of the scorer; skip messages of other programs."""
        for record in records:
            try:
                messages = decode_lines(record.value, kind)
            except UNDECODABLE as error:
                self.counts.n_unreadable += 1
                why = record.unreadable or error
                log.warning("%s [%d], offset %d, is skipped: %s", record.topic, record.partition, record.offset, why)
                continue
            for message in messages:
                yield record, message

    def _decoded(self, kind: int, topic: str, records: Sequence[Received], through: dict[int, int]) -> Block:
        """Write the refused records and return the accepted ones.

        The position advances with the accepted records, so after a crash in between, neither is written twice.
        """
        runs = [
            self._clock(kind, topic, p).run(list(of_partition))
            for p, of_partition in groupby(records, key=lambda record: record.partition)
        ]
        run = Run.concat(runs or [NO_RECORDS])
        blocks = [
            self._decoder.block(run.take(slice(start, start + PIECE))) for start in range(0, max(len(run), 1), PIECE)
        ]
        block = Block.concat(blocks)
        accepted = block.is_accepted
        if not accepted.all():
            frame = self.lake.frame("refused", list(_refused_rows(block.take(~accepted))))
            self.counts.n_refused += self.lake.append("refused", frame, topic=topic, through=through)
        return block.take(accepted)

    def _clock(self, kind: int, topic: str, partition: int) -> SourceClock:
        """The running arrival of a partition, as in the scorer."""
        at = (topic, partition)
        if at not in self._clocks:
            self._clocks[at] = SourceClock(Source(kind, partition), arrival_ms=self._arrivals.get(at, 0))
        return self._clocks[at]

    def _append(self, table: str, columns: Mapping[str, Any], topic: str, through: dict[int, int]) -> int:
        arrivals = {p: clock.arrival_ms for (t, p), clock in self._clocks.items() if t == topic}
        rows = self.lake.frame(table, columns)
        return self.lake.append(table, rows, topic=topic, through=through, arrivals=arrivals)


def _columns_of_events(block: Block, stream: Stream) -> dict[str, Any]:
    return {
        **_common_columns(block, stream),
        **{name: pl.Series(block.numbers[:, i]).fill_nan(None) for i, name in enumerate(stream.numbers)},
        **{name: block.category_texts[:, i].tolist() for i, name in enumerate(stream.categories)},
    }


def _columns_of_labels(block: Block, stream: Stream) -> dict[str, Any]:
    told = [provenance_of(value) for value in block.value.tolist()]
    return {
        **_common_columns(block, stream),
        "label": block.label,
        "labelled_at_ms": block.labelled_at_ms,
        "source": block.label_source.tolist(),
        "labelled_by": [by for by, _ in told],
        "label_why": [why for _, why in told],
    }


def _common_columns(block: Block, stream: Stream) -> dict[str, Any]:
    return {
        "partition": block.partition,
        "offset": block.offset,
        "arrival_ms": block.arrival_ms,
        "event_id": block.event_id.tolist(),
        "event_time_ms": block.time_ms,
        **{name: block.entity_texts[:, i].tolist() for i, name in enumerate(stream.entities)},
    }


def _refused_rows(block: Block) -> Iterator[tuple]:
    """Refused records as rows: the raw bytes and the rule that each broke."""
    columns = (block.partition, block.offset, block.arrival_ms, block.refusal, block.value)
    for partition, offset, arrival_ms, refusal, value in zip(*(column.tolist() for column in columns), strict=True):
        raw = value or b""
        sha256 = hashlib.sha256(raw).hexdigest()
        yield partition, offset, arrival_ms, refusal.rule, refusal.detail, raw[:MAX_RAW_BYTES], len(raw), sha256
