"""The live loop: read -> one order -> contract -> fold -> outbox -> lanes. Readable top to bottom."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import msgspec

from pipelines import broker
from pipelines.alerts import Model
from pipelines.broker import Position, Reader, Received
from pipelines.errors import BrokerError
from pipelines.lane import Lane
from pipelines.order import KIND_NAMES, Frontier, Mark, Record, Source, sources
from pipelines.outbox import Put
from pipelines.replica import Counters, Replica
from pipelines.state import Snapshot, State, by_kind, from_kinds
from pipelines.takeover import ScorerSetting, StartFrom, TakeOver, all_places, checked_partitions

log = logging.getLogger(__name__)

ASK_EVERY_MS = 20
SWEEP_EVERY_S = 60.0
MAX_IN_HAND = 20_000  # records per partition that the others hold back
KEPT_SNAPSHOTS = 4


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
        self._n_partitions = checked_partitions(connection, stream)
        inputs = ["events", "labels"] if stream.labels else ["events"]
        self._live = broker.stamps_appends(connection, *(stream.topic(kind) for kind in inputs))
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
        taken = TakeOver(self.setting, self.model, self._n_partitions, self.lanes)
        self._bounds = taken.bounds
        progress = taken.claim(start)
        self._replica = Replica(
            taken.restored(progress),
            progress,
            all_places(connection, stream, progress),
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
        """Score until `should_stop()`; then publish what is folded and write a snapshot.

        Where a step raises, no snapshot is written: what it left may be half a step.
        """
        for lane in self.lanes:
            lane.start()
        ended_well = False
        try:
            while not should_stop():
                self.step()
            ended_well = True
        finally:
            self._stop(snapshot=ended_well)

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
                if mark := mark_of(r):
                    self._replica.merge.mark(mark)
            else:
                source = self._by_position[(r.topic, r.partition)]
                records.append(Record(source.kind, r.partition, r.offset, r.timestamp_ms, r.key, r.value, r.unreadable))
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

    def _stop(self, *, snapshot: bool) -> None:
        for lane in self.lanes:
            lane.stop()
        if snapshot and all(lane.failure is None for lane in self.lanes) and self._caught_up:
            self._snapshot()
        self._snapshot_pool.shutdown(wait=True)
        self._reader.close()
        self._raise_lane_failure()


_InputName = Literal["events", "labels"]


class _MarkJson(msgspec.Struct):
    """`below_ms` null is the end of time."""

    below_ms: float | None
    ends: dict[_InputName, list[int]]


def mark_of(record: Received) -> Mark | None:
    """A clock mark, None (with a warning) where the record is none: the next one says how far time has come."""
    try:
        mark = msgspec.json.decode(record.value or b"", type=_MarkJson)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        log.warning(
            "%s [%d], offset %d, is no clock mark and was skipped: %s",
            record.topic, record.partition, record.offset, error,
        )  # fmt: skip
        return None
    return Mark(float("inf") if mark.below_ms is None else mark.below_ms, from_kinds(mark.ends))


def mark_bytes(below_ms: int | None, ends: Frontier, n_partitions: int) -> bytes:
    """The message of a clock mark; `below_ms` None is the end of time."""
    return msgspec.json.encode({"below_ms": below_ms, "ends": by_kind(ends, n_partitions)})
