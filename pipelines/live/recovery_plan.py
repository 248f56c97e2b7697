"""Decides why a scorer cannot start and how to recover; no input or output."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from pipelines.contracts.messages import Progress
from pipelines.contracts.stream import StormRules, Stream
from pipelines.errors import RestoreError
from pipelines.live.takeover import Change, first_progress, head_is_gone, what_changed
from pipelines.order import EVENT, Frontier, Source, by_kind, from_kinds

MAX_PLACES = 1_000  # per progress record
OUTPUTS = ("scores", "refused", "progress")
Name = Literal["garbled", "emptied", "remade", "widened", "redefined", "headless", "forgotten", "unlike_lake"]


@dataclass(frozen=True)
class Published:
    """Summary of a partition's scores and dead letters, with the offsets of their first and last event."""

    first: int
    last: int
    n_scored: int
    n_refused: int
    n_duplicates: int
    n_out_of_turn: int
    model: str


@dataclass(frozen=True)
class Facts:
    """The current situation. `progress` is None for partitions without a readable progress record.

    Args:
        definition: digest of the stream file's features.
        counts: number of partitions per topic kind.
        topic_ids: ids of the input topics by kind, if the broker supports them.
        spans: first available and end offset of every input partition; (0, 0) if a topic lacks a partition.
        output_ends: end of every partition, per kind in `OUTPUTS`.
        garbled: why the last progress record of a partition cannot be read.
        readable: the newest readable record of those partitions.
        published: summary of the partitions without progress.
        snapshot_fits: whether a scorer would find a usable snapshot.
        newest_meta: metadata of the newest readable snapshot, usable or not.
        lake_ends: next offset to ingest, per source; empty if there is no lake.
        told: places of out-of-turn records that are recorded in the lake.
        fields_joined: fields of the stream that the lake's events lack.
        outdated: kinds of output topics that were recreated since the lake was filled from them.
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
    def head_gone(self) -> str | None:
        """Which of the first records Kafka has deleted, in words; None if it has them all."""
        return head_is_gone(self.stream, self._origin, self.spans)

    @property
    def lake_reaches(self) -> bool:
        """Whether the lake ends behind the first record that Kafka has."""
        ends = self.lake_ends
        return bool(ends) and all(ends.get(s, 0) >= self.spans[s][0] for s in self._origin)

    @property
    def lake_can_begin(self) -> bool:
        """Whether a state of the stream file can begin with the lake."""
        return self.lake_reaches and not self.fields_joined

    @property
    def _origin(self) -> Frontier:
        return from_kinds(self.known[min(self.known)].origin)

    @property
    def n_input(self) -> int:
        """Number of input records in Kafka."""
        return sum(end - first for first, end in self.spans.values())


@dataclass(frozen=True)
class RecoveryPlan:
    """What happened, what is kept, lost and scored again, and what is done.

    Args:
        n_records: number of records to read and fold again, by the command or at the next start of the scorer.
        progress: records to write, per partition.
        add_partitions: new number of partitions of topics, by kind.
        aside: folders to rename; nothing is deleted.
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
        """The plan as titles and sentences, for display."""
        seconds = f"about {self.n_records / records_per_s:,.0f} s" if records_per_s else "not measured: no events"
        at = f" at {records_per_s:,.0f} per second, as just measured" if records_per_s else ""
        return [
            ("what happened", self.found),
            ("kept", self.kept),
            ("lost", self.lost),
            ("scored again", self.scored_again),
            ("time", f"{seconds} ({self.n_records:,} records are read{at})"),
        ]


def plan(facts: Facts) -> RecoveryPlan | None:
    """The next step; None if a scorer can start. There may be several problems: call it again after each step.

    Raises:
        RestoreError: recovery is not possible.
    """
    for look in (_garbled, _emptied, _remade, _widened, _redefined, _headless, _unlike_lake):
        if found := look(facts):
            return found
    return None


def _garbled(facts: Facts) -> RecoveryPlan | None:
    """The last progress record was not written by Unmask, but an earlier one agrees with what was published."""
    good = {
        p: record
        for p, record in facts.readable.items()
        if p not in facts.published or facts.published[p].last < record.next_offset
    }
    if not good:
        return None
    return RecoveryPlan(
        "garbled",
        f"{next(iter(facts.garbled[p] for p in good))}",
        "everything; the newest valid progress record is written again",
        "nothing",
        "nothing",
        progress={p: [msgspec.structs.replace(record, out_of_turn=[])] for p, record in good.items()},
    )


def _emptied(facts: Facts) -> RecoveryPlan | None:
    """Progress is lost although something was published: it is rebuilt from the scores and dead letters."""
    known = facts.known
    n_told = max((record.n_partitions for record in known.values()), default=facts.counts["progress"])
    empty = [p for p, record in facts.progress.items() if record is None and p < n_told]
    if not any(p in facts.published for p in empty) and not any(record.frontier for record in known.values()):
        return None
    if not empty:
        return None
    meta = facts.newest_meta or {}
    told_ids: dict[str, str] = meta.get("topic_ids") or dict(facts.topic_ids)  # type: ignore[assignment]
    # Offset 0: what was folded before the first score is unknown. A restart uses a snapshot, the lake or all of Kafka.
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
    lost = "the offset where scoring started, if it was not the first published event"
    if n_flagged and not facts.told:
        lost += f"; the order of {n_flagged:,} events that arrived out of turn: features near them may differ"
    if facts.stream.storms != StormRules():
        lost += "; the counts of open groups of alerts, and what was used of today's cap"
    named = ", ".join(map(str, empty))
    garbled = "; ".join(facts.garbled[p] for p in empty if p in facts.garbled)
    return RecoveryPlan(
        "emptied",
        garbled
        or f"{facts.stream.topic('progress')} has no record of partitions {named}, although scores were published: it "
        "was emptied",
        "every score and dead letter; the progress records are rebuilt from them",
        lost,
        "nothing that has a score or a dead letter; in a partition without any, every event that Kafka has",
        n_records=sum(out.n_scored + out.n_refused + out.n_duplicates for out in facts.published.values()),
        progress=records,
    )


def _remade(facts: Facts) -> RecoveryPlan | None:
    """An input topic was deleted and recreated: scoring and its counts start over."""
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
            f"{words}; it has {n} partitions, but other topics of {stream.topics} have "
            f"{max(facts.counts.values())}: add partitions to the events topic, then run `unmask recover` again"
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
        memory = before.alert_memory if before and "events" not in remade else None
        records[p] = [msgspec.structs.replace(record, outcomes_from=begin, alert_memory=memory)]
    what = " and ".join(sorted(remade))
    return RecoveryPlan(
        "remade",
        words,
        "everything that was published (later audits ignore it); snapshots and the lake, under another name",
        "the history of entities from the old topic: it starts over with the records that Kafka has now",
        f"every event of the new topic: {n_again:,}"
        if "events" in remade
        else f"nothing; only {what} were recreated, the events continue where they were",
        n_records=facts.n_input,
        progress=records,
        add_partitions={kind: n for kind, count in facts.counts.items() if count < n},
        aside=("snapshots", "lake"),
    )


def _widened(facts: Facts) -> RecoveryPlan | None:
    """Partitions were added: the old ones continue, the new ones are scored from their beginning."""
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
    return RecoveryPlan(
        "widened",
        f"partitions were added: the stream had {told}, its events topic now has {n}",
        "everything; the missing partitions of the other topics are created",
        "duplicates are not recognised if their key has moved to another partition"
        + ("; the history of such a key begins anew" if facts.stream.folds_by_partition else ""),
        f"nothing; the new partitions are scored from their beginning: {n_new:,} events",
        n_records=n_new,
        progress=records,
        add_partitions=add,
    )


def _redefined(facts: Facts) -> RecoveryPlan | None:
    """The features have changed: the state is rebuilt, published messages stay."""
    known = facts.known
    if not known or all(record.definition == facts.definition for record in known.values()):
        return None
    words = next(c.words for p, record in known.items() if (c := _change(facts, p, record)))
    # The lake has only the fields of the old stream file. It can be rebuilt if Kafka still has the whole input.
    lake_anew = bool(facts.fields_joined) and all(first == 0 for first, _ in facts.spans.values())
    lost = "nothing"
    again = "the state is built with the new features before the switch; a running scorer goes on until then"
    if facts.head_gone and facts.lake_can_begin:
        lost = "nothing, if the lake starts where scoring started; otherwise the history before the lake"
    elif facts.head_gone:
        lost = "the history of entities before the first record that Kafka has"
        again = "a running scorer ends; run `unmask recover` once more after this step, to build the state"
    return RecoveryPlan(
        "redefined",
        words,
        "every score and dead letter (what was refused stays refused; `unmask refused replay` sends it again)"
        + ("" if lake_anew else ", the lake"),
        f"{lost}; the skew audit compares only scores from now on. Snapshots"
        + (f" and the lake (it lacks {', '.join(facts.fields_joined)})" if lake_anew else "")
        + " are renamed and rebuilt",
        f"nothing; {again}",
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


def _headless(facts: Facts) -> RecoveryPlan | None:
    """No snapshot can be used and Kafka has deleted the beginning: the state is rebuilt from the lake if possible."""
    known = facts.known
    if facts.snapshot_fits or len(known) < facts.n_partitions:
        return None
    if not (gone := facts.head_gone):
        return None
    found = f"{gone}, and no snapshot can be used"
    if facts.lake_reaches:
        return RecoveryPlan(
            "headless",
            found,
            "everything; the state is rebuilt from the lake",
            "nothing, if the lake starts where scoring started; otherwise the history before the lake",
            "nothing",
            n_records=sum(facts.lake_ends.values()),
            aside=("snapshots",),
            from_lake=True,
        )
    n_lost = sum(max(0, facts.spans[Source(EVENT, p)][0] - record.next_offset) for p, record in known.items())
    new_origin = by_kind({s: span[0] for s, span in facts.spans.items()}, facts.n_partitions)
    return RecoveryPlan(
        "forgotten",
        f"{found}, and the lake does not have the records that Kafka has deleted",
        "every score and dead letter; snapshots and the lake, under another name",
        "the history of entities before the first record that Kafka has"
        + (f"; {n_lost:,} events were deleted before scoring, `unmask reconcile` lists them" if n_lost else ""),
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


def _unlike_lake(facts: Facts) -> RecoveryPlan | None:
    """An output topic was recreated: the lake reads it from its beginning, and scores are counted from now on."""
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
    return RecoveryPlan(
        "unlike_lake",
        f"{named} was deleted and recreated since the lake was filled from it",
        "the rows of the lake; the new topic is read from its beginning",
        "records that only the deleted topic had" + ("; audits count scores from now on" if records else ""),
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
