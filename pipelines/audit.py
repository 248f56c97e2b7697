"""The audits: nothing lost or doubled (reconcile), and live = offline (skew audit)."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines import broker
from pipelines.alerts import Model, Progress
from pipelines.broker import Connection
from pipelines.errors import BrokerError, UnmaskError
from pipelines.lake import Lake
from pipelines.stream import Stream
from pipelines.training import Replay, replay_rows

SCORE_TOLERANCE = 1e-5
MAX_EXAMPLES = 20
_CHUNK = 8_192
Place = tuple[int, int]  # partition, offset


@dataclass(frozen=True)
class Skew:
    """A score that is not what the lake gives; None where the lake lacks its event, or the model is not to be had."""

    partition: int
    offset: int
    event_id: str
    live_hash: str
    offline_hash: str | None
    live_score: float
    offline_score: float | None


class NoModelError(UnmaskError):
    """The model of some scores cannot be had; the message says why."""


@dataclass(frozen=True)
class ModelCheck:
    """The scores of one model: of `n_scores`, `n_checked` were computed again and `n_differs` of those differ.

    `why_not` says why the model could not be had; then none was computed again.
    """

    digest: str
    n_scores: int
    n_checked: int
    n_differs: int
    why_not: str | None = None


@dataclass(frozen=True)
class SkewAudit:
    """Every published score against the features and the score made again from the lake.

    Of `checked` scores `equal` have the features of the lake; `models` tells, by model, which were computed again.
    """

    checked: int
    equal: int
    worst_score_difference: float
    models: list[ModelCheck] = field(default_factory=list)
    examples: list[Skew] = field(default_factory=list)

    @property
    def n_model_checked(self) -> int:
        """Scores computed again by the model that they name."""
        return sum(m.n_checked for m in self.models)

    @property
    def n_score_differs(self) -> int:
        """Scores that came out differently, by more than 1e-5."""
        return sum(m.n_differs for m in self.models)

    @property
    def holds(self) -> bool:
        """Every score was computed again, from equal features, and came out the same."""
        return self.checked == self.equal == self.n_model_checked and self.n_score_differs == 0


def skew_audit(
    lake: Lake,
    stream: Stream,
    *,
    models: Callable[[str], Model],
    progress: Callable[[int, int], None] | None = None,
) -> SkewAudit:
    """Compare every score in the lake with what the lake's events and labels give.

    Args:
        models: the model of a digest, or `NoModelError`; asked once for each model, one model is held at a time.
        progress: as in `training.replay_rows`.
    """
    scores = lake.read("scores")
    replay = replay_rows(lake, stream, progress=progress)
    offline = pl.DataFrame(
        {
            "partition": replay.partition,
            "offset": replay.offset,
            "offline": replay.hashes,
            "row": np.arange(len(replay)),
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
            _score_again(models(digest), replay, rows, into=again, at=at)
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
    model: Model, replay: Replay, rows: NDArray[np.int64], *, into: NDArray[np.float64], at: NDArray[np.uint32]
) -> None:
    for start in range(0, len(rows), _CHUNK):
        chosen = rows[start : start + _CHUNK]
        into[at[start : start + _CHUNK]] = model.score(replay.numeric[chosen], replay.categorical[chosen])


@dataclass(frozen=True)
class Reconciliation:
    """`events = scored + refused + duplicates`, offset by offset, from each partition's start to its progress.

    `missing` events have no record, `doubled` ones more than one, `stray` records no event. `unscored_duplicates` name
    an original that was not scored. `pending` events lie beyond the progress: the scorer has not come to them yet.
    """

    n_events: int
    n_scored: int
    n_refused: int
    n_duplicates: int
    pending: int
    missing: list[Place] = field(default_factory=list)
    doubled: list[Place] = field(default_factory=list)
    stray: list[Place] = field(default_factory=list)
    unscored_duplicates: list[Place] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Nothing is lost, doubled or strange; pending events are neither."""
        return not (self.missing or self.doubled or self.stray or self.unscored_duplicates)


class _At(msgspec.Struct):
    partition: int
    offset: int


class _Outcome(msgspec.Struct):
    """What the audit needs of a score or a dead letter."""

    source: _At
    rule: str | None = None
    duplicate_of: int | None = None


def reconcile(connection: Connection, stream: Stream) -> Reconciliation:
    """Count every event, score and dead letter in Kafka, committed records only, against the progress records.

    Raises:
        BrokerError: a topic or a partition's progress is missing; nothing has been scored yet.
    """
    # Progress first: every outcome below it is in the topics by then; what comes later lies beyond it and is left away.
    progress = {
        p: _last_progress(connection, stream, p) for _, p in broker.partitions_of(connection, stream.topic("progress"))
    }
    published = broker.bounds(connection, [stream.topic("scores"), stream.topic("refused")])
    outcomes: Counter[Place] = Counter()
    scored: set[Place] = set()
    duplicates: dict[Place, int] = {}
    n_refused = 0
    decode = msgspec.json.Decoder(_Outcome).decode
    for batch in broker.read_between(connection, published):
        for record in batch:
            outcome = decode(record.value or b"")
            place = (outcome.source.partition, outcome.source.offset)
            if place[1] >= progress[place[0]].next_offset:
                continue
            outcomes[place] += 1
            if outcome.rule is None:
                scored.add(place)
            elif outcome.duplicate_of is not None:
                duplicates[place] = outcome.duplicate_of
            else:
                n_refused += 1
    events, pending = _events(connection, stream, progress, outcomes)
    return Reconciliation(
        n_events=len(events),
        n_scored=len(scored),
        n_refused=n_refused,
        n_duplicates=len(duplicates),
        pending=pending,
        missing=sorted(events - outcomes.keys()),
        doubled=sorted(place for place, n in outcomes.items() if n > 1),
        stray=sorted(outcomes.keys() - events),
        unscored_duplicates=sorted(
            (p, offset)
            for (p, offset), original in duplicates.items()
            if original >= progress[p].start and (p, original) not in scored
        ),
    )


def _last_progress(connection: Connection, stream: Stream, partition: int) -> Progress:
    record = broker.last_record(connection, stream.topic("progress"), partition)
    if record is None or not record.value:
        raise BrokerError(
            f"{stream.topic('progress')} [{partition}] holds no progress record: nothing has been scored yet; "
            "start the scorer first"
        )
    return msgspec.json.decode(record.value, type=Progress)


def _events(
    connection: Connection, stream: Stream, progress: dict[int, Progress], outcomes: Counter[Place]
) -> tuple[set[Place], int]:
    """Places of all events from each start to the progress, and the number beyond it.

    Where an offset has no outcome, the partition itself is read: it may be no event (a control marker, compaction).
    """
    topic = stream.topic("events")
    ends = {p: (first, end) for (_, p), (first, end) in broker.bounds(connection, [topic]).items()}
    events: set[Place] = set()
    pending = 0
    to_read: dict[tuple[str, int], tuple[int, int]] = {}
    for p, record in progress.items():
        first, end = ends[p]
        due = {(p, offset) for offset in range(record.start, min(record.next_offset, end))}
        pending += max(0, end - record.next_offset)
        if due <= outcomes.keys():
            events |= due
        else:
            events |= {place for place in due if place in outcomes or place[1] < first}
            to_read[(topic, p)] = (max(first, record.start), min(record.next_offset, end))
    for batch in broker.read_between(connection, to_read):
        events |= {(r.partition, r.offset) for r in batch}
    return events, pending
