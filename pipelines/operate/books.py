"""The books of one partition: which events have an outcome, in bounded memory. No input or output."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec
import xxhash

from pipelines.contracts.contract import UNDECODABLE
from pipelines.contracts.messages import Progress, decode_lines
from pipelines.lake.audit import DeadOutcome, ScoreOutcome
from pipelines.record import Received

MOST_OPEN = 10_000  # events without an outcome, and outcomes of each topic without an event, that are kept
MOST_DEAD = 50_000  # latest events without a score that are kept, to find duplicates of them
KINDS = ("missing", "doubled", "stray", "mismatched", "unreadable", "unscored_duplicates")


class Problem(NamedTuple):
    """A problem of the kinds of `Reconciliation`; the offset is that of the event, or of an unreadable outcome."""

    kind: str
    partition: int
    offset: int


class OpenEvent(NamedTuple):
    """An event without an outcome: hash of its id, beginning of its sha256 (None: unreadable), its time, ms."""

    id_hash: int | None
    digest: str | None
    at_ms: int


class EarlyOutcome(NamedTuple):
    """The outcome of an event that was not read yet: what must agree with the event. A dead letter has a `digest`."""

    id_hash: int | None
    digest: str | None
    duplicate_of: int | None


class Books(msgspec.Struct, kw_only=True):
    """What is known of one partition: it can be written to a file, and continued from there.

    Outcomes are compared with events as either comes. What stays open is decided from the progress records: an event
    before the progress without an outcome is missing, an outcome beyond the progress is stray.

    - `start`, `outcomes_from`: of the progress record that these books began with; a recovery begins new ones.
    - `begin`: the first event that is checked; outcomes of earlier ones are passed over.
    - `at`: next offset to read, by kind of topic.
    - `told`: next offset of the newest progress record read.
    - `dead`: latest events without a score. `awaited`: duplicates whose original is not decided yet, by the original.
    """

    partition: int
    start: int
    outcomes_from: dict[str, int]
    begin: int
    at: dict[str, int]
    told: int
    n_scored: int = 0
    n_refused: int = 0
    n_duplicates: int = 0
    n_problems: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    open: dict[int, OpenEvent] = {}
    early: dict[int, EarlyOutcome] = {}
    dead: dict[int, None] = {}
    awaited: dict[int, list[int]] = {}

    @classmethod
    def of(cls, partition: int, progress: Progress, *, begin: int, at: dict[str, int]) -> "Books":
        """New books that begin with a progress record."""
        return cls(
            partition=partition,
            start=progress.start,
            outcomes_from=progress.outcomes_from,
            begin=begin,
            at=at,
            told=progress.next_offset,
        )

    def begins_anew(self, progress: Progress) -> bool:
        """Whether a progress record was written by a recovery, after which earlier outcomes do not count."""
        return (progress.start, progress.outcomes_from) != (self.start, self.outcomes_from)

    @property
    def n_events(self) -> int:
        """Number of events with a verdict."""
        return self.n_scored + self.n_refused + self.n_duplicates + self.n_problems["missing"]

    @property
    def n_early(self) -> dict[str, int]:
        """Number of early outcomes by kind of topic."""
        n_dead = sum(one.digest is not None for one in self.early.values())
        return {"scores": len(self.early) - n_dead, "refused": n_dead}

    def events(self, records: Sequence[Received], id_of: Callable[[bytes | None], str | None]) -> list[Problem]:
        """Add events, in the order of their offsets."""
        problems: list[Problem] = []
        for record in records:
            if record.offset < max(self.at["events"], self.begin):
                continue
            name = id_of(record.value)
            digest = None if record.unreadable else hashlib.sha256(record.value or b"").hexdigest()[:16]
            event = OpenEvent(None if name is None else _hash(name), digest, record.timestamp_ms)
            outcome = self.early.pop(record.offset, None)
            if outcome is None:
                self.open[record.offset] = event
            else:
                problems += self._close(record.offset, event, outcome)
        self.at["events"] = max(self.at["events"], records[-1].offset + 1)
        gone = [offset for offset in self.early if offset < self.at["events"]]
        for offset in gone:
            del self.early[offset]
        return problems + self._note("stray", gone)

    def outcomes(self, kind: str, record: Received, events_topic: str) -> list[Problem]:
        """Add a record of the scores or the refused topic."""
        if record.offset < self.at[kind]:
            return []
        self.at[kind] = record.offset + 1
        form = ScoreOutcome if kind == "scores" else DeadOutcome
        try:
            found: Sequence[ScoreOutcome | DeadOutcome] = decode_lines(record.value, form)  # type: ignore[arg-type]
        except UNDECODABLE:
            return self._note("unreadable", [record.offset])
        return [problem for outcome in found for problem in self._outcome(outcome, events_topic)]

    def lost(self, before: int) -> list[Problem]:
        """All outcomes of events before an offset are read: those that are still open are missing."""
        gone = [offset for offset in self.open if offset < before]
        problems = self._note("missing", gone)
        for offset in gone:
            del self.open[offset]
            problems += self._decided(offset, is_scored=False)
        return problems

    def foreign(self, seen: Iterable[int]) -> list[Problem]:
        """Of some early outcomes, which were read before the newest progress record: those beyond it are stray."""
        gone = [offset for offset in seen if offset >= self.told and offset in self.early]
        for offset in gone:
            del self.early[offset]
        return self._note("stray", gone)

    def _outcome(self, outcome: ScoreOutcome | DeadOutcome, events_topic: str) -> list[Problem]:
        at = outcome.source
        if (at.topic, at.partition) != (events_topic, self.partition) or at.offset < self.start:
            self.n_problems["stray"] += 1
            return [Problem("stray", at.partition, at.offset)]
        if at.offset < self.begin:
            return []
        if isinstance(outcome, ScoreOutcome):
            early = EarlyOutcome(_hash(outcome.event_id), None, None)
        else:
            early = EarlyOutcome(None, outcome.sha256[:16], outcome.duplicate_of)
        event = self.open.pop(at.offset, None)
        if event is not None:
            return self._close(at.offset, event, early)
        if at.offset < self.at["events"] or at.offset in self.early:
            return self._note("doubled", [at.offset])
        self.early[at.offset] = early
        return []

    def _close(self, offset: int, event: OpenEvent, outcome: EarlyOutcome) -> list[Problem]:
        problems, is_scored = [], outcome.digest is None
        if is_scored:
            self.n_scored += 1
            agrees = event.id_hash == outcome.id_hash
        else:
            self.n_duplicates += outcome.duplicate_of is not None
            self.n_refused += outcome.duplicate_of is None
            agrees = event.digest in (None, outcome.digest)
        if not agrees:
            problems += self._note("mismatched", [offset])
        original = outcome.duplicate_of
        if original is not None and original >= self.begin:
            if original in self.dead or original >= offset:
                problems += self._note("unscored_duplicates", [offset])
            elif original in self.open:
                self.awaited.setdefault(original, []).append(offset)
        return problems + self._decided(offset, is_scored=is_scored)

    def _decided(self, offset: int, *, is_scored: bool) -> list[Problem]:
        """Judge the duplicates of an event, and remember it if it has no score."""
        repeats = self.awaited.pop(offset, [])
        if is_scored:
            return []
        self.dead[offset] = None
        if len(self.dead) > MOST_DEAD:
            del self.dead[next(iter(self.dead))]
        return self._note("unscored_duplicates", repeats)

    def _note(self, kind: str, offsets: Sequence[int]) -> list[Problem]:
        self.n_problems[kind] += len(offsets)
        return [Problem(kind, self.partition, offset) for offset in offsets]


def _hash(event_id: str) -> int:
    return xxhash.xxh3_64_intdigest(event_id.encode())
