"""The live loop: read -> one order -> contract -> fold -> outbox -> lanes. Readable top to bottom."""

import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import msgspec

from pipelines import broker
from pipelines.alerts import Model, Progress
from pipelines.broker import Connection, Position, Reader, Received
from pipelines.errors import BrokerError, RestoreError
from pipelines.faults import Fault, no_fault
from pipelines.lane import Lane, LaneSetting
from pipelines.order import EVENT, KIND_NAMES, Frontier, Key, Mark, Record, Source, sources
from pipelines.outbox import Put
from pipelines.replica import Counters, Replica, is_ahead, places_told
from pipelines.state import Snapshot, State, by_kind, from_kinds
from pipelines.stream import Stream

log = logging.getLogger(__name__)

ASK_EVERY_MS = 20
SWEEP_EVERY_S = 60.0
MAX_IN_HAND = 20_000  # records per partition that the others hold back
KEPT_SNAPSHOTS = 4
StartFrom = Literal["earliest", "latest"]


@dataclass(frozen=True)
class ScorerSetting:
    """Where a scorer works and how much it may hold."""

    stream: Stream
    connection: Connection
    snapshots: Path
    snapshot_every: timedelta = timedelta(seconds=30)
    order_wait: timedelta = timedelta(milliseconds=50)  # slack for the broker's clock and for its answers' way
    max_outbox_bytes: int = 64 << 20
    fault: Fault = no_fault


class Scorer:
    """One replica: owns every partition of the stream, folds in the one order, publishes exactly once.

    Args:
        start: where to begin if nothing was ever published: what lies before is folded into the state only.

    Raises:
        RestoreError: there is no progress and no `start`, or no state can be built that agrees with the progress.
        BrokerError: a topic is missing, or their numbers of partitions differ.
    """

    def __init__(self, setting: ScorerSetting, model: Model, *, start: StartFrom | None) -> None:
        self.setting, self.model = setting, model
        stream, connection = setting.stream, setting.connection
        self._n_partitions = _checked_partitions(connection, stream)
        self._live = broker.stamps_appends(connection, stream.topic("events"))
        if not self._live and stream.topic("clock") not in broker.topic_names(connection):
            raise BrokerError(
                f"{stream.topic('events')} must have message.timestamp.type=LogAppendTime (only a replay, which brings "
                f"its own clock in {stream.topic('clock')}, has not)"
            )
        self._sources = sources(self._n_partitions, labels=stream.labels is not None)
        self._positions: dict[Source, Position] = {
            s: (stream.topic(KIND_NAMES[s.kind]), s.partition) for s in self._sources
        }
        self._by_position = {position: source for source, position in self._positions.items()}
        self._clock_topic = stream.topic("clock")
        self._asked_ms = 0.0
        self._caught_up = False
        self._snapshotting: Future[None] | None = None
        self.lanes: list[Lane] = []
        try:
            self._take_over(start)
        except BaseException:
            for lane in self.lanes:
                lane.stop()
            raise
        self._snapshot_pool = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._snapshot_due_s = time.monotonic() + setting.snapshot_every.total_seconds()
        self._sweep_due_s = time.monotonic() + SWEEP_EVERY_S

    def _take_over(self, start: StartFrom | None) -> None:
        """Fence whoever scored before, learn how far it came, build the state that agrees with it, begin to read."""
        stream, connection = self.setting.stream, self.setting.connection
        blank = State(stream, self._n_partitions)
        lane_setting = LaneSetting(
            connection, stream, self.model, blank.digest, uuid.uuid4().hex[:12], self.setting.fault
        )
        for partition in range(self._n_partitions):
            self.lanes.append(Lane(lane_setting, partition))
        spans = broker.bounds(connection, {topic for topic, _ in self._by_position})
        self._bounds = {source: spans[position] for source, position in self._positions.items()}
        progress = self._claim(lane_setting, start)
        self._replica = Replica(
            self._restored(blank, progress),
            progress,
            _all_places(connection, stream, progress),
            order_wait_ms=round(self.setting.order_wait.total_seconds() * 1000),
        )
        self._put(self._replica.restored_puts())
        positions = {self._positions[s]: offset for s, offset in self.state.frontier.items()}
        if not self._live:
            clock = (self._clock_topic, 0)
            positions[clock] = broker.bounds(connection, [self._clock_topic])[clock][0]
        self._reader = Reader(connection, positions)
        self._held: set[Source] = set()

    @property
    def state(self) -> State:
        """What has been folded."""
        return self._replica.state

    @property
    def counters(self) -> Counters:
        """What was done since the start."""
        return self._replica.counters

    @property
    def caught_up(self) -> bool:
        """Whether everything that was in Kafka at the start has been read."""
        return self._caught_up

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Score until `should_stop()`; then publish what is folded and write a snapshot."""
        for lane in self.lanes:
            lane.start()
        try:
            while not should_stop():
                self.step()
        finally:
            self._stop()

    def step(self) -> None:
        """One turn of the loop."""
        self._raise_lane_failure()
        if sum(lane.outbox.n_bytes for lane in self.lanes) > self.setting.max_outbox_bytes:
            time.sleep(0.01)  # back-pressure: nothing is read until the lanes have made room
            return
        self._take(self._reader.poll())
        self._hold_hoards()
        self._ask()
        for puts in self._replica.advance(fault=self.setting.fault):
            self._put(puts)
        self._note_catching_up()
        now_s = time.monotonic()
        if now_s >= self._snapshot_due_s:
            self._snapshot_due_s = now_s + self.setting.snapshot_every.total_seconds()
            self._snapshot()
        if now_s >= self._sweep_due_s:
            self._sweep_due_s = now_s + SWEEP_EVERY_S
            self.state.windows.sweep(self.state.clock_ms)

    def _take(self, received: Sequence[Received]) -> None:
        if received:
            self.setting.fault("after_poll" if self._caught_up else "mid_restore")
        records = []
        for r in received:
            if r.topic == self._clock_topic:
                self._replica.merge.mark(mark_of(r.value or b""))
            else:
                source = self._by_position[(r.topic, r.partition)]
                records.append(Record(source.kind, r.partition, r.offset, r.timestamp_ms, r.key, r.value))
        self.counters.n_read += len(records)
        self._replica.merge.add(records)

    def _hold_hoards(self) -> None:
        """Hold partitions that are far ahead of the others, until half of what they have in hand is folded."""
        merge = self._replica.merge
        self._held = merge.hoards(MAX_IN_HAND) | (self._held & merge.hoards(MAX_IN_HAND // 2))
        self._reader.hold(self._positions[s] for s in self._held)

    def _ask(self) -> None:
        """Ask the broker where the partitions end; the answer holds for the moment the question was sent."""
        now_ms = time.time() * 1000
        if now_ms - self._asked_ms >= ASK_EVERY_MS:
            self._asked_ms = now_ms
            # A replay's marks say how far time has come: only our own positions are news there.
            ends = self._reader.ends() if self._live else dict.fromkeys(self._by_position, 0)
            for position, end in ends.items():
                if source := self._by_position.get(position):
                    at = self._reader.position(position)
                    self._replica.merge.observe(source, position=at, end=end, asked_ms=now_ms, live=self._live)
        if self._live and self._caught_up:
            self._replica.merge.tick(time.time() * 1000)

    def _put(self, puts: Sequence[Put]) -> None:
        for lane, put in zip(self.lanes, puts, strict=True):
            lane.outbox.put(put)

    def _note_catching_up(self) -> None:
        if not self._caught_up:
            behind = [s for s, (_, end) in self._bounds.items() if self._reader.position(self._positions[s]) < end]
            self._caught_up = not behind
            if self._caught_up:
                log.info("caught up with %d records", self.counters.n_folded)

    def _claim(self, setting: LaneSetting, start: StartFrom | None) -> dict[int, Progress]:
        """Take every lane over; at the very first start, write where scoring begins."""
        claimed = {}
        for lane in self.lanes:
            if lane.progress is None:
                claim = self._first_claim(lane.partition, setting, start)
            else:
                self._check(lane.progress, lane.partition, setting)
                claim = msgspec.structs.replace(
                    lane.progress, owner=setting.owner, model=self.model.digest, out_of_turn=[]
                )
            lane.claim(claim)
            self.setting.fault("between_claims")
            claimed[lane.partition] = claim
        return claimed

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
        first, end = self._bounds[Source(EVENT, partition)]
        at = first if start == "earliest" else end
        origin = by_kind({s: span[0] for s, span in self._bounds.items()}, self._n_partitions)
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
        end = self._bounds[Source(EVENT, partition)][1]
        if before.next_offset > end:
            raise RestoreError(
                f"{self.setting.stream.topic('events')} [{partition}] ends at {end}, though it was scored up to "
                f"{before.next_offset}: the topic was made anew; give the stream new topics (`topics = ...` in the "
                "stream file)"
            )

    def _was_published(self, partition: int) -> bool:
        """Whether anything but claims was ever published."""
        connection, stream = self.setting.connection, self.setting.stream
        if any(lane.progress and lane.progress.frontier for lane in self.lanes):
            return True
        return any(broker.last_record(connection, stream.topic(kind), partition) for kind in ("scores", "refused"))

    def _restored(self, blank: State, progress: Mapping[int, Progress]) -> State:
        """The newest snapshot at or before every progress record, else an empty state at the log's beginning."""
        self.setting.snapshots.mkdir(parents=True, exist_ok=True)
        for unfinished in self.setting.snapshots.glob("*.part"):
            unfinished.unlink()
        for path in sorted(self.setting.snapshots.glob("*.snapshot"), reverse=True):
            try:
                snapshot = Snapshot.read(path)
                if is_ahead(snapshot.frontier, progress):
                    log.info(
                        "snapshot %s is ahead of what was published: dropped, another order may be published now",
                        path.name,
                    )
                    path.unlink()
                    continue
                if any(offset < self._bounds[s][0] for s, offset in snapshot.frontier.items()):
                    log.warning("snapshot %s is older than the input kept", path.name)
                    continue
                state = State.restore(self.setting.stream, snapshot)
                log.info("restored from snapshot %s", path.name)
                return state
            except (RestoreError, OSError, ValueError, KeyError) as error:
                log.warning("snapshot %s is not used: %s", path.name, error)
        origin = from_kinds(progress[0].origin)
        for source, first in origin.items():
            kept = self._bounds[source][0]
            if kept > first:
                raise RestoreError(
                    f"{self.setting.stream.topic(KIND_NAMES[source.kind])} [{source.partition}] begins at {kept}, its "
                    f"first {kept - first} records are gone, and no snapshot fits; put a snapshot back that is newer "
                    "than what was deleted and not ahead of the progress"
                )
        blank.frontier = origin
        return blank

    def _snapshot(self) -> None:
        """Copy the state now, write it in the background; a slow disk never holds up the loop."""
        if self._snapshotting is not None:
            if not self._snapshotting.done():
                return
            if error := self._snapshotting.exception():
                log.warning("the last snapshot was not written: %s", error)
        progress = {lane.partition: lane.progress for lane in self.lanes if lane.progress}
        self._snapshotting = self._snapshot_pool.submit(self._write_snapshot, self._replica.snapshot(progress))

    def _write_snapshot(self, snapshot: Snapshot) -> None:
        folded = sum(snapshot.frontier.values())  # names sort as the fold went, whatever the clock does
        snapshot.write(self.setting.snapshots / f"{folded:020d}.snapshot", fault=self.setting.fault)
        self.counters.n_snapshots += 1
        for old in sorted(self.setting.snapshots.glob("*.snapshot"))[:-KEPT_SNAPSHOTS]:
            old.unlink(missing_ok=True)

    def _raise_lane_failure(self) -> None:
        for lane in self.lanes:
            if lane.failure is not None:
                raise lane.failure

    def _stop(self) -> None:
        for lane in self.lanes:
            lane.stop()
        if all(lane.failure is None for lane in self.lanes) and self._caught_up:
            self._snapshot()
        self._snapshot_pool.shutdown(wait=True)
        self._reader.close()
        self._raise_lane_failure()


def mark_of(value: bytes) -> Mark:
    """A clock mark: {"below_ms": number or null for the end of time, "ends": {"events": [..], "labels": [..]}}."""
    document = msgspec.json.decode(value)
    below = document["below_ms"]
    return Mark(float("inf") if below is None else below, from_kinds(document["ends"]))


def mark_bytes(below_ms: int | None, ends: Frontier, n_partitions: int) -> bytes:
    """The message of a clock mark; `below_ms` None is the end of time."""
    return msgspec.json.encode({"below_ms": below_ms, "ends": by_kind(ends, n_partitions)})


def _checked_partitions(connection: Connection, stream: Stream) -> int:
    """Number of partitions, the same in every topic of the stream but the clock."""
    kinds = ["events", "scores", "alerts", "refused", "progress"] + (["labels"] if stream.labels else [])
    counts = {kind: len(broker.partitions_of(connection, stream.topic(kind))) for kind in kinds}
    if len(set(counts.values())) != 1:
        raise BrokerError(
            f"the topics of {stream.topics} must have as many partitions as its events, however: {counts}"
        )
    return counts["events"]


def _all_places(
    connection: Connection, stream: Stream, progress: Mapping[int, Progress]
) -> dict[tuple[int, int, int], Key]:
    """Where records that came out of turn were folded, as all progress records tell."""
    places: dict[tuple[int, int, int], Key] = {}
    if any(p.n_out_of_turn for p in progress.values()):
        for batch in broker.read_between(connection, broker.bounds(connection, [stream.topic("progress")])):
            for record in batch:
                places |= places_told(msgspec.json.decode(record.value or b"", type=Progress))
    return places
