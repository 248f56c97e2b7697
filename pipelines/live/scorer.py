"""The live loop: read -> one order -> contract -> fold -> outbox -> lanes."""

import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipelines.contracts.messages import Progress
from pipelines.contracts.stream import Stream
from pipelines.errors import BrokerError, FencedError, LoginError, RejectedError
from pipelines.features.ahead import compile_ahead
from pipelines.features.snapshot import SnapshotStore
from pipelines.features.state import State
from pipelines.kafka import topics
from pipelines.kafka.connection import Shared
from pipelines.kafka.letters import refused_earlier
from pipelines.kafka.port import Assignment, Member, Position
from pipelines.live.clock import ClockWriter
from pipelines.live.health import Watch
from pipelines.live.input import ASK_EVERY_MS, ASK_SELDOM_MS, Input
from pipelines.live.lane import Lane
from pipelines.live.metrics import Lag, ScorerCounters
from pipelines.live.outbox import Outbox, Put
from pipelines.live.ownership import REGRANT_S, Ownership
from pipelines.live.replica import Replica, needed_places
from pipelines.live.serving import Serving
from pipelines.live.setting import ScorerSetting, StartFrom
from pipelines.live.shards import Shard, place_of
from pipelines.live.snapshots import SnapshotSchedule
from pipelines.live.stopping import STOP_S, all_within
from pipelines.live.takeover import TakeOver, places_after
from pipelines.live.topic_checks import TopicChecks, checked_partitions, stamped_by_broker
from pipelines.model import Model
from pipelines.order import EVENT, Source

log = logging.getLogger(__name__)

SWEEP_EVERY_S = 60.0
LOOK_EVERY_S = 0.25
PACE_S, FEW = 0.005, 500  # least time of a step that read few records: many small steps would cost more than they gain
STEP_IN_S, MAX_RANK = 0.25, 3  # without marks of others for so long, the owner of the next partition writes them


class Scorer:
    """One replica: publishes exactly once the partitions that it owns.

    It folds the whole stream in the one order; if every window is about the key, only the partitions that it owns, each
    in an order of its own.

    Args:
        start: where to start scoring a partition of which nothing was ever published; earlier events only update the
            state.
        member: the membership that gives partitions to this replica; by default the stream's consumer group, which it
            joins once its state has reached what is published.

    Raises:
        RestoreError: there is no progress and no `start`, or no state can be built that agrees with the progress.
        BrokerError: a topic is missing, or the numbers of partitions differ.
    """

    def __init__(
        self, setting: ScorerSetting, serving: Serving, *, start: StartFrom | None, member: Member | None = None
    ) -> None:
        compile_ahead()
        self.setting, self.serving, self._start = setting, serving, start
        self.owner = uuid.uuid4().hex[:12]
        log.info("this replica is %s", self.owner)
        self.counters = ScorerCounters()
        self._first: dict[int, Progress] = {}
        self._member = member
        self._has_joined = member is not None
        self._assigned: Assignment | None = None
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="aside")  # writes snapshots and checks topics
        self._by_partition = setting.stream.folds_by_partition
        self._shards: dict[int, Shard] = {}  # by their first partition
        self._restored: dict[int, Shard] = {}  # of partitions that are being claimed
        with Shared.of(setting.connection) as asked:
            self._restore(asked)
        self._watch = Watch(
            red_after_s=setting.health_after.total_seconds(), deadline_s=setting.stall_deadline.total_seconds()
        )
        now_s = time.monotonic()
        self._look_due_s = now_s
        self._sweep_due_s = now_s + SWEEP_EVERY_S
        self._check_due_s = now_s + setting.check_topics_every.total_seconds()

    def _restore(self, asked: Shared) -> None:
        """Build a state that agrees with what is published, start reading, and claim what is ours already."""
        setting, stream = self.setting, self.setting.stream
        self._n_partitions, self._live = checked_partitions(asked, stream), stamped_by_broker(asked, stream)
        outside = topics.bounds(asked, [stream.topic("clock"), stream.topic("progress")])
        clock_first, clock_end = outside[stream.topic("clock"), 0]
        taken = self._take_over(asked)
        progress = taken.progress()
        self._first = {p: told for p, told in progress.items() if told.next_offset == told.start}
        self._ownership = Ownership(
            self._claim,
            progress,
            owner=self.owner,
            regrant_s=0.0 if self._has_joined else REGRANT_S,
            stall_s=setting.stall_deadline.total_seconds(),
            is_warm=not self._by_partition,
            aside=ThreadPoolExecutor(self._n_partitions + 1, thread_name_prefix="ownership"),
        )
        reading: dict[Position, int] = {}
        if not (self._by_partition and self._live):
            reading[stream.topic("clock"), 0] = clock_first
        if not self._by_partition:
            for p, outbox in enumerate(self._ownership.outboxes):
                position = stream.topic("progress"), p
                outbox.told_until = reading[position] = outside[position][1]
        self._clock = ClockWriter(setting.connection, stream, self._n_partitions, by=self.owner)
        self._topic_checks = TopicChecks(setting.connection, stream, self._aside, taken.topic_ids, self._n_partitions)
        self._input = Input(
            setting.connection.reader(reading),
            stream,
            reading,
            live=self._live,
            clock_end=clock_end,
            max_bytes=setting.max_in_hand_bytes,
            owner=self.owner,
            ask_every_ms=self._ask_every_ms,
            tailed=self._ownership.tailed,
        )
        if not self._by_partition:
            shard = self._shards[0] = self._shard(asked, taken, progress)
            self._put(shard, shard.replica.restored_puts())
            self._input.follow([shard])
        if self._member is not None:
            assigned = self._member.assigned().partitions
            self._ownership.claim_now(lambda outboxes: self._claimed(asked, taken, outboxes), assigned)
            self._follow_lanes()

    @property
    def _ask_every_ms(self) -> int:
        """Least time between two requests for the end offsets.

        Where each partition is folded for itself, events wait only for the labels of their partition, and these take
        effect after a delay; the rest is for the health check.
        """
        if not (self._by_partition and self._live):
            return ASK_EVERY_MS
        labels, wait_ms = self.setting.stream.labels, self.setting.order_wait.total_seconds() * 1000
        delay_ms = ASK_SELDOM_MS if labels is None else round((labels.lag_ms - wait_ms) / 2)
        return min(max(delay_ms, ASK_EVERY_MS), ASK_SELDOM_MS)

    def _shard(self, asked: Shared, taken: TakeOver, progress: Mapping[int, Progress]) -> Shard:
        """Restore partitions that are folded together, by their progress."""
        setting, stream = self.setting, self.setting.stream
        state = taken.restored(progress)
        replica = Replica(
            state,
            progress,
            places_after(asked, stream, progress, needed_places(state)),
            order_wait_ms=round(setting.order_wait.total_seconds() * 1000),
            own_clock=self._by_partition and self._live,
            counters=self.counters,
            refused=refused_earlier(
                asked, stream, progress, {s.partition: at for s, at in state.frontier.items() if s.kind == EVENT}
            ),
        )
        store = SnapshotStore(place_of(setting.snapshots, stream, state.partitions), fault=setting.fault)
        every_s = setting.snapshot_every.total_seconds()
        snapshots = SnapshotSchedule(store, replica, self._aside, every_s=every_s, owner=self._named)
        return Shard(replica, snapshots, ends={source: taken.bounds[source][1] for source in state.frontier})

    def _named(self) -> dict[str, str | int]:
        """Which replica this is, since which generation of the group; -1 before it has joined."""
        return {"replica": self.owner, "generation": self._assigned.generation if self._assigned else -1}

    def _take_over(self, asked: Shared) -> TakeOver:
        return TakeOver(
            self.setting,
            asked,
            self.serving,
            self._n_partitions,
            owner=self.owner,
            start=self._start,
            live=self._live,
            first=self._first,
        )

    def _claim(self, outboxes: Mapping[int, Outbox]) -> list[Lane]:
        with Shared.of(self.setting.connection) as asked:
            taken = self._take_over(asked)
            taken.progress()  # before any fencing: this scorer may not be allowed to go on
            return self._claimed(asked, taken, outboxes)

    def _claimed(self, asked: Shared, taken: TakeOver, outboxes: Mapping[int, Outbox]) -> list[Lane]:
        """Claim partitions; where each is folded for itself, restore their states then, because all is published."""
        lanes = taken.claim(outboxes)
        try:
            for lane in lanes if self._by_partition else ():
                assert lane.progress is not None
                shard = self._shard(asked, taken, {lane.partition: lane.progress})
                lane.outbox.put(*shard.replica.restored_puts())
                self._restored[lane.partition] = shard
        except BaseException:
            for lane in lanes:
                lane.leave()
            raise
        return lanes

    @property
    def states(self) -> list[State]:
        """The current states: one, or one for each partition owned if these are folded for themselves."""
        return [shard.replica.state for shard in self._shards.values()]

    @property
    def entities(self) -> dict[str, int]:
        """Number of entities in the states, by field."""
        return self._by_entity([state.windows.n_entities for state in self.states])

    @property
    def dormant(self) -> dict[str, int]:
        """Number of dormant entities (lifetime facts only) among them, by field."""
        return self._by_entity([state.windows.n_dormant for state in self.states])

    def _by_entity(self, counts: Sequence[Sequence[int]]) -> dict[str, int]:
        return {name: sum(one[i] for one in counts) for i, name in enumerate(self.setting.stream.entities)}

    @property
    def remembered(self) -> dict[str, int]:
        """Number of ids and labels remembered, and of those dropped early because there were too many."""
        counts = [state.remembered for state in self.states]
        return {what: sum(one[what] for one in counts) for what in ("ids", "ids_evicted", "reports", "reports_evicted")}

    @property
    def model(self) -> Model:
        """The model in use."""
        return self.serving.champion

    @property
    def lanes(self) -> list[Lane]:
        """The lanes of the partitions that this replica owns."""
        return [lane for _, lane in sorted(self._ownership.lanes.items())]

    @property
    def progress(self) -> dict[int, Progress]:
        """What is published of every partition, by this replica or others."""
        return self._ownership.progress

    @property
    def caught_up(self) -> bool:
        """Whether all records that were in Kafka at the start, or at a claim, have been read."""
        return all(shard.caught_up for shard in self._shards.values()) and (
            self._has_all_shards or not self._by_partition
        )

    @property
    def _has_all_shards(self) -> bool:
        assigned = self._assigned
        return assigned is not None and assigned.generation >= 0 and assigned.partitions == self._shards.keys()

    @property
    def health(self) -> str:
        """ "ok", or which component makes no progress, since when and why."""
        return self._watch.health

    @property
    def stall(self) -> str:
        """What this process itself does not get done, and why; "" if it makes progress or only waits for others."""
        return self._watch.stall

    @property
    def not_ready(self) -> str:
        """Why this replica does not do its share yet; "" if it has caught up and owns what its group gives it."""
        if not self.caught_up:
            return "it has not caught up"
        if self._assigned is None or self._assigned.generation < 0:
            return "it has not joined its group"
        if self._ownership.lanes.keys() != self._assigned.partitions or not self._ownership.is_settled:
            return "partitions are being claimed or released"
        return ""

    def lags(self) -> dict[int, Lag]:
        """How far each partition that this replica owns is behind."""
        now_ms, found = time.time() * 1000, dict[int, Lag]()
        for p, lane in self._ownership.lanes.items():
            published = lane.progress.next_offset if lane.progress else 0
            held = lane.outbox.waiting()
            found[p] = self._input.lag(Source(EVENT, p), published=published, held=held, now_ms=now_ms)
        return found

    @property
    def n_bytes(self) -> dict[str, int]:
        """Memory by part: state, outboxes of the partitions owned and of the others, records not folded yet."""
        owned, every = self._ownership.n_bytes, sum(outbox.n_bytes for outbox in self._ownership.outboxes)
        return {
            "state": sum(state.nbytes for state in self.states),
            "outbox": owned,
            "outbox_of_others": max(every - owned, 0),
            "input": sum(shard.replica.merge.n_bytes for shard in self._shards.values()),
        }

    @property
    def n_claims(self) -> int:
        """Number of partitions claimed since the start, each time they were."""
        return self._ownership.n_claims

    @property
    def snapshot_age_s(self) -> float | None:
        """Time since the newest snapshot of each state, the longest of them; None if this replica has written none."""
        ages_s = (shard.snapshots.age_s for shard in self._shards.values())
        return max((age_s for age_s in ages_s if age_s is not None), default=None)

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Score until `should_stop()`; then publish what can be published in a moment, and write a snapshot.

        If a step raises, no snapshot is written, because the step may be incomplete.
        """
        self._ownership.start()
        ended_well = False
        try:
            while not should_stop():
                self.step()
            ended_well = True
        except BrokerError as error:
            if not should_stop() or isinstance(error, FencedError | LoginError | RejectedError):
                raise
            log.warning("Kafka failed while the scorer was told to stop: %s", error)
        finally:
            self._stop(snapshot=ended_well)

    def step(self) -> None:
        """One iteration of the loop."""
        began_s, n_before = time.monotonic(), self.counters.n_read
        self._follow_group()
        self._judge_model()
        self._look()
        if self._is_full:
            time.sleep(0.01)  # back-pressure: read nothing until the lanes have published enough
            return
        self._read()
        self._write_mark()
        for shard in self._shards.values():
            for puts in shard.replica.advance(fault=self.setting.fault):
                self._put(shard, puts)
        self._note_catching_up()
        self._go_on_with_snapshots()
        now_s = time.monotonic()
        if now_s >= self._sweep_due_s:
            self._sweep_due_s = now_s + SWEEP_EVERY_S
            for state in self.states:
                state.windows.sweep(state.clock_ms)
        if now_s >= self._check_due_s:
            self._check_due_s = now_s + self.setting.check_topics_every.total_seconds()
            self._topic_checks.look(self._input.reader, self._input.topics)
        if self._live and self.counters.n_read - n_before < FEW:
            time.sleep(max(PACE_S - (time.monotonic() - began_s), 0.0))

    def _put(self, shard: Shard, puts: Sequence[Put]) -> None:
        for p, put in zip(shard.partitions, puts, strict=True):
            self._ownership.outboxes[p].put(put)
        self._ownership.shed(self.setting.max_outbox_bytes)

    def _follow_group(self) -> None:
        """Join the group once there is something to publish, and follow its assignments."""
        if not self._has_joined and self._has_reached_progress:
            setting = self.setting
            self._has_joined = True
            self._member = setting.connection.member(
                group_of(setting.stream),
                setting.stream.topic("events"),
                instance_id=setting.instance_id,
                session_ms=round(setting.session.total_seconds() * 1000),
            )
        if self._member is not None:
            self._assigned = self._member.assigned()
            self._ownership.follow(self._assigned)
            self._follow_lanes()

    def _follow_lanes(self) -> None:
        """Where each partition is folded for itself, fold exactly those that this replica owns."""
        lanes, shards = self._ownership.lanes, self._shards
        if not self._by_partition or lanes.keys() == shards.keys():
            return
        for p in shards.keys() - lanes.keys():
            shards.pop(p).snapshots.abandon()
        for p in lanes.keys() - shards.keys():
            shards[p] = self._restored.pop(p)
        self._input.follow(list(shards.values()))

    def _go_on_with_snapshots(self) -> None:
        """One snapshot at a time; of a state that all replicas have, the owner of the first partition writes it."""
        snapshots = [shard.snapshots for shard in self._shards.values()]
        for one in snapshots:
            one.go_on()
        if not (self._by_partition or self._leads) or any(one.is_writing for one in snapshots):
            return
        progress = self.progress
        for shard in self._shards.values():
            shard.snapshots.take_if_due({p: progress[p] for p in shard.partitions})
            if shard.snapshots.is_writing:
                return

    def _judge_model(self) -> None:
        """Return to the previous model if a new one raises far too many alerts, or far too few."""
        if (bad := self.serving.give_back()) is not None:
            why = self.serving.refused[bad]
            log.warning("model %s is returned, %s is used again: %s", bad[:12], self.model.digest[:12], why)

    @property
    def _has_reached_progress(self) -> bool:
        if self._by_partition:
            return True
        frontier = self._shards[0].replica.state.frontier
        return all(frontier[Source(EVENT, p)] >= told.next_offset for p, told in self.progress.items())

    @property
    def _leads(self) -> bool:
        """Whether this replica writes marks and snapshots: it owns the first partition."""
        return 0 in self._ownership.lanes

    @property
    def _follows(self) -> bool:
        """Whether another replica writes the marks; if none comes for a while, the replicas step in one by one."""
        rank = min(self._ownership.lanes, default=MAX_RANK)
        return not self._leads and time.monotonic() - self._input.led_s < STEP_IN_S * (1 + min(rank, MAX_RANK))

    def _write_mark(self) -> None:
        """Write the next mark of the order, if this replica is to write it and something waits for it."""
        if self._clock.failure is not None:
            raise self._clock.failure
        if self._by_partition or not self._live or not self._clock.is_free or self._follows:
            return
        if mark := self._shards[0].replica.merge.proposal():
            self._clock.write(mark)

    @property
    def _is_full(self) -> bool:
        return self._ownership.n_bytes > self.setting.max_outbox_bytes

    def _read(self) -> None:
        """Buffer arrived records and update the bounds of the order."""
        caught_up = self.caught_up
        n_read = self._input.read(before=lambda: self.setting.fault("after_poll" if caught_up else "mid_restore"))
        self.counters.n_read += n_read
        self._input.hold_hoards(follows=self._follows)
        self._input.ask(count_stalls=caught_up, follows=self._follows)

    def _note_catching_up(self) -> None:
        for shard in self._shards.values():
            if not shard.caught_up and self._input.has_caught_up(shard):
                shard.caught_up = True
                shard.snapshots.caught_up()
                log.info("caught up after %d records", self.counters.n_folded)

    def _look(self) -> None:
        """Run the health check: work without progress turns health red, then ends the scorer."""
        now_s = time.monotonic()
        if now_s >= self._look_due_s:
            self._look_due_s = now_s + LOOK_EVERY_S
            reading = {} if self._is_full else self._input.busy()
            self._watch.look(self._ownership.busy() | reading, now_s)
            self._watch.check()
            for p, lag in self.lags().items():
                self._ownership.lanes[p].watch(lag)

    def _stop(self, *, snapshot: bool) -> None:
        """Stop within `STOP_S`; what hangs is left behind in its thread."""
        until_s, writes = time.monotonic() + STOP_S, self._by_partition or self._leads
        failures = self._ownership.release(until_s)
        writes = writes and snapshot and not failures

        def end_aside() -> None:
            progress = self.progress
            for shard in self._shards.values():
                lanes = [lane for lane in self.lanes if lane.partition in shard.partitions]
                is_published = not any(len(lane.outbox) for lane in lanes)  # else a snapshot would be ahead of it
                if writes and shard.caught_up and is_published:
                    shard.snapshots.take({p: progress[p] for p in shard.partitions}, until_s=until_s)
                else:
                    shard.snapshots.abandon()
            self._aside.shutdown()

        closing = [self._clock.close, self._input.reader.close, end_aside]
        all_within(until_s, closing if self._member is None else [self._member.close, *closing])
        if snapshot and failures:
            raise failures[0]  # if a step has raised, report that error


def group_of(stream: Stream) -> str:
    """The consumer group of the scorers of a stream."""
    return f"unmask.{stream.topics}.scorer"
