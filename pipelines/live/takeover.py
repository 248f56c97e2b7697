"""The take-over: find a state that agrees with what is published; fence the owner of a partition and go on."""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Literal, NamedTuple

import msgspec

from pipelines.contracts.messages import PROGRESS_FORMAT, Progress
from pipelines.contracts.stream import Stream
from pipelines.errors import OutboxOverflowError, RestoreError
from pipelines.features.snapshot import Snapshot, SnapshotStore, frontier_of
from pipelines.features.state import State
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection, Shared
from pipelines.kafka.progress import all_progress, progress_of, read_progress
from pipelines.live.lane import Lane, LaneSetting
from pipelines.live.outbox import Outbox
from pipelines.live.replica import is_ahead, places_told, tells_more
from pipelines.live.serving import Serving
from pipelines.live.setting import ScorerSetting, StartFrom
from pipelines.live.shards import place_of
from pipelines.live.topic_checks import input_ids, remade_words
from pipelines.order import EVENT, KIND_NAMES, Frontier, Key, Source, by_kind, from_kinds, sources

log = logging.getLogger(__name__)

CLAIMS_AT_ONCE = 8


class TakeOver:
    """Restores the state of a stream, and claims partitions: the lanes of a replica.

    Args:
        asked: the connection for all requests about topics and records.
        owner: identity of the replica, named in every progress record that it writes.
        start: where to start scoring a partition of which nothing was ever published.
        first: the first progress record of such partitions, from when this replica started; "latest" means then.
    """

    def __init__(
        self,
        setting: ScorerSetting,
        asked: Shared,
        serving: Serving,
        n_partitions: int,
        *,
        owner: str,
        start: StartFrom | None,
        live: bool,
        first: Mapping[int, Progress] = MappingProxyType({}),
    ) -> None:
        self.setting, self._serving = replace(setting, connection=asked), serving
        self._n_partitions, self._start, self._first = n_partitions, start, first
        self._lane_setting = LaneSetting(
            setting.connection,
            setting.stream,
            serving,
            State(setting.stream, n_partitions).digest,
            owner,
            stall_deadline_s=setting.stall_deadline.total_seconds(),
            fault=setting.fault,
            published=setting.published,
            delayed_after_ms=setting.stream.delayed_after_ms if live else None,
        )
        # Read the outputs before the bounds: all published events are then within the bounds.
        self._before = all_progress(asked, setting.stream, n_partitions)
        self.bounds = self._spans()

    def _spans(self) -> dict[Source, tuple[int, int]]:
        """Current first and end offset of every input partition."""
        stream = self.setting.stream
        inputs = sources(self._n_partitions, labels=stream.labels is not None)
        spans = topics.bounds(self.setting.connection, {stream.topic(KIND_NAMES[s.kind]) for s in inputs})
        return {s: spans[stream.topic(KIND_NAMES[s.kind]), s.partition] for s in inputs}

    @cached_property
    def topic_ids(self) -> dict[str, str]:
        """Current Kafka ids of the input topics."""
        return input_ids(self.setting.connection, self.setting.stream)

    def progress(self) -> dict[int, Progress]:
        """What is published of every partition, or where its scoring starts; nobody is fenced.

        Raises:
            RestoreError: this scorer may not start.
        """
        return {partition: self._claim_of(before, partition) for partition, before in self._before.items()}

    def claim(self, outboxes: Mapping[int, Outbox]) -> list[Lane]:
        """Take over partitions: fence their previous owners, and go on from the outboxes.

        Each partition is fenced, read and claimed without delay, several at a time, so that the fenced scorer soon
        learns from the claim that another scorer has taken over. If one claim fails, none is kept.
        """
        lanes: list[Lane] = []
        try:
            with ThreadPoolExecutor(CLAIMS_AT_ONCE, thread_name_prefix="take-over") as pool:
                for done in [pool.submit(self._claim, p, outbox, lanes) for p, outbox in outboxes.items()]:
                    done.result()
        except BaseException:
            for lane in lanes:
                lane.leave()
            raise
        return sorted(lanes, key=lambda lane: lane.partition)

    def _claim(self, partition: int, outbox: Outbox, lanes: list[Lane]) -> None:
        lane = Lane(self._lane_setting, partition, outbox, asked=self.setting.connection)
        lanes.append(lane)
        if outbox.is_warm:
            self._cover(outbox, partition)
        before = read_progress(self.setting.connection, self.setting.stream, partition)
        if before is not None and before.next_offset > self.bounds[Source(EVENT, partition)][1]:
            self.bounds = self._spans()  # the other scorer published until it was fenced
        claim = self._claim_of(before, partition)
        if claim.next_offset < outbox.complete_from:
            raise OutboxOverflowError(
                f"partition {partition}: events from offset {claim.next_offset} are not published, but the outbox "
                f"begins at {outbox.complete_from}: it overflowed; the state is restored from a snapshot"
            )
        if outbox.is_warm:
            outbox.cover(claim.next_offset)
        else:
            outbox.restart(claim.next_offset)
        lane.claim(claim)
        self.setting.fault("between_claims")

    def _cover(self, outbox: Outbox, partition: int) -> None:
        """Drop from an outbox what others have published since it was told so last."""
        position = (self.setting.stream.topic("progress"), partition)
        end = topics.bounds(self.setting.connection, [position[0]])[position][1]
        for batch in topics.read_between(self.setting.connection, {position: (outbox.told_until, end)}):
            for record in batch:
                cover(outbox, progress_of(record), record.offset)

    def _claim_of(self, before: Progress | None, partition: int) -> Progress:
        """The progress record that claims a partition, if that is allowed."""
        setting = self._lane_setting
        if before is None:
            return self._first.get(partition) or self._first_claim(partition, setting, self._start)
        self._check(before, partition, setting)
        return msgspec.structs.replace(
            before,
            owner=setting.owner,
            model=self._serving.champion.digest,
            out_of_turn=[],
            format=PROGRESS_FORMAT,
            topic_ids=self.topic_ids,
        )

    def restored(self, progress: Mapping[int, Progress]) -> State:
        """The state of partitions that are folded together, by their progress records.

        It is that of the newest snapshot not ahead of any of these, else a blank state at the beginning.
        """
        stream, partitions = self.setting.stream, sorted(progress)
        blank = State(stream, self._n_partitions, partitions=partitions)
        store = SnapshotStore(place_of(self.setting.snapshots, stream, partitions))
        store.clear_unfinished()
        with suppress(OSError):  # a disk that cannot be written to is told with the next snapshot
            store.tidy_copies(lambda frontier: not is_ahead(frontier, progress))
        for path, snapshot in store.newest_first(lambda told: not is_ahead(frontier_of(told), progress)):
            try:
                state = self._state_of(snapshot)
            except (RestoreError, OSError, ValueError, KeyError) as error:
                log.warning("snapshot %s is not used: %s", path.name, error)
                continue
            log.info("restored from snapshot %s", path.name)
            return state
        origin = from_kinds(progress[partitions[0]].origin)
        origin = {source: offset for source, offset in origin.items() if source.partition in progress}
        if why := head_is_gone(stream, origin, self.bounds):
            raise RestoreError(f"{why}, and no snapshot can be used; run `unmask recover`")
        blank.frontier = origin
        blank.topic_ids = self.topic_ids
        return blank

    def _state_of(self, snapshot: Snapshot) -> State:
        wide = widened(snapshot, self._n_partitions)
        if why := unfit(wide, self.bounds, self.topic_ids):
            raise RestoreError(f"it {why}")
        state = State.restore(self.setting.stream, wide)
        state.topic_ids = self.topic_ids
        return state

    def _first_claim(self, partition: int, setting: LaneSetting, start: StartFrom | None) -> Progress:
        """The first progress record of a partition."""
        named = f"{self.setting.stream.topic('progress')} [{partition}]"
        if self._was_published(partition):
            raise RestoreError(
                f"{named} has no progress record, although scores were published: it was emptied, and starting over "
                "would score events twice; run `unmask recover`"
            )
        if start is None:
            raise RestoreError(
                f"{named} has no progress record: nothing has been scored yet; choose where to start with "
                "--from earliest or --from latest"
            )
        first, end = self.bounds[Source(EVENT, partition)]
        return first_progress(
            first if start == "earliest" else end,
            n_partitions=self._n_partitions,
            definition=setting.definition,
            model=self._serving.champion.digest,
            owner=setting.owner,
            bounds=self.bounds,
            topic_ids=self.topic_ids,
        )

    def _check(self, before: Progress, partition: int, setting: LaneSetting) -> None:
        """Raise if the stream is not the one that was scored before."""
        changed = what_changed(
            before,
            self.setting.stream,
            partition,
            n_partitions=self._n_partitions,
            definition=setting.definition,
            topic_ids=self.topic_ids,
            end=self.bounds[Source(EVENT, partition)][1],
        )
        if changed:
            raise RestoreError(f"{changed.words}; run `unmask recover`")

    def _was_published(self, partition: int) -> bool:
        """Whether the partition has scores or dead letters."""
        return partition in self._with_outcomes

    @cached_property
    def _with_outcomes(self) -> set[int]:
        """Partitions that have scores or dead letters."""
        names = [self.setting.stream.topic(kind) for kind in ("scores", "refused")]
        positions = [(topic, p) for topic in names for p in range(self._n_partitions)]
        return {p for _, p in topics.last_records(self.setting.connection, positions)}


class Change(NamedTuple):
    """A change of a stream since it was last scored; `words` has no full stop."""

    kind: Literal["remade", "widened", "redefined"]
    words: str


def what_changed(
    before: Progress,
    stream: Stream,
    partition: int,
    *,
    n_partitions: int,
    definition: str,
    topic_ids: Mapping[str, str],
    end: int,
) -> Change | None:
    """Compare the last progress record of a partition with the current stream; `end` is the end of its events."""
    for kind, told in before.topic_ids.items():
        if kind in topic_ids and topic_ids[kind] != told:
            return Change("remade", remade_words(stream.topic(kind), told, topic_ids[kind]))
    if before.next_offset > end:
        return Change(
            "remade",
            f"{stream.topic('events')} [{partition}] ends at offset {end}, but it was scored up to "
            f"{before.next_offset}: the topic was recreated",
        )
    if before.n_partitions > n_partitions:
        return Change("remade", f"{stream.topic('events')} had {before.n_partitions} partitions, now {n_partitions}")
    if before.n_partitions < n_partitions:
        return Change(
            "widened",
            f"the stream had {before.n_partitions} partitions when it was last scored, now {n_partitions}: events with "
            "the same key may be in two partitions",
        )
    if before.definition != definition:
        return Change(
            "redefined",
            "the features have changed since the last run (fields or features in the stream file were changed, or this "
            "version of Unmask computes them differently); restore the stream file if this was not intended",
        )
    return None


def first_progress(
    at: int,
    *,
    n_partitions: int,
    definition: str,
    model: str,
    owner: str,
    bounds: Mapping[Source, tuple[int, int]],
    topic_ids: Mapping[str, str],
) -> Progress:
    """The record of a partition whose scoring starts at offset `at`; all records in Kafka are folded."""
    origin = by_kind({s: span[0] for s, span in bounds.items()}, n_partitions)
    return Progress(
        next_offset=at, start=at, n_scored=0, n_refused=0, n_duplicates=0, n_out_of_turn=0,
        n_partitions=n_partitions, definition=definition, model=model, owner=owner, origin=origin, frontier=None,
        out_of_turn=[], format=PROGRESS_FORMAT, topic_ids=dict(topic_ids), definition_start=at,
    )  # fmt: skip


def widened(snapshot: Snapshot, n_partitions: int) -> Snapshot:
    """Extend a snapshot from before partitions were added; nothing of the new partitions is folded."""
    more = n_partitions - snapshot.meta["n_partitions"]
    if more <= 0:
        return snapshot
    meta = dict(snapshot.meta) | {"n_partitions": n_partitions}
    for name in ("frontier", "arrivals"):
        meta[name] = {kind: [*row, *[0] * more] for kind, row in meta[name].items()}
    meta["watermark_ms"] = [*meta["watermark_ms"], *[0] * more]
    return replace(snapshot, meta=meta)


def unfit(snapshot: Snapshot, bounds: Mapping[Source, tuple[int, int]], topic_ids: Mapping[str, str]) -> str | None:
    """Why the input of the stream does not continue a snapshot; None if it does."""
    told = snapshot.meta.get("topic_ids", {})
    if any(topic_ids.get(kind, topic_id) != topic_id for kind, topic_id in told.items()):
        return "was made from topics that no longer exist"
    if any(offset < bounds[s][0] for s, offset in snapshot.frontier.items()):
        return "is older than the input that Kafka has"
    return None


def head_is_gone(stream: Stream, origin: Frontier, bounds: Mapping[Source, tuple[int, int]]) -> str | None:
    """Description of a partition whose first folded records Kafka has deleted; None if there is none."""
    for source, first in origin.items():
        kept = bounds[source][0]
        if kept > first:
            named = f"{stream.topic(KIND_NAMES[source.kind])} [{source.partition}]"
            return f"{named} starts at offset {kept}: its first {kept - first} records were deleted"
    return None


def cover(outbox: Outbox, progress: Progress, offset: int) -> None:
    """Drop from an outbox what a progress record, at an offset of its topic, says is published."""
    outbox.cover(progress.next_offset, {place[:3] for place in map(tuple, progress.out_of_turn)})
    outbox.told_until = max(outbox.told_until, offset + 1)


def places_after(
    connection: Connection, stream: Stream, progress: Mapping[int, Progress], needed: Frontier
) -> dict[tuple[int, int, int], Key]:
    """Places of all out-of-turn records at or beyond a frontier; may include others.

    The frontiers in the progress records of a partition never shrink, and a record contains no place before the
    frontier of an earlier record. Therefore each partition is read backwards from its end, up to the first record
    whose frontier is not beyond `needed`. Places recorded again by `unmask recover` are read separately.

    Args:
        progress: the last record of the partitions.
        needed: as `Replica.needed_places` says.
    """
    topic = stream.topic("progress")
    spans, retold = {}, {}
    for position, (first, end) in topics.bounds(connection, [topic]).items():
        if (last := progress.get(position[1])) is None:
            continue
        if tells_more(last, needed):
            spans[position] = (max(first, last.outcomes_from.get("progress", 0)), end)
        if last.retold:
            retold[position] = (max(first, last.retold[0]), last.retold[1])
    places: dict[tuple[int, int, int], Key] = {}
    for batch in topics.read_between(connection, retold):
        for record in batch:
            places |= places_told(progress_of(record))
    width = 64
    while spans:
        starts = {p: (max(first, end - width), end) for p, (first, end) in spans.items()}
        done = set()
        for batch in topics.read_between(connection, starts):
            for record in batch:
                with suppress(RestoreError):  # a foreign record has no places
                    told = progress_of(record)
                    places |= places_told(told)
                    if not tells_more(told, needed):
                        done.add((record.topic, record.partition))
        spans = {p: (first, starts[p][0]) for p, (first, _) in spans.items() if p not in done and starts[p][0] > first}
        width *= 2
    return places
