"""The audits: no event is lost or scored twice (reconcile), and live and offline scores are equal (skew audit)."""

import hashlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import polars as pl
import xxhash
from numpy.typing import NDArray

from pipelines.contracts.contract import UNDECODABLE, text_of
from pipelines.contracts.messages import Progress, decode_lines
from pipelines.contracts.stream import Stream
from pipelines.errors import BrokerError, UnmaskError
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.progress import read_progress
from pipelines.lake.alert_audit import AlertCounts
from pipelines.lake.feature_table import FeatureTable, feature_table
from pipelines.lake.shards import Workers
from pipelines.lake.tables import Lake
from pipelines.model import Model
from pipelines.record import Received

SCORE_TOLERANCE = 1e-5
MAX_EXAMPLES = 20
MAX_PLACES = 1_000  # listed for each kind of problem
PROBLEMS = ("missing", "doubled", "stray", "mismatched", "unreadable", "unscored_duplicates")
_CHUNK = 8_192
Place = tuple[int, int]  # partition, offset


@dataclass(frozen=True)
class Skew:
    """A score that differs from the lake; None if its event is not in the lake or its model is not available."""

    partition: int
    offset: int
    event_id: str
    live_hash: str
    offline_hash: str | None
    live_score: float
    offline_score: float | None


class NoModelError(UnmaskError):
    """The model of some scores is not available; the message says why."""


@dataclass(frozen=True)
class ModelCheck:
    """The scores of one model: of `n_scores`, `n_checked` were recomputed and `n_differs` of those differ.

    `why_not` is the reason why the model is not available; then none was recomputed.
    """

    digest: str
    n_scores: int
    n_checked: int
    n_differs: int
    why_not: str | None = None


@dataclass(frozen=True)
class SkewAudit:
    """Result of comparing every published score with features and scores recomputed from the lake.

    Of the `checked` scores, `equal` have the same features as in the lake; `models` counts recomputed scores by model.
    """

    checked: int
    equal: int
    worst_score_difference: float
    models: list[ModelCheck] = field(default_factory=list)
    examples: list[Skew] = field(default_factory=list)

    @property
    def n_model_checked(self) -> int:
        """Number of scores recomputed with the model that they name."""
        return sum(m.n_checked for m in self.models)

    @property
    def n_score_differs(self) -> int:
        """Number of scores that differ by more than 1e-5."""
        return sum(m.n_differs for m in self.models)

    @property
    def holds(self) -> bool:
        """Whether there are scores, and all were recomputed from equal features with the same result."""
        return 0 < self.checked == self.equal == self.n_model_checked and self.n_score_differs == 0


def skew_audit(
    lake: Lake,
    stream: Stream,
    folder: Path,
    *,
    models: Callable[[str], Model],
    since: Mapping[int, int] | None = None,
    workers: Workers | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SkewAudit:
    """Recompute the features and score of every score in the lake from its events and labels, and compare.

    The features come from the feature table, a fold independent of the live scorer's state.

    Args:
        folder: folder of the stream's feature tables.
        models: returns the model of a digest or raises `NoModelError`; called once per model.
        since: first offset to compare, per partition; earlier scores used another feature definition.
        workers, progress: as in `feature_table`.
    """
    lake = lake.snapshot()
    scores = lake.read("scores")
    if since and any(since.values()):
        begin = pl.col("partition").replace_strict(dict(since), default=0, return_dtype=pl.Int64)
        scores = scores.filter(pl.col("offset") >= begin)
    table = feature_table(lake, stream, folder, workers=workers, progress=progress)
    offline = pl.DataFrame(
        {
            "partition": table.partition,
            "offset": table.offset,
            "offline": table.hashes,
            "row": np.arange(len(table)),
        }
    )
    both = scores.join(offline, on=["partition", "offset"], how="left", maintain_order="left")
    same = (
        (both["features_hash"].str.to_integer(base=16, dtype=pl.UInt64) == both["offline"]).fill_null(False).to_numpy()
    )
    again = np.full(both.height, np.nan)
    live = both["score"].to_numpy()
    checks = []
    for (digest,), group in both.with_row_index("at").group_by("model", maintain_order=True):
        places = group.filter(pl.col("row").is_not_null())
        at, rows = places["at"].to_numpy(), places["row"].to_numpy()
        why_not = None
        try:
            _score_again(models(digest), table, rows, into=again, at=at)
        except NoModelError as error:
            why_not = str(error)
        difference = np.abs(live[at] - again[at])
        checks.append(
            ModelCheck(
                digest=digest,
                n_scores=group.height,
                n_checked=int((~np.isnan(difference)).sum()),
                n_differs=int((difference > SCORE_TOLERANCE).sum()),
                why_not=why_not,
            )
        )
    difference = np.abs(live - again)
    examples = [
        Skew(
            row["partition"],
            row["offset"],
            row["event_id"],
            row["features_hash"],
            None if row["offline"] is None else f"{row['offline']:016x}",
            row["score"],
            None if np.isnan(again[i]) else float(again[i]),
        )
        for i in np.flatnonzero(~same | (difference > SCORE_TOLERANCE))[:MAX_EXAMPLES]
        for row in [both.row(int(i), named=True)]
    ]
    return SkewAudit(
        checked=both.height,
        equal=int(same.sum()),
        worst_score_difference=float(np.nanmax(difference, initial=0.0)),
        models=checks,
        examples=examples,
    )


def _score_again(
    model: Model, table: FeatureTable, rows: NDArray[np.int64], *, into: NDArray[np.float64], at: NDArray[np.uint32]
) -> None:
    for start in range(0, len(rows), _CHUNK):
        chosen = rows[start : start + _CHUNK]
        into[at[start : start + _CHUNK]] = model.score(table.numeric[chosen], table.categorical[chosen])


@dataclass(frozen=True)
class Reconciliation:
    """`events = scored + refused + duplicates`, offset by offset, from each partition's start to its progress.

    `missing` events have no record, or Kafka deleted them before they were scored; `doubled` events have several;
    `stray` records have no event. `mismatched` records belong to another event than the one at their offset: another
    event id, or other bytes for a dead letter.
    `unreadable` records (partition, offset in the scores or refused topic) were not written by Unmask.
    `unscored_duplicates` are duplicates whose original was not scored. The first `MAX_PLACES` of each kind are listed;
    `n_problems` counts all. `pending` events are beyond the progress and not scored yet. `since` is the first offset
    of the current features per partition; the `n_scored_since` scores from there can be compared in a skew audit.
    """

    n_events: int
    n_scored: int
    n_refused: int
    n_duplicates: int
    pending: int
    missing: list[Place] = field(default_factory=list)
    doubled: list[Place] = field(default_factory=list)
    stray: list[Place] = field(default_factory=list)
    mismatched: list[Place] = field(default_factory=list)
    unreadable: list[Place] = field(default_factory=list)
    unscored_duplicates: list[Place] = field(default_factory=list)
    n_problems: Mapping[str, int] = field(default_factory=dict)
    since: Mapping[int, int] = field(default_factory=dict)
    n_scored_since: int = 0
    alerts: AlertCounts = field(default_factory=AlertCounts)

    @property
    def holds(self) -> bool:
        """Whether there is no problem; pending events are not a problem."""
        return not any(self.n_problems.values()) and self.alerts.holds

    @property
    def is_complete(self) -> bool:
        """Whether there is no problem and no event is pending."""
        return self.holds and not self.pending

    def words(self) -> str:
        """The result as text: one line for the sum, one for each kind of problem, and one for alerts if there are any.

        >>> print(Reconciliation(9, 5, 2, 1, 0, missing=[(0, 7)], n_problems={"missing": 1}).words())
        9 events = 5 scored + 2 refused + 1 duplicates; 0 are not scored yet
        1 missing, first (partition, offset): (0, 7)
        """
        lines = [
            f"{self.n_events:,} events = {self.n_scored:,} scored + {self.n_refused:,} refused + "
            f"{self.n_duplicates:,} duplicates; {self.pending:,} are not scored yet"
        ]
        for kind, n in self.n_problems.items():
            if n:
                places = ", ".join(map(str, getattr(self, kind)[:5]))
                lines.append(f"{n:,} {kind.replace('_', ' ')}, first (partition, offset): {places}")
        if self.alerts != AlertCounts():
            lines.append(self.alerts.words())
        return "\n".join(lines)


def reconcile(connection: Connection, stream: Stream) -> Reconciliation:
    """Compare all committed events, scores and dead letters in Kafka with the progress records.

    Partitions are checked one by one. Memory: about 20 bytes per event of the largest partition.

    Raises:
        BrokerError: a topic or a partition's progress is missing; nothing has been scored yet.
        RestoreError: a partition's progress cannot be read.
    """
    events, scores, refused, alerts = (stream.topic(kind) for kind in ("events", "scores", "refused", "alerts"))
    # Where the events begin is read before the progress, which is read again at the end: see `_lost`.
    begins = {position: first for position, (first, _) in topics.bounds(connection, [events]).items()}
    # Read the progress before the outcomes: all outcomes before it are then in the topics; later ones are skipped.
    progress = {
        p: _last_progress(connection, stream, p) for _, p in topics.partitions_of(connection, stream.topic("progress"))
    }
    spans = topics.bounds(connection, [scores, refused, events, alerts])
    found, told = Findings(), AlertCounts()
    for p, record in progress.items():
        outcomes = Outcomes(stream, p, record, found)
        from_ = record.outcomes_from
        published = {
            (topic, p): (max(first, from_.get(kind, 0)), end)
            for kind, topic in (("scores", scores), ("refused", refused))
            for first, end in [spans.get((topic, p), (0, 0))]
        }
        for batch in topics.read_between(connection, published):
            outcomes.published(batch)
        first, end = spans.get((events, p), (0, 0))
        outcomes.compare_with(first)
        due = (max(first, record.start), min(record.next_offset, end))
        for batch in topics.read_between(connection, {(events, p): due}):
            outcomes.events(batch)
        if from_ or any(spans.get((topic, p), (1, 1))[0] for topic in (scores, alerts)):
            told.unchecked += 1
        else:
            batches = topics.read_between(connection, {(alerts, p): spans[alerts, p]})
            told.add(outcomes.n_over_threshold, chain.from_iterable(batches), record)
        lost = _lost(connection, stream, p, record, begins.get((events, p), 0))
        outcomes.close(lost=lost, pending=max(0, end - max(record.next_offset, lost.stop)))
    return Reconciliation(
        found.n_events,
        found.n_scored,
        found.n_refused,
        found.n_duplicates,
        found.pending,
        **{kind: sorted(places) for kind, places in found.places.items()},
        n_problems=found.n_problems,
        since={p: record.definition_start for p, record in progress.items()},
        n_scored_since=found.n_scored_since,
        alerts=told,
    )


def _lost(connection: Connection, stream: Stream, partition: int, progress: Progress, begin: int) -> range:
    """Offsets that Kafka has deleted before they were scored.

    A scorer may still publish what it had read before; so what is published by now does not count. Control markers of
    transactions that were deleted look like lost events.
    """
    if begin <= progress.next_offset:
        return range(progress.next_offset, progress.next_offset)
    return range(max(progress.next_offset, _last_progress(connection, stream, partition).next_offset), begin)


@dataclass
class Findings:
    """Findings of the audit over all partitions so far."""

    n_events: int = 0
    n_scored: int = 0
    n_refused: int = 0
    n_duplicates: int = 0
    n_scored_since: int = 0
    pending: int = 0
    places: dict[str, list[Place]] = field(default_factory=lambda: {kind: [] for kind in PROBLEMS})
    n_problems: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PROBLEMS, 0))

    def note(self, kind: str, partition: int, offsets: Sequence[int] | NDArray[np.int64]) -> None:
        self.n_problems[kind] += len(offsets)
        room = max(0, MAX_PLACES - len(self.places[kind]))
        self.places[kind] += [(partition, int(offset)) for offset in offsets[:room]]


class _At(msgspec.Struct):
    topic: str
    partition: int
    offset: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class ScoreOutcome(msgspec.Struct):
    """The fields of a score that the audit needs."""

    source: _At
    event_id: str
    alert: bool = False


class DeadOutcome(msgspec.Struct):
    """The fields of a dead letter that the audit needs."""

    source: _At
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    duplicate_of: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None


class Outcomes:
    """Compares the scores and dead letters of one partition (`published`) with its events (`events`)."""

    def __init__(self, stream: Stream, partition: int, progress: Progress, found: Findings) -> None:
        self._partition, self._progress, self._found = partition, progress, found
        self._events, self._scores = stream.topic("events"), stream.topic("scores")
        self._event_id = event_id_reader(stream)
        self._scored, self._dead = _OutcomeIndex(), _OutcomeIndex()
        self.n_over_threshold = 0
        self._original = array("q")  # for dead letters: offset of the original of a duplicate, -1 for other refusals

    def published(self, records: Sequence[Received]) -> None:
        """Add scores and dead letters of this partition."""
        for record in records:
            outcomes: Sequence[ScoreOutcome | DeadOutcome]
            try:
                outcomes = decode_lines(record.value, ScoreOutcome if record.topic == self._scores else DeadOutcome)
            except UNDECODABLE:
                self._found.note("unreadable", self._partition, [record.offset])
                continue
            for outcome in outcomes:
                self._add(outcome)

    def _add(self, outcome: "ScoreOutcome | DeadOutcome") -> None:
        at = outcome.source
        if (at.topic, at.partition) != (self._events, self._partition):
            self._found.note("stray", at.partition, [at.offset])
        elif at.offset < self._progress.next_offset:
            if isinstance(outcome, ScoreOutcome):
                self.n_over_threshold += outcome.alert
                self._scored.add(at.offset, xxhash.xxh3_64_intdigest(outcome.event_id.encode()))
            else:
                self._dead.add(at.offset, int(outcome.sha256[:16], 16))
                self._original.append(-1 if outcome.duplicate_of is None else outcome.duplicate_of)

    def compare_with(self, first: int) -> None:
        """After all outcomes are added: find repetitions, and account for events deleted from Kafka before `first`."""
        found, partition, progress = self._found, self._partition, self._progress
        self._scored.close()
        order = self._dead.close()
        scored, dead = self._scored.offsets, self._dead.offsets
        original = np.frombuffer(self._original, np.int64)
        if order is not None:
            original = original[order]
        repeats = np.flatnonzero(original >= 0)
        found.n_scored += _n_distinct(scored)
        found.n_scored_since += _n_distinct(scored[np.searchsorted(scored, progress.definition_start) :])
        found.n_duplicates += _n_distinct(dead[repeats])
        found.n_refused += len(dead) - len(repeats)
        twice = [
            scored[1:][scored[1:] == scored[:-1]],
            dead[1:][dead[1:] == dead[:-1]],
            dead[self._is_in(dead, scored)],
        ]
        found.note("doubled", partition, np.unique(np.concatenate(twice)))
        due = repeats[original[repeats] >= progress.start]
        found.note("unscored_duplicates", partition, dead[due[~self._is_in(original[due], scored)]])
        # Deleted events cannot be read: an outcome counts as evidence of its event; without one, the event is missing.
        for begin in range(progress.start, min(first, progress.next_offset), _CHUNK):
            gone = np.arange(begin, min(begin + _CHUNK, first, progress.next_offset))
            found.n_events += len(gone)
            found.note("missing", partition, gone[~(self._is_in(gone, scored) | self._is_in(gone, dead))])
        for column in (self._scored, self._dead):
            column.seen = (column.offsets >= progress.start) & (column.offsets < first)

    def events(self, records: Sequence[Received]) -> None:
        """Add events between the start and the progress."""
        found, partition = self._found, self._partition
        found.n_events += len(records)
        offsets = np.fromiter((r.offset for r in records), np.int64, len(records))
        at_scored, is_scored = self._scored.find(offsets)
        at_dead, is_dead = self._dead.find(offsets)
        found.note("missing", partition, offsets[~(is_scored | is_dead)])
        wrong: list[int] = []
        for i in np.flatnonzero(is_scored).tolist():
            text = self._event_id(records[i].value)
            if text is None or xxhash.xxh3_64_intdigest(text.encode()) != self._scored.hashes[at_scored[i]]:
                wrong.append(records[i].offset)
        for i in np.flatnonzero(is_dead).tolist():
            digest = hashlib.sha256(records[i].value or b"").hexdigest()
            if records[i].unreadable is None and int(digest[:16], 16) != self._dead.hashes[at_dead[i]]:
                wrong.append(records[i].offset)
        found.note("mismatched", partition, sorted(set(wrong)))

    def close(self, *, lost: range, pending: int) -> None:
        """After all events are added: outcomes without an event are stray, and what is lost is missing."""
        self._found.pending += pending
        self._found.n_events += len(lost)
        self._found.note("missing", self._partition, lost)
        for column in (self._scored, self._dead):
            self._found.note("stray", self._partition, np.unique(column.offsets[~column.seen]))

    @staticmethod
    def _is_in(offsets: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.bool_]:
        if not len(among):
            return np.zeros(len(offsets), bool)
        at = np.minimum(np.searchsorted(among, offsets), len(among) - 1)
        return among[at] == offsets


class _OutcomeIndex:
    """Offsets and 64-bit hashes of outcomes, sorted by offset once closed; `seen` marks those with an event."""

    def __init__(self) -> None:
        self._offsets, self._hashes = array("q"), array("Q")

    def add(self, offset: int, digest: int) -> None:
        self._offsets.append(offset)
        self._hashes.append(digest)

    def close(self) -> NDArray[np.int64] | None:
        """Sort by offset; returns the order, or None if they were sorted (a lane publishes in order)."""
        self.offsets = np.frombuffer(self._offsets, np.int64)
        self.hashes = np.frombuffer(self._hashes, np.uint64)
        self.seen = np.zeros(len(self.offsets), bool)
        if np.all(self.offsets[1:] >= self.offsets[:-1]):
            return None
        order = np.argsort(self.offsets, kind="stable")
        self.offsets, self.hashes = self.offsets[order], self.hashes[order]
        return order

    def find(self, offsets: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Index of each offset, and whether it exists; those with an equal hash are marked as seen."""
        n = len(self.offsets)
        at = np.searchsorted(self.offsets, offsets)
        there = np.zeros(len(offsets), bool)
        inside = at < n
        there[inside] = self.offsets[at[inside]] == offsets[inside]
        after = np.searchsorted(self.offsets, offsets[there], side="right")
        for begin, end in zip(at[there].tolist(), after.tolist(), strict=True):
            self.seen[begin:end] = True
        return at, there


def _n_distinct(rising: NDArray[np.int64]) -> int:
    return int(np.count_nonzero(rising[1:] != rising[:-1])) + bool(len(rising))


def event_id_reader(stream: Stream) -> Callable[[bytes | None], str | None]:
    """Returns a decoder of the event id only; its result is None if the id cannot be read."""
    kind = msgspec.defstruct("EventId", [(stream.event_id, str | int | bool | None, None)], gc=False)
    decode = msgspec.json.Decoder(kind).decode

    def event_id(value: bytes | None) -> str | None:
        try:
            found = getattr(decode(value or b""), stream.event_id)
            return None if found is None else text_of(found)
        except UNDECODABLE:
            return None

    return event_id


def _last_progress(connection: Connection, stream: Stream, partition: int) -> Progress:
    progress = read_progress(connection, stream, partition)
    if progress is None:
        raise BrokerError(
            f"{stream.topic('progress')} [{partition}] has no progress record: nothing has been scored yet; "
            "start the scorer first"
        )
    return progress
