"""What an operator does next: what keeps a scorer from starting, what the way on keeps and loses, and the way itself.

`plan` decides from facts alone; `Recovery` gathers the facts and carries a plan out.
"""

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from pipelines import broker
from pipelines.alerts import Progress, RecordSource, encode
from pipelines.broker import Connection, Message, TransactionalWriter
from pipelines.contract import Event, EventContract
from pipelines.errors import LakeError, RestoreError
from pipelines.ingest import ingest
from pipelines.lake import Lake
from pipelines.lane import progress_of, transactional_id
from pipelines.order import EVENT, KIND_NAMES, Frontier, Item, Key, Record, Source, sources
from pipelines.rebuild import snapshot_from_lake
from pipelines.replica import is_ahead
from pipelines.state import Snapshot, State, by_kind, from_kinds, items_of
from pipelines.stream import Stream
from pipelines.takeover import (
    Change,
    first_progress,
    head_is_gone,
    input_ids,
    partition_counts,
    unfit,
    what_changed,
    widened,
)

log = logging.getLogger(__name__)

MAX_PLACES = 1_000  # per progress record
_SAMPLE = 5_000
OUTPUTS = ("scores", "refused", "progress")

Name = Literal["garbled", "emptied", "remade", "widened", "redefined", "headless", "forgotten", "unlike_lake"]


@dataclass(frozen=True)
class Published:
    """What a partition's scores and dead letters say, with the offsets of their first and last event."""

    first: int
    last: int
    n_scored: int
    n_refused: int
    n_duplicates: int
    n_out_of_turn: int
    model: str


@dataclass(frozen=True)
class Facts:
    """What is there. Partitions without a progress record that can be read have None in `progress`.

    Args:
        definition: digest of the stream file's features.
        counts: number of partitions per topic kind.
        topic_ids: of the input topics by kind, where the broker has any.
        spans: first offset kept and end of every input partition; (0, 0) where a topic lacks a partition.
        output_ends: end of every partition, per kind in `OUTPUTS`.
        garbled: why a partition's last progress record cannot be read.
        readable: the newest record that can, of those partitions.
        published: of the partitions without progress.
        snapshot_fits: whether a scorer would find a snapshot to go on from.
        newest_meta: of the newest snapshot that can be read, whether it fits or not.
        lake_ends: how far the lake has come, per source; empty where there is no lake.
        told: places of records folded out of turn, as the lake knows them.
        fields_joined: fields of the stream that the lake's events lack.
        outdated: kinds of output topics that were made anew since the lake was filled from them.
    """

    stream: Stream
    definition: str
    counts: Mapping[str, int]
    topic_ids: Mapping[str, str]
    spans: Mapping[Source, tuple[int, int]]
    output_ends: Mapping[str, Mapping[int, int]]
    progress: Mapping[int, Progress | None]
    garbled: Mapping[int, str] = field(default_factory=dict)
    readable: Mapping[int, Progress] = field(default_factory=dict)
    published: Mapping[int, Published] = field(default_factory=dict)
    snapshot_fits: bool = True
    newest_meta: Mapping[str, object] | None = None
    lake_ends: Mapping[Source, int] = field(default_factory=dict)
    told: list[list[int]] = field(default_factory=list)
    fields_joined: tuple[str, ...] = ()
    outdated: tuple[str, ...] = ()

    @property
    def n_partitions(self) -> int:
        return self.counts["events"]

    @property
    def known(self) -> dict[int, Progress]:
        return {p: record for p, record in self.progress.items() if record is not None}

    @property
    def n_input(self) -> int:
        """Records that Kafka keeps of the input."""
        return sum(end - first for first, end in self.spans.values())


@dataclass(frozen=True)
class Plan:
    """What happened, what the way on keeps, loses and scores again, and what is done.

    Args:
        n_records: that are read and folded again, by the command or by the scorer's next start.
        progress: records to write, per partition.
        add_partitions: how many partitions topics shall have, by kind.
        aside: what is renamed, never deleted.
        from_lake: whether a snapshot is made from the lake.
    """

    name: Name
    found: str
    kept: str
    lost: str
    scored_again: str
    n_records: int = 0
    progress: Mapping[int, list[Progress]] = field(default_factory=dict)
    add_partitions: Mapping[str, int] = field(default_factory=dict)
    aside: tuple[Literal["snapshots", "lake"], ...] = ()
    from_lake: bool = False

    def words(self, records_per_s: float) -> list[tuple[str, str]]:
        """For people: titles and sentences."""
        seconds = f"about {self.n_records / records_per_s:,.0f} s" if records_per_s else "not measured: no events"
        at = f" at {records_per_s:,.0f} a second, measured now" if records_per_s else ""
        return [
            ("what happened", self.found),
            ("kept", self.kept),
            ("lost", self.lost),
            ("scored again", self.scored_again),
            ("time", f"{seconds} ({self.n_records:,} records are read{at})"),
        ]


def plan(facts: Facts) -> Plan | None:
    """The next thing to do, None where a scorer can start. Several things may be the matter: ask again afterwards.

    Raises:
        RestoreError: there is no way on.
    """
    for look in (_garbled, _emptied, _remade, _widened, _redefined, _headless, _unlike_lake):
        if found := look(facts):
            return found
    return None


def _garbled(facts: Facts) -> Plan | None:
    """The last progress record is none of ours, and an earlier one agrees with what was published."""
    good = {
        p: record
        for p, record in facts.readable.items()
        if p not in facts.published or facts.published[p].last < record.next_offset
    }
    if not good:
        return None
    return Plan(
        "garbled",
        f"{next(iter(facts.garbled[p] for p in good))}",
        "everything; the newest progress record of Unmask is written again",
        "nothing",
        "nothing",
        progress={p: [msgspec.structs.replace(record, out_of_turn=[])] for p, record in good.items()},
    )


def _emptied(facts: Facts) -> Plan | None:
    """Progress is gone though something was published: it is made again from the scores and dead letters."""
    known = facts.known
    n_told = max((record.n_partitions for record in known.values()), default=facts.counts["progress"])
    empty = [p for p, record in facts.progress.items() if record is None and p < n_told]
    if not any(p in facts.published for p in empty) and not any(record.frontier for record in known.values()):
        return None
    if not empty:
        return None
    meta = facts.newest_meta or {}
    told_ids: dict[str, str] = meta.get("topic_ids") or dict(facts.topic_ids)  # type: ignore[assignment]
    # Offset 0: what was folded before the first score is not known any more. Kafka's beginning, a snapshot or the lake.
    nothing = dict.fromkeys(facts.spans, (0, 0))
    records: dict[int, list[Progress]] = {}
    for p in empty:
        at = facts.spans[Source(EVENT, p)][0]
        out = facts.published.get(p) or Published(at, at - 1, 0, 0, 0, 0, "")
        record = first_progress(
            out.last + 1,
            n_partitions=n_told,
            definition=str(meta.get("definition") or facts.definition),
            model=out.model,
            owner="",
            bounds={s: span for s, span in nothing.items() if s.partition < n_told},
            topic_ids=told_ids,
        )
        records[p] = [
            msgspec.structs.replace(
                record, start=out.first, n_scored=out.n_scored, n_refused=out.n_refused,
                n_duplicates=out.n_duplicates, definition_start=out.first,
            )
        ]  # fmt: skip
    n_flagged = sum(out.n_out_of_turn for out in facts.published.values())
    if facts.told:
        teller, begin = records[empty[0]], facts.output_ends["progress"].get(empty[0], 0)
        teller[0] = msgspec.structs.replace(
            teller[0],
            n_out_of_turn=len(facts.told),
            retold=[begin, begin + -(-len(facts.told) // MAX_PLACES)],
        )
        teller[:] = [
            msgspec.structs.replace(teller[0], out_of_turn=facts.told[at : at + MAX_PLACES])
            for at in range(0, len(facts.told), MAX_PLACES)
        ]
    else:
        records[empty[0]][0] = msgspec.structs.replace(records[empty[0]][0], n_out_of_turn=n_flagged)
    lost = "where scoring began, if not at the first event that was published"
    if n_flagged and not facts.told:
        lost += (
            f"; where {n_flagged:,} events were folded that came out of turn: features near them may come out otherwise"
        )
    named = ", ".join(map(str, empty))
    garbled = "; ".join(facts.garbled[p] for p in empty if p in facts.garbled)
    return Plan(
        "emptied",
        garbled
        or f"{facts.stream.topic('progress')} has no record of partitions {named} though scores were published: it was "
        "emptied",
        "every score and dead letter; progress is made again from them",
        lost,
        "nothing that has a score or a dead letter; in a partition without any, every event that Kafka keeps",
        n_records=sum(out.n_scored + out.n_refused + out.n_duplicates for out in facts.published.values()),
        progress=records,
    )


def _remade(facts: Facts) -> Plan | None:
    """An input topic was deleted and made anew: new books begin."""
    stream, remade, words = facts.stream, set[str](), ""
    for p, record in facts.known.items():
        for kind, told in record.topic_ids.items():
            if facts.topic_ids.get(kind, told) != told:
                remade.add(kind)
        changed = _change(facts, p, record)
        if changed and changed.kind == "remade":
            words = words or changed.words
            if not any(facts.topic_ids.get(kind, told) != told for kind, told in record.topic_ids.items()):
                remade.add("events")
    if not remade:
        return None
    n = facts.n_partitions
    if n < max(facts.counts.values()):
        raise RestoreError(
            f"{words}; it has {n} partitions, the other topics of {stream.topics} have up to "
            f"{max(facts.counts.values())}: give the events as many, then run `unmask recover` again"
        )
    records, n_again = {}, 0
    for p in range(n):
        first, end = facts.spans[Source(EVENT, p)]
        before = facts.progress.get(p)
        at = first if "events" in remade or before is None else before.next_offset
        n_again += end - at
        record = first_progress(
            at, n_partitions=n, definition=facts.definition, model=before.model if before else "", owner="",
            bounds=facts.spans, topic_ids=facts.topic_ids,
        )  # fmt: skip
        begin = {kind: facts.output_ends[kind].get(p, 0) for kind in OUTPUTS}
        records[p] = [msgspec.structs.replace(record, outcomes_from=begin)]
    what = " and ".join(sorted(remade))
    return Plan(
        "remade",
        words,
        "everything that was published (audits leave it out from now on); snapshots and the lake, under another name",
        "what the old topic's records had told about entities: their history begins with what Kafka holds now",
        f"every event of the new topic: {n_again:,}"
        if "events" in remade
        else f"nothing; {what} only were made anew, the events go on where they were",
        n_records=facts.n_input,
        progress=records,
        add_partitions={kind: n for kind, count in facts.counts.items() if count < n},
        aside=("snapshots", "lake"),
    )


def _widened(facts: Facts) -> Plan | None:
    """Partitions were added: the old ones go on, the new ones are scored from their beginning."""
    n, known = facts.n_partitions, facts.known
    add = {kind: n for kind, count in facts.counts.items() if count < n}
    if not add and all(record.n_partitions == n for record in known.values()):
        return None
    records: dict[int, list[Progress]] = {}
    n_new = 0
    if known:
        any_record = next(iter(known.values()))
        origin = dict.fromkeys(facts.spans, 0) | from_kinds(any_record.origin)
        for p in range(n):
            before = facts.progress.get(p)
            if before is None:
                first, end = facts.spans[Source(EVENT, p)]
                n_new += end - first
                before = first_progress(
                    first, n_partitions=n, definition=any_record.definition, model=any_record.model, owner="",
                    bounds=facts.spans, topic_ids=any_record.topic_ids,
                )  # fmt: skip
            records[p] = [msgspec.structs.replace(before, n_partitions=n, origin=by_kind(origin, n), out_of_turn=[])]
    told = next((record.n_partitions for record in known.values()), min(facts.counts.values()))
    return Plan(
        "widened",
        f"partitions were added: the stream had {told}, its events have {n} now",
        "everything; what the other topics lack is created",
        "a repeated event id is not known again where its key has moved to another partition",
        f"nothing; the new partitions are scored from their beginning: {n_new:,} events",
        n_records=n_new,
        progress=records,
        add_partitions=add,
    )


def _redefined(facts: Facts) -> Plan | None:
    """The features are others now: the state is made again, what was published stays."""
    known = facts.known
    if not known or all(record.definition == facts.definition for record in known.values()):
        return None
    words = next(c.words for p, record in known.items() if (c := _change(facts, p, record)))
    # The lake took what the old stream file named; Kafka still has the rest, if it has everything that the lake has.
    lake_anew = bool(facts.fields_joined) and all(first == 0 for first, _ in facts.spans.values())
    return Plan(
        "redefined",
        words,
        "every score and dead letter" + ("" if lake_anew else ", the lake"),
        "nothing; the skew audit compares only what is scored from now on. Snapshots"
        + (f" and the lake (it lacks {', '.join(facts.fields_joined)})" if lake_anew else "")
        + " are renamed and made anew",
        "nothing; what was published is folded again under the new features",
        n_records=facts.n_input,
        progress={
            p: [
                msgspec.structs.replace(
                    record, definition=facts.definition, definition_start=record.next_offset, out_of_turn=[]
                )
            ]
            for p, record in known.items()
        },
        aside=("snapshots", "lake") if lake_anew else ("snapshots",),
    )


def _headless(facts: Facts) -> Plan | None:
    """No snapshot fits and Kafka has deleted the beginning: the state comes from the lake, if that has it."""
    known = facts.known
    if facts.snapshot_fits or len(known) < facts.n_partitions:
        return None
    origin = from_kinds(known[0].origin)
    gone = head_is_gone(facts.stream, origin, facts.spans)
    if not gone:
        return None
    found = f"{gone}, and no snapshot fits"
    if facts.lake_ends and all(facts.lake_ends.get(s, 0) >= facts.spans[s][0] for s in origin):
        return Plan(
            "headless",
            found,
            "everything; the state is made from the lake",
            "nothing, if the lake began where the scorer did; else what happened before",
            "nothing",
            n_records=sum(facts.lake_ends.values()),
            aside=("snapshots",),
            from_lake=True,
        )
    n_lost = sum(max(0, facts.spans[Source(EVENT, p)][0] - record.next_offset) for p, record in known.items())
    new_origin = by_kind({s: span[0] for s, span in facts.spans.items()}, facts.n_partitions)
    return Plan(
        "forgotten",
        f"{found}, and the lake does not have what Kafka has deleted",
        "every score and dead letter; snapshots and the lake, under another name",
        "what happened before the records that Kafka keeps: entities' history begins there"
        + (f"; {n_lost:,} events that nobody scored are gone, `unmask reconcile` will name them" if n_lost else ""),
        "nothing",
        n_records=facts.n_input,
        progress={
            p: [
                msgspec.structs.replace(
                    record,
                    next_offset=(at := max(record.next_offset, facts.spans[Source(EVENT, p)][0])),
                    origin=new_origin,
                    frontier=None,
                    definition_start=at,
                    out_of_turn=[],
                )
            ]
            for p, record in known.items()
        },
        aside=("snapshots", "lake"),
    )


def _unlike_lake(facts: Facts) -> Plan | None:
    """An output topic was made anew: the lake reads it from its beginning, and scores are counted from now on."""
    if not facts.outdated:
        return None
    named = " and ".join(facts.stream.topic(kind) for kind in facts.outdated)
    records = {}
    if "scores" in facts.outdated:
        for p, record in facts.known.items():
            begin = record.outcomes_from | {"scores": 0, "refused": facts.output_ends["refused"].get(p, 0)}
            records[p] = [
                msgspec.structs.replace(
                    record, start=record.next_offset, n_scored=0, n_refused=0, n_duplicates=0, outcomes_from=begin,
                    out_of_turn=[],
                )
            ]  # fmt: skip
    return Plan(
        "unlike_lake",
        f"{named} was deleted and made anew since the lake was filled from it",
        "the lake's rows; it reads the new topic from its beginning",
        "what only the deleted topic held" + ("; audits count scores from now on" if records else ""),
        "nothing",
        progress=records,
    )


def _change(facts: Facts, partition: int, record: Progress) -> Change | None:
    return what_changed(
        record,
        facts.stream,
        partition,
        n_partitions=facts.n_partitions,
        definition=facts.definition,
        topic_ids=facts.topic_ids,
        end=facts.spans[Source(EVENT, partition)][1] if Source(EVENT, partition) in facts.spans else 0,
    )


class Recovery:
    """Finds what keeps a stream's scorer from starting, and mends it.

    Args:
        snapshots: the scorer's folder of snapshots.
    """

    def __init__(self, connection: Connection, stream: Stream, *, snapshots: Path, lake: Lake) -> None:
        self._connection, self._stream, self._snapshots, self._lake = connection, stream, snapshots, lake

    def plan(self) -> Plan | None:
        """What would be done next; changes nothing.

        Raises:
            RestoreError: there is no way on, or the progress was written by a newer version.
            BrokerError: a topic is missing, or Kafka does not answer.
        """
        return plan(self._facts())

    def carry_out(self, told: Plan, *, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Do what was planned, after fencing whoever scores now; all progress records are written in one transaction.

        Raises:
            RestoreError: the stream has changed since the plan was made, or the lake cannot give the state.
            FencedError: a scorer has taken over meanwhile.
        """
        counts = partition_counts(self._connection, self._stream)
        with self._fenced(max(counts.values())) as writer:
            facts = self._facts()
            now = plan(facts)
            if now is None or now.name != told.name:
                raise RestoreError("the stream has changed since the plan was made; run `unmask recover` again")
            if now.add_partitions:
                topics = {self._stream.topic(kind): n for kind, n in now.add_partitions.items()}
                broker.add_partitions(self._connection, topics)
            snapshot = self._snapshot_from_lake(facts, on_progress) if now.from_lake else None
            for what in now.aside:
                moved_aside(self._snapshots if what == "snapshots" else self._lake.folder)
            if snapshot is not None:
                self._snapshots.mkdir(parents=True, exist_ok=True)
                snapshot.write(self._snapshots / f"{sum(snapshot.frontier.values()):020d}.snapshot")
            owner = f"recover-{uuid.uuid4().hex[:8]}"
            topic = self._stream.topic("progress")
            messages = [
                Message(topic, encode(msgspec.structs.replace(record, owner=owner)), None, p)
                for p, records in now.progress.items()
                for record in records
            ]
            if messages:
                writer.commit(messages)
            self._reset_outdated()

    def records_per_s(self) -> float:
        """How fast this machine reads and folds the stream's events, measured on the first ones that Kafka keeps."""
        topic, stream = self._stream.topic("events"), self._stream
        contract = EventContract(stream)
        spans = broker.bounds(self._connection, [topic])
        (_, p), (first, end) = max(spans.items(), key=lambda span: span[1][1] - span[1][0])
        seconds, n = 0.0, 0
        for _ in range(2):  # the first time, the kernel is compiled
            n, began_s, state = 0, time.perf_counter(), State(stream, len(spans))
            for batch in broker.read_between(self._connection, {(topic, p): (first, min(end, first + _SAMPLE))}):
                decoded = []
                for r in batch:
                    event = contract.decode(r.value, r.key, r.timestamp_ms)
                    if isinstance(event, Event):
                        record = Record(EVENT, r.partition, r.offset, r.timestamp_ms, r.key, r.value)
                        key = Key(r.timestamp_ms, EVENT, r.partition, r.offset)
                        decoded.append((Item(key, r.timestamp_ms, record, False), event))
                if decoded:
                    state.fold(items_of(decoded, stream))
                n += len(batch)
            seconds = time.perf_counter() - began_s
        return n / seconds if n else 0.0

    @contextmanager
    def _fenced(self, n_partitions: int) -> Iterator[TransactionalWriter]:
        """Producers of all lanes: a scorer that runs can publish nothing more. Yields the first."""
        with ExitStack() as stack:
            writers = []
            for p in range(n_partitions):
                writer = TransactionalWriter(self._connection, transactional_id(self._stream, p))
                stack.callback(writer.close)
                writers.append(writer)
            yield writers[0]

    def _facts(self) -> Facts:
        connection, stream = self._connection, self._stream
        counts = partition_counts(connection, stream)
        inputs = sources(counts["events"], labels=stream.labels is not None)
        spans = broker.bounds(connection, [stream.topic(KIND_NAMES[kind]) for kind in {s.kind for s in inputs}])
        by_source = {s: spans.get((stream.topic(KIND_NAMES[s.kind]), s.partition), (0, 0)) for s in inputs}
        topic_ids = input_ids(connection, stream)
        definition = State(stream, counts["events"]).digest
        outputs = broker.bounds(connection, [stream.topic(kind) for kind in OUTPUTS])
        ends = {kind: {p: e for (t, p), (_, e) in outputs.items() if t == stream.topic(kind)} for kind in OUTPUTS}
        progress, garbled, readable = self._progress(counts["progress"])
        published = {
            p: found
            for p, record in progress.items()
            if record is None and (found := self._published(p, outputs, readable.get(p)))
        }
        fits, meta = self._best_snapshot(progress, by_source, topic_ids, definition, counts["events"])
        positions = self._lake.positions()
        columns = set(self._lake.columns("events"))
        return Facts(
            stream,
            definition,
            counts,
            topic_ids,
            by_source,
            ends,
            progress,
            garbled,
            readable,
            published,
            snapshot_fits=fits,
            newest_meta=meta,
            lake_ends={s: at for s in inputs if (at := positions.get((stream.topic(KIND_NAMES[s.kind]), s.partition)))},
            told=self._told() if published else [],
            fields_joined=tuple(
                name
                for name in (*stream.entities, *stream.numbers, *stream.categories)
                if columns and name not in columns
            ),
            outdated=tuple(self._outdated().values()),
        )

    def _progress(self, n_partitions: int) -> tuple[dict[int, Progress | None], dict[int, str], dict[int, Progress]]:
        """The last record of every partition; where it is none of ours, why, and the newest that is."""
        topic = self._stream.topic("progress")
        progress: dict[int, Progress | None] = {}
        garbled: dict[int, str] = {}
        readable: dict[int, Progress] = {}
        for p in range(n_partitions):
            last = broker.last_record(self._connection, topic, p)
            try:
                progress[p] = None if last is None else progress_of(last)
                continue
            except RestoreError as error:
                if "newer version" in str(error):
                    raise
                progress[p], garbled[p] = None, str(error).partition("; see to that")[0]
            for batch in broker.read_between(
                self._connection, {(topic, p): broker.bounds(self._connection, [topic])[topic, p]}
            ):
                for record in batch:
                    try:
                        readable[p] = progress_of(record)
                    except RestoreError:
                        continue
        return progress, garbled, readable

    def _published(
        self, partition: int, outputs: Mapping[broker.Position, tuple[int, int]], books: Progress | None
    ) -> Published | None:
        """What the scores and dead letters of a partition say; None where there are none."""
        stream = self._stream
        spans = {}
        for kind in ("scores", "refused"):
            position = (stream.topic(kind), partition)
            if position in outputs:
                first, end = outputs[position]
                spans[position] = (max(first, books.outcomes_from.get(kind, 0) if books else 0), end)
        n = {"scores": 0, "refused": 0, "duplicates": 0}
        first_at, last_at, n_flagged, model = None, -1, 0, ""
        for batch in broker.read_between(self._connection, spans):
            for record in batch:
                try:
                    outcome = msgspec.json.decode(record.value or b"", type=_Outcome)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    continue
                at = outcome.source
                if (at.topic, at.partition) != (stream.topic("events"), partition):
                    continue
                is_score = record.topic == stream.topic("scores")
                n["scores" if is_score else "refused" if outcome.duplicate_of is None else "duplicates"] += 1
                first_at = at.offset if first_at is None else min(first_at, at.offset)
                last_at = max(last_at, at.offset)
                n_flagged += outcome.out_of_order
                model = outcome.model or model
        if first_at is None:
            return None
        return Published(first_at, last_at, n["scores"], n["refused"], n["duplicates"], n_flagged, model)

    def _best_snapshot(
        self,
        progress: Mapping[int, Progress | None],
        spans: Mapping[Source, tuple[int, int]],
        topic_ids: Mapping[str, str],
        definition: str,
        n_partitions: int,
    ) -> tuple[bool, Mapping[str, object] | None]:
        """Whether a scorer would find a snapshot, and what the newest that can be read says of itself."""
        known = {p: record for p, record in progress.items() if record is not None}
        newest = None
        for path in sorted(self._snapshots.glob("*.snapshot"), reverse=True):
            try:
                snapshot = widened(Snapshot.read(path), n_partitions)
                newest = newest or snapshot.meta
                if is_ahead(snapshot.frontier, known) or unfit(snapshot, spans, topic_ids):
                    continue
                if State.restore(self._stream, snapshot).digest == definition:
                    return True, newest
            except (RestoreError, OSError, ValueError, KeyError) as error:
                log.info("snapshot %s is not used: %s", path.name, error)
        return False, newest

    def _snapshot_from_lake(self, facts: Facts, on_progress: Callable[[int, int], None] | None) -> Snapshot:
        """Bring the lake up to date, then fold it."""
        first: Frontier = {s: span[0] for s, span in facts.spans.items()}
        ends: Frontier = {s: span[1] for s, span in facts.spans.items()}
        try:
            ingest(self._connection, self._stream, self._lake)
            return snapshot_from_lake(
                self._lake,
                self._stream,
                facts.known,
                first=first,
                ends=ends,
                topic_ids=facts.topic_ids,
                on_progress=on_progress,
            )
        except (LakeError, RestoreError) as error:
            raise RestoreError(
                f"{error}. The lake cannot give the state; to go on with what Kafka keeps, move {self._lake.folder} "
                "away and run `unmask recover` again"
            ) from error

    def _told(self) -> list[list[int]]:
        """Places of what was folded out of turn, as progress records told them."""
        columns = ["kind", "partition", "offset", "at_effective_ms", "at_kind", "at_partition", "at_offset", "at_seq"]
        rows = self._lake.read("places", columns=columns).unique(["kind", "partition", "offset"], keep="last")
        return [list(row) for row in rows.sort("kind", "partition", "offset").iter_rows()]

    def _outdated(self) -> dict[str, str]:
        """Tables of the lake that were filled from an output topic which was made anew since -> the topic's kind."""
        outdated = {}
        for table, kind in (("scores", "scores"), ("places", "progress")):
            topic = self._stream.topic(kind)
            noted = {p: at for (t, p), at in self._lake.positions().items() if t == topic}
            if noted:
                spans = broker.bounds(self._connection, [topic])
                shorter = any(spans.get((topic, p), (0, 0))[1] < at for p, at in noted.items())
                topic_id = broker.topic_ids(self._connection, [topic]).get(topic)
                if shorter or not self._lake.is_filled_from(table, topic, topic_id):
                    outdated[table] = kind
        return outdated

    def _reset_outdated(self) -> None:
        """Let the lake read output topics that were made anew from their beginning."""
        for table, kind in self._outdated().items():
            topic = self._stream.topic(kind)
            partitions = [p for (t, p) in self._lake.positions() if t == topic]
            topic_id = broker.topic_ids(self._connection, [topic]).get(topic)
            self._lake.reset(table, topic, dict.fromkeys(partitions, -1), topic_id)


class _Outcome(msgspec.Struct):
    """What progress is made again from."""

    source: RecordSource
    model: str = ""
    out_of_order: bool = False
    duplicate_of: int | None = None


def moved_aside(folder: Path) -> Path | None:
    """Rename a folder so that its place is free; None where there is none."""
    if not folder.exists():
        return None
    to = folder.with_name(f"{folder.name}.{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
    folder.rename(to)
    return to
