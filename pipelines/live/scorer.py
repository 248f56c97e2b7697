"""The live loop: read -> one order -> contract -> fold -> outbox -> lanes."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from pipelines.features.snapshot import SnapshotStore
from pipelines.features.state import State
from pipelines.kafka import topics
from pipelines.kafka.connection import Shared
from pipelines.live.health import Watch
from pipelines.live.input import Input, first_positions
from pipelines.live.lanes import Lanes
from pipelines.live.metrics import ScorerCounters
from pipelines.live.replica import Replica, needed_places
from pipelines.live.setting import ScorerSetting, StartFrom
from pipelines.live.snapshots import SnapshotSchedule
from pipelines.live.takeover import TakeOver, places_after
from pipelines.live.topic_checks import TopicChecks, checked_partitions, stamped_by_broker
from pipelines.model import Model

log = logging.getLogger(__name__)

SWEEP_EVERY_S = 60.0
LOOK_EVERY_S = 0.25


class Scorer:
    """One replica: owns every partition of the stream, folds in the one order, publishes exactly once.

    Args:
        start: where to start scoring if nothing was ever published; earlier events only update the state.

    Raises:
        RestoreError: there is no progress and no `start`, or no state can be built that agrees with the progress.
        BrokerError: a topic is missing, or the numbers of partitions differ.
    """

    def __init__(self, setting: ScorerSetting, model: Model, *, start: StartFrom | None) -> None:
        self.setting, self.model = setting, model
        self.lanes = Lanes()
        with Shared.of(setting.connection) as asked:
            try:
                self._take_over(asked, start)
            except BaseException:
                self.lanes.release()
                raise
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="aside")  # writes snapshots and checks topics
        self._snapshots = SnapshotSchedule(
            SnapshotStore(setting.snapshots, fault=setting.fault),
            self._replica,
            self._aside,
            every_s=setting.snapshot_every.total_seconds(),
        )
        self._topic_checks = TopicChecks(
            setting.connection, setting.stream, self._aside, self.state.topic_ids, self.state.n_partitions
        )
        self._watch = Watch(
            red_after_s=setting.health_after.total_seconds(), deadline_s=setting.stall_deadline.total_seconds()
        )
        self._caught_up = False
        now_s = time.monotonic()
        self._look_due_s = now_s
        self._sweep_due_s = now_s + SWEEP_EVERY_S
        self._check_due_s = now_s + setting.check_topics_every.total_seconds()

    def _take_over(self, asked: Shared, start: StartFrom | None) -> None:
        """Fence the previous scorer, read its progress, build a state that agrees with it, start reading."""
        setting, stream = self.setting, self.setting.stream
        n_partitions, live = checked_partitions(asked, stream), stamped_by_broker(asked, stream)
        taken = TakeOver(setting, asked, self.model, n_partitions, self.lanes)
        progress = taken.claim(start)
        state = taken.restored(progress)
        self._replica = Replica(
            state,
            progress,
            places_after(asked, stream, progress, needed_places(state)),
            order_wait_ms=round(setting.order_wait.total_seconds() * 1000),
            own_clock=live,
        )
        self.lanes.put(self._replica.restored_puts())
        clock = (stream.topic("clock"), 0)
        clock_from = None if live else topics.bounds(asked, [clock[0]])[clock][0]
        self._input = Input(
            setting.connection.reader(first_positions(stream, state.frontier, clock_from=clock_from)),
            self._replica.merge,
            stream,
            live=live,
            ends={source: end for source, (_, end) in taken.bounds.items()},
            max_bytes=setting.max_in_hand_bytes,
        )

    @property
    def state(self) -> State:
        """The current state."""
        return self._replica.state

    @property
    def counters(self) -> ScorerCounters:
        """Counters since the start."""
        return self._replica.counters

    @property
    def caught_up(self) -> bool:
        """Whether all records that were in Kafka at the start have been read."""
        return self._caught_up

    @property
    def health(self) -> str:
        """ "ok", or which component makes no progress, since when and why."""
        return self._watch.health

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Score until `should_stop()`; then publish all folded events and write a snapshot.

        If a step raises, no snapshot is written, because the step may be incomplete.
        """
        self.lanes.start()
        ended_well = False
        try:
            while not should_stop():
                self.step()
            ended_well = True
        finally:
            self._stop(snapshot=ended_well)

    def step(self) -> None:
        """One iteration of the loop."""
        self.lanes.raise_failure()
        self._look()
        if self._is_full:
            time.sleep(0.01)  # back-pressure: read nothing until the lanes have published enough
            return
        self._read()
        for puts in self._replica.advance(fault=self.setting.fault):
            self.lanes.put(puts)
        self._note_catching_up()
        self._snapshots.take_if_due(self.lanes.progress)
        now_s = time.monotonic()
        if now_s >= self._sweep_due_s:
            self._sweep_due_s = now_s + SWEEP_EVERY_S
            self.state.windows.sweep(self.state.clock_ms)
        if now_s >= self._check_due_s:
            self._check_due_s = now_s + self.setting.check_topics_every.total_seconds()
            self._topic_checks.look(self._input.reader, self._input.topics)

    @property
    def _is_full(self) -> bool:
        return self.lanes.n_bytes > self.setting.max_outbox_bytes

    def _read(self) -> None:
        """Buffer arrived records and update the bounds of the order."""
        n_read = self._input.read(before=lambda: self.setting.fault("after_poll" if self._caught_up else "mid_restore"))
        self.counters.n_read += n_read
        self._input.hold_hoards()
        self._input.ask(count_stalls=self._caught_up)

    def _note_catching_up(self) -> None:
        if not self._caught_up and self._input.has_caught_up():
            self._caught_up = True
            log.info("caught up after %d records", self.counters.n_folded)
            self._snapshots.caught_up()

    def _look(self) -> None:
        """Run the health check: work without progress turns health red, then ends the scorer."""
        now_s = time.monotonic()
        if now_s >= self._look_due_s:
            self._look_due_s = now_s + LOOK_EVERY_S
            reading = {} if self._is_full else self._input.busy()
            self._watch.look(self.lanes.busy() | reading, now_s)
            self._watch.check()

    def _stop(self, *, snapshot: bool) -> None:
        self.lanes.release()
        failures = self.lanes.failures
        if snapshot and all(lane.failure is None for lane in self.lanes) and self._caught_up:
            self._snapshots.take(self.lanes.progress)
        self._aside.shutdown(wait=True)
        self._input.reader.close()
        if snapshot and failures:
            raise failures[0]  # if a step has raised, report that error
