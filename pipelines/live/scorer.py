"""The live loop: read -> one order -> contract -> fold -> outbox -> lanes. Readable top to bottom."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Literal

import msgspec

from pipelines.errors import BrokerError, FencedError, InternalError, RestoreError
from pipelines.features.snapshot import Snapshot
from pipelines.features.state import State
from pipelines.kafka import topics
from pipelines.kafka.connection import Shared
from pipelines.kafka.port import Position, Received
from pipelines.live.health import Busy, Seldom, Watch
from pipelines.live.lane import Lane
from pipelines.live.outbox import Put
from pipelines.live.replica import Replica, ScorerCounters, is_ahead, needed_places
from pipelines.live.takeover import ScorerSetting, StartFrom, TakeOver, check_inputs, checked_partitions, places_after
from pipelines.model import Model
from pipelines.order import KIND_NAMES, Frontier, Mark, Record, Source, by_kind, from_kinds, sources

log = logging.getLogger(__name__)

ASK_EVERY_MS = 20
SWEEP_EVERY_S = 60.0
LOOK_EVERY_S = 0.25
FIRST_SNAPSHOT_S = 5.0  # while catching up: 5 s, 10 s, 20 s ..., so that it gets on even between frequent kills
MIN_IN_HAND = 1 << 20  # bytes of each partition: about what one fetch brings
KEPT_SNAPSHOTS = 4
MAX_UNTOLD = 5_000  # places that no progress record has told yet; about 300 kB


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
        with Shared.of(setting.connection) as asked:
            self._begin(asked, start)

    def _begin(self, asked: Shared, start: StartFrom | None) -> None:
        setting, stream = self.setting, self.setting.stream
        self._n_partitions = checked_partitions(asked, stream)
        inputs = ["events", "labels"] if stream.labels else ["events"]
        self._live = topics.stamps_appends(asked, *(stream.topic(kind) for kind in inputs))
        if not self._live and stream.topic("clock") not in topics.topic_names(asked):
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
        self._identity: Future[None] | None = None
        self._newest_snapshot: Frontier | None = None
        self._ends: dict[Source, int] = {}
        self._n_answers = 0
        self._watch = Watch(
            red_after_s=setting.health_after.total_seconds(), deadline_s=setting.stall_deadline.total_seconds()
        )
        self._failed_snapshots = Seldom(log)
        self.lanes: list[Lane] = []
        try:
            self._take_over(asked, start)
        except BaseException:
            for lane in self.lanes:
                lane.stop()
            raise
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="aside")  # snapshots and questions about topics
        now_s = time.monotonic()
        self._snapshot_wait_s = min(FIRST_SNAPSHOT_S, setting.snapshot_every.total_seconds())
        self._snapshot_due_s = now_s + self._snapshot_wait_s
        self._sweep_due_s = now_s + SWEEP_EVERY_S
        self._look_due_s = now_s
        self._check_due_s = now_s + setting.check_topics_every.total_seconds()

    def _take_over(self, asked: Shared, start: StartFrom | None) -> None:
        """Fence whoever scored before, learn how far it came, build the state that agrees with it, begin to read."""
        stream, connection = self.setting.stream, self.setting.connection
        taken = TakeOver(self.setting, asked, self.model, self._n_partitions, self.lanes)
        progress = taken.claim(start)
        self._bounds = taken.bounds
        state = taken.restored(progress)
        self._replica = Replica(
            state,
            progress,
            places_after(asked, stream, progress, needed_places(state)),
            order_wait_ms=round(self.setting.order_wait.total_seconds() * 1000),
        )
        self._put(self._replica.restored_puts())
        positions = {self._positions[s]: offset for s, offset in self.state.frontier.items()}
        if not self._live:
            clock = (self._clock_topic, 0)
            positions[clock] = topics.bounds(asked, [self._clock_topic])[clock][0]
        self._reader = connection.reader(positions)
        self._held: set[Source] = set()

    @property
    def state(self) -> State:
        """What has been folded."""
        return self._replica.state

    @property
    def counters(self) -> ScorerCounters:
        """What was done since the start."""
        return self._replica.counters

    @property
    def caught_up(self) -> bool:
        """Whether everything that was in Kafka at the start has been read."""
        return self._caught_up

    @property
    def health(self) -> str:
        """ "ok", or since when what has been standing still, and why."""
        return self._watch.health

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
        self._look()
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
            self._snapshot_wait_s = min(2 * self._snapshot_wait_s, self.setting.snapshot_every.total_seconds())
            self._snapshot_due_s = now_s + self._snapshot_wait_s
            self._snapshot()
        if now_s >= self._sweep_due_s:
            self._sweep_due_s = now_s + SWEEP_EVERY_S
            self.state.windows.sweep(self.state.clock_ms)
        if now_s >= self._check_due_s:
            self._check_due_s = now_s + self.setting.check_topics_every.total_seconds()
            self._check_topics()

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
        limit = max(self.setting.max_in_hand_bytes // len(self._sources), MIN_IN_HAND)
        self._held = merge.hoards(limit) | (self._held & merge.hoards(limit // 2))
        self._reader.hold(self._positions[s] for s in self._held)

    def _ask(self) -> None:
        """Ask the broker where the partitions end; the answer holds for the moment the question was sent."""
        now_ms = time.time() * 1000
        if now_ms - self._asked_ms >= ASK_EVERY_MS:
            self._asked_ms = now_ms
            # A replay's marks say how far time has come: only our own positions are news there.
            ends = self._reader.ends() if self._live else dict.fromkeys(self._by_position, 0)
            self._n_answers += bool(ends)
            for position, end in ends.items():
                if source := self._by_position.get(position):
                    at = self._reader.position(position)
                    self._ends[source] = end
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
                self._snapshot_due_s = time.monotonic()
                self._snapshot_wait_s = self.setting.snapshot_every.total_seconds()

    def _look(self) -> None:
        """What has work to do and does not get on turns health red, then ends the scorer."""
        now_s = time.monotonic()
        if now_s < self._look_due_s:
            return
        self._look_due_s = now_s + LOOK_EVERY_S
        busy = {
            f"partition {lane.partition} publishes": Busy(
                lane.n_commits, lane.trouble or "the commit does not come back"
            )
            for lane in self.lanes
            if len(lane.outbox)
        }
        if self._live and sum(lane.outbox.n_bytes for lane in self.lanes) <= self.setting.max_outbox_bytes:
            busy["asking where the partitions end"] = Busy(self._n_answers, "Kafka does not answer")
            for source, end in self._ends.items():
                position = self._positions[source]
                at = self._reader.position(position)
                if at < end and source not in self._held:
                    why = f"it ends at {end}, nothing comes after {at} (is a transaction of its sender open?)"
                    busy["reading {} [{}]".format(*position)] = Busy(at, why, is_fatal=False)
        self._watch.look(busy, now_s)
        self._watch.check()

    def _check_topics(self) -> None:
        """A topic that has got more partitions, or was made anew, keeps events from us.

        Raises:
            BrokerError: one has more partitions.
            RestoreError: one was made anew.
        """
        if self._identity is not None and self._identity.done():
            error, self._identity = self._identity.exception(), None
            if isinstance(error, RestoreError):
                raise error
        if self._identity is None:
            setting = self.setting
            self._identity = self._aside.submit(check_inputs, setting.connection, setting.stream, self.state.topic_ids)
        for topic in sorted({topic for topic, _ in self._positions.values()}):
            n = self._reader.n_partitions(topic)
            if n is not None and n != self._n_partitions:
                raise BrokerError(
                    f"{topic} had {self._n_partitions} partitions when this scorer started, now it has {n}; nothing in "
                    "the old ones is lost, and all that was read from them is published, but the new ones are not "
                    "read: stop whoever writes to them, then run `unmask recover`, which takes them in"
                )

    def _snapshot(self) -> None:
        """Copy the state now, write it in the background; a slow disk never holds up the loop."""
        if self._snapshotting is not None and not self._snapshotting.done():
            return
        progress = {lane.partition: lane.progress for lane in self.lanes if lane.progress}
        if self._newest_snapshot is not None and is_ahead(self._newest_snapshot, progress):
            return  # one at most may be ahead of what is out, or lanes that stand still would push out every good one
        if self._replica.n_untold(progress) > MAX_UNTOLD:
            return  # a restart would have to tell them all in one record
        snapshot = self._replica.snapshot(progress)
        self._newest_snapshot = snapshot.frontier
        self._snapshotting = self._aside.submit(self._write_snapshot, snapshot)

    def _write_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a snapshot; scoring goes on without it where the disk is full or read-only."""
        folded = sum(snapshot.frontier.values())  # names sort as the fold went, whatever the clock does
        path = self.setting.snapshots / f"{folded:020d}.snapshot"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            snapshot.write(path, fault=self.setting.fault)
            for old in sorted(path.parent.glob("*.snapshot"))[:-KEPT_SNAPSHOTS]:
                old.unlink(missing_ok=True)
        except Exception as error:
            self.counters.n_snapshots_failed += 1
            self._failed_snapshots.warning(
                "a snapshot was not written: %s; scoring goes on, a restart reads more of the input again", error
            )
            with suppress(OSError):
                path.with_suffix(".part").unlink(missing_ok=True)
        else:
            self.counters.n_snapshots += 1

    def _raise_lane_failure(self) -> None:
        for lane in self.lanes:
            if lane.failure is not None:
                raise lane.failure
            if lane.is_dead:
                raise InternalError(f"the thread of partition {lane.partition} has ended and nobody asked it to")

    def _stop(self, *, snapshot: bool) -> None:
        with ThreadPoolExecutor(len(self.lanes)) as pool:  # each may take its time, all together no more than one
            list(pool.map(Lane.stop, self.lanes))
        if snapshot and all(lane.failure is None for lane in self.lanes) and self._caught_up:
            self._snapshot()
        self._aside.shutdown(wait=True)
        self._reader.close()
        for lane in self.lanes:
            if isinstance(lane.failure, FencedError) and lane.was_stopping:
                log.warning("partition %d: another scorer has taken over; it publishes the rest", lane.partition)
            elif lane.failure is not None and snapshot:
                raise lane.failure  # where a step has raised, that error is the one to tell


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
