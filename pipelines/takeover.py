"""The take-over: fence whoever scored before, learn how far it came, find a state that agrees with it."""

import logging
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec

from pipelines import broker
from pipelines.alerts import Model, Progress
from pipelines.broker import Connection
from pipelines.errors import BrokerError, RestoreError
from pipelines.faults import Fault, no_fault
from pipelines.lane import Lane, LaneSetting, all_progress, progress_of, read_progress
from pipelines.order import EVENT, KIND_NAMES, Frontier, Key, Source, sources
from pipelines.replica import is_ahead, places_told, tells_more
from pipelines.state import Snapshot, State, by_kind, from_kinds
from pipelines.stream import Stream

log = logging.getLogger(__name__)

CLAIMS_AT_ONCE = 8
StartFrom = Literal["earliest", "latest"]


@dataclass(frozen=True)
class ScorerSetting:
    """Where a scorer works and how much it may hold."""

    stream: Stream
    connection: Connection
    snapshots: Path
    snapshot_every: timedelta = timedelta(seconds=30)
    order_wait: timedelta = timedelta(milliseconds=50)  # slack for the broker's clock and for its answers' way
    stall_deadline: timedelta = timedelta(minutes=5)  # without progress for so long, the scorer ends
    health_after: timedelta = timedelta(seconds=30)  # without progress for so long, health is red
    count_partitions_every: timedelta = timedelta(seconds=20)
    max_outbox_bytes: int = 64 << 20
    max_in_hand_bytes: int = 128 << 20  # of records that were read and wait for those of other partitions
    fault: Fault = no_fault


class TakeOver:
    """One take-over of every partition of a stream.

    Args:
        asked: for all questions about topics and records.
        lanes: filled with one claimed lane per partition; the caller stops them whatever happens.
    """

    def __init__(
        self, setting: ScorerSetting, asked: broker.Shared, model: Model, n_partitions: int, lanes: list[Lane]
    ) -> None:
        self.setting, self.model, self.lanes = replace(setting, connection=asked), model, lanes
        self._n_partitions = n_partitions
        self._blank = State(setting.stream, n_partitions)
        self._lane_setting = LaneSetting(
            setting.connection,
            setting.stream,
            model,
            self._blank.digest,
            uuid.uuid4().hex[:12],
            stall_deadline_s=setting.stall_deadline.total_seconds(),
            fault=setting.fault,
        )
        # Before the bounds: what was published before lies in what was there after.
        self._before = all_progress(asked, setting.stream, n_partitions)
        self.bounds = self._spans()

    def _spans(self) -> dict[Source, tuple[int, int]]:
        """First offset kept and end of every input partition as of now."""
        stream = self.setting.stream
        inputs = sources(self._n_partitions, labels=stream.labels is not None)
        spans = broker.bounds(self.setting.connection, {stream.topic(KIND_NAMES[s.kind]) for s in inputs})
        return {s: spans[stream.topic(KIND_NAMES[s.kind]), s.partition] for s in inputs}

    def claim(self, start: StartFrom | None) -> dict[int, Progress]:
        """Take every lane over; at the very first start, write where scoring begins.

        Each partition is fenced, read and claimed in one go, several at a time: whoever was fenced learns within a
        moment from the claim that somebody has taken over.
        """
        for partition, before in self._before.items():
            self._claim_of(before, partition, start)  # a scorer that must not start has fenced nobody yet
        with ThreadPoolExecutor(min(self._n_partitions, CLAIMS_AT_ONCE), thread_name_prefix="take-over") as pool:
            claims = list(pool.map(lambda partition: self._claim(partition, start), range(self._n_partitions)))
        self.lanes.sort(key=lambda lane: lane.partition)
        return dict(enumerate(claims))

    def _claim(self, partition: int, start: StartFrom | None) -> Progress:
        lane = Lane(self._lane_setting, partition)
        self.lanes.append(lane)
        before = read_progress(self.setting.connection, self.setting.stream, partition)
        if before is not None and before.next_offset > self.bounds[Source(EVENT, partition)][1]:
            self.bounds = self._spans()  # the other one went on until it was fenced
        claim = self._claim_of(before, partition, start)
        lane.claim(claim)
        self.setting.fault("between_claims")
        return claim

    def _claim_of(self, before: Progress | None, partition: int, start: StartFrom | None) -> Progress:
        """What is written to own a partition, if it may be owned."""
        setting = self._lane_setting
        if before is None:
            return self._first_claim(partition, setting, start)
        self._check(before, partition, setting)
        return msgspec.structs.replace(before, owner=setting.owner, model=self.model.digest, out_of_turn=[])

    def restored(self, progress: Mapping[int, Progress]) -> State:
        """The newest snapshot at or before every progress record, else an empty state at the log's beginning."""
        blank = self._blank
        for unfinished in self.setting.snapshots.glob("*.part"):
            with suppress(OSError):  # of a full or read-only disk the snapshots themselves will tell
                unfinished.unlink()
        for path in sorted(self.setting.snapshots.glob("*.snapshot"), reverse=True):
            try:
                snapshot = Snapshot.read(path)
                if is_ahead(snapshot.frontier, progress):
                    log.info(
                        "snapshot %s is ahead of what was published: dropped, another order may be published now",
                        path.name,
                    )
                    with suppress(OSError):
                        path.unlink()
                    continue
                if any(offset < self.bounds[s][0] for s, offset in snapshot.frontier.items()):
                    log.warning("snapshot %s is older than the input kept", path.name)
                    continue
                state = State.restore(self.setting.stream, snapshot)
                log.info("restored from snapshot %s", path.name)
                return state
            except (RestoreError, OSError, ValueError, KeyError) as error:
                log.warning("snapshot %s is not used: %s", path.name, error)
        origin = from_kinds(progress[0].origin)
        for source, first in origin.items():
            kept = self.bounds[source][0]
            if kept > first:
                raise RestoreError(
                    f"{self.setting.stream.topic(KIND_NAMES[source.kind])} [{source.partition}] begins at {kept}, its "
                    f"first {kept - first} records are gone, and no snapshot fits; put a snapshot back that is newer "
                    "than what was deleted and not ahead of the progress"
                )
        blank.frontier = origin
        return blank

    def _first_claim(self, partition: int, setting: LaneSetting, start: StartFrom | None) -> Progress:
        """Where scoring begins."""
        named = f"{self.setting.stream.topic('progress')} [{partition}]"
        if self._was_published(partition):
            raise RestoreError(
                f"{named} has no progress record though scores were published: it was emptied, and starting anew would "
                "score events twice; put it back, or replay the stream into new topics (`topics = ...` in the stream "
                "file)"
            )
        if start is None:
            raise RestoreError(
                f"{named} has no progress record: nothing was scored yet; say where to begin with --from earliest or "
                "--from latest"
            )
        first, end = self.bounds[Source(EVENT, partition)]
        at = first if start == "earliest" else end
        origin = by_kind({s: span[0] for s, span in self.bounds.items()}, self._n_partitions)
        return Progress(
            next_offset=at, start=at, n_scored=0, n_refused=0, n_duplicates=0, n_out_of_turn=0,
            n_partitions=self._n_partitions, definition=setting.definition, model=self.model.digest,
            owner=setting.owner, origin=origin, frontier=None, out_of_turn=[],
        )  # fmt: skip

    def _check(self, before: Progress, partition: int, setting: LaneSetting) -> None:
        """Refuse to go on where the stream is not the one that was scored."""
        if before.n_partitions != self._n_partitions:
            raise RestoreError(
                f"the stream had {before.n_partitions} partitions when it was scored last, now {self._n_partitions}: "
                "events of one key lie in two partitions now; replay the stream into new topics"
            )
        if before.definition != setting.definition:
            raise RestoreError(
                "the fields or features in the stream file are not those that were scored last; put them back, or give "
                "the stream new topics (`topics = ...` in the stream file)"
            )
        end = self.bounds[Source(EVENT, partition)][1]
        if before.next_offset > end:
            raise RestoreError(
                f"{self.setting.stream.topic('events')} [{partition}] ends at {end}, though it was scored up to "
                f"{before.next_offset}: the topic was made anew; give the stream new topics (`topics = ...` in the "
                "stream file)"
            )

    def _was_published(self, partition: int) -> bool:
        """Whether anything but claims was ever published."""
        return any(p and p.frontier for p in self._before.values()) or partition in self._with_outcomes

    @cached_property
    def _with_outcomes(self) -> set[int]:
        """Partitions that hold scores or dead letters."""
        topics = [self.setting.stream.topic(kind) for kind in ("scores", "refused")]
        positions = [(topic, p) for topic in topics for p in range(self._n_partitions)]
        return {p for _, p in broker.last_records(self.setting.connection, positions)}


def checked_partitions(connection: Connection, stream: Stream) -> int:
    """Number of partitions, the same in every topic of the stream but the clock."""
    kinds = ["events", "scores", "alerts", "refused", "progress"] + (["labels"] if stream.labels else [])
    counts = {kind: len(broker.partitions_of(connection, stream.topic(kind))) for kind in kinds}
    if len(set(counts.values())) != 1:
        raise BrokerError(
            f"the topics of {stream.topics} must have as many partitions as its events, however: {counts}"
        )
    return counts["events"]


def places_after(
    connection: Connection, stream: Stream, progress: Mapping[int, Progress], needed: Frontier
) -> dict[tuple[int, int, int], Key]:
    """Where records that came out of turn were folded, of all that lie at or behind a frontier; maybe of others too.

    The frontiers of one partition's progress records never shrink, and a record tells no place that lies before the
    frontier of an earlier one: that was folded before everything else, by places told with it. So each partition's
    records are read from the end back to the first whose frontier covers no more than what is not needed.

    Args:
        progress: the last record of every partition.
        needed: as `Replica.needed_places` says.
    """
    topic = stream.topic("progress")
    spans = {
        position: span
        for position, span in broker.bounds(connection, [topic]).items()
        if tells_more(progress[position[1]], needed)
    }
    places: dict[tuple[int, int, int], Key] = {}
    width = 64
    while spans:
        starts = {p: (max(first, end - width), end) for p, (first, end) in spans.items()}
        done = set()
        for batch in broker.read_between(connection, starts):
            for record in batch:
                told = progress_of(record)
                places |= places_told(told)
                if not tells_more(told, needed):
                    done.add((record.topic, record.partition))
        spans = {p: (first, starts[p][0]) for p, (first, _) in spans.items() if p not in done and starts[p][0] > first}
        width *= 2
    return places
