"""A log, its broker, its group and the lives of replicas in memory: time is an argument, every crash is a call."""

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future
from typing import Any, Literal, NamedTuple, Self

import msgspec
import numpy as np
import pytest

from pipelines.contracts.alert_memory import AlertMemory
from pipelines.contracts.block import Block
from pipelines.contracts.decode import Decoder
from pipelines.contracts.messages import AlertRecord, Progress, Refused, Score, decode, decode_alert
from pipelines.contracts.stream import Stream
from pipelines.contracts.stream_file import parse
from pipelines.errors import BrokerError, FencedError, InternalError, OutboxOverflowError, TooLargeError
from pipelines.features.copying import Part
from pipelines.features.pieces import joined
from pipelines.features.snapshot import Snapshot
from pipelines.features.state import Base, State, StateCopy
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Assignment, Message, TransactionalWriter
from pipelines.live.alerting import outcomes_of, without_scores
from pipelines.live.lane import Lane, LaneSetting
from pipelines.live.outbox import Outbox, Put
from pipelines.live.ownership import Ownership
from pipelines.live.replica import Replica, furthest, is_ahead, needed_places, places_told, tells_more
from pipelines.live.serving import Serving
from pipelines.live.storms import Storm
from pipelines.live.takeover import cover
from pipelines.order import EVENT, KIND_NAMES, LABEL, Frontier, Key, Mark, Source, by_kind, sources
from pipelines.record import Received
from tests.pipelines.items import Item, run_of
from tests.pipelines.live.live_scorer import Linear

START_MS = 1_700_000_000_000
N_PARTITIONS = 2
STREAM = parse("""
[stream]
name = "small"
event_id = "id"
event_time = "at"
entities = ["card", "shop"]
duplicate_memory = "300ms"
future_tolerance = "100ms"
[fields]
id = { type = "int" }
at = { type = "time" }
card = { type = "int" }
shop = { type = "int" }
amount = { type = "number", min = 0 }
[labels]
maturity = "60ms"
lag = "40ms"
[[features]]
entity = "card"
field = "amount"
windows = ["120ms", "all"]
stats = ["mean", "std"]
[[features]]
entity = "shop"
windows = ["240ms"]
stats = ["count", "fraud_rate"]
[[features]]
entity = "shop"
field = "amount"
windows = ["240ms"]
stats = ["sum"]
""")


class Published(NamedTuple):
    """What is out about one event record."""

    rule: str
    duplicate_of: int | None
    late_ms: int
    features_hash: int
    out_of_turn: bool

    @classmethod
    def scored(cls, score: Score) -> Self:
        return cls("", None, score.late_ms, int(score.features_hash, 16), score.out_of_order)

    @classmethod
    def refused(cls, rule: str, duplicate_of: int | None = None) -> Self:
        return cls(rule, duplicate_of, 0, 0, False)


class CrashError(Exception):
    """The process ends here."""


class SimulatedWriter(TransactionalWriter):
    """The transactions of one lane in a world: all of one, or nothing of it. Opening it fences the one before."""

    def __init__(self, world: "World", partition: int) -> None:
        self._world, self._partition = world, partition
        world.epochs[partition] += 1
        self._epoch = world.epochs[partition]

    def abort(self, messages: Iterable[Message]) -> None:
        raise AssertionError("nothing is left open in a world without Kafka")

    def commit(self, messages: Iterable[Message], *, before_commit: Callable[[], None] | None = None) -> None:
        world, stream = self._world, self._world.stream
        if self._epoch != world.epochs[self._partition]:
            raise FencedError("another producer has taken over")
        told: Progress | None = None
        published: dict[tuple[int, int], Published] = {}
        alerted: list[AlertRecord] = []
        for message in messages:
            if message.topic == stream.topic("progress"):
                told = decode(message.value, Progress)
            elif message.topic == stream.topic("alerts"):
                alerted.append(decode_alert(message.value))
            elif message.topic == stream.topic("scores"):
                score = decode(message.value, Score)
                source = (score.source.partition, score.source.offset)
                if source in world.too_large:
                    raise TooLargeError("this score is too large")
                published[source] = Published.scored(score)
            elif message.topic == stream.topic("refused"):
                letter = decode(message.value, Refused)
                source = (letter.source.partition, letter.source.offset)
                if source in world.too_large and letter.raw_base64:
                    raise TooLargeError("this dead letter is too large")
                published[source] = Published.refused(letter.rule, letter.duplicate_of)
        assert told is not None
        world.commit(self._partition, told, published, alerted)

    def close(self) -> None:
        pass


class SimulatedLane(Lane):
    """A lane, whole but for Kafka and its thread."""

    def __init__(self, world: "World", owner: str, partition: int, outbox: Outbox) -> None:
        self._world = world
        super().__init__(LaneSetting(Connection("nowhere"), world.stream, world.serving, "", owner), partition, outbox)

    def _open(self, asked: Connection | None = None) -> SimulatedWriter:
        return SimulatedWriter(self._world, self.partition)

    def _read_progress(self) -> Progress:
        return self._world.progress[self.partition][-1]

    def _wait_for_a_claim(self) -> None:
        raise FencedError("another scorer has taken over")

    def start(self) -> None:
        pass

    def publish_some(self) -> None:
        """One batch."""
        if self.failure is None and len(self.outbox) and (batch := self.outbox.take(max_rows=2)):
            try:
                self._publish(batch)
            except FencedError as error:
                self.failure = error


class Aside(Executor):
    """Runs what is submitted before it returns; while it is slow, at the next `go_on`."""

    def __init__(self) -> None:
        self.is_slow = False
        self.waiting: list[Callable[[], None]] = []

    def submit(self, call: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()

        def run() -> None:
            try:
                done.set_result(call(*args, **named))
            except CrashError:
                raise
            except Exception as error:
                done.set_exception(error)

        if self.is_slow:
            self.waiting.append(run)
        else:
            run()
        return done

    def go_on(self) -> None:
        waiting, self.waiting = self.waiting, []
        for run in waiting:
            run()


class SimulatedReplica:
    """A scorer without Kafka: begins as one does, with promise and places from progress, and a snapshot that fits."""

    def __init__(self, world: "World", name: str) -> None:
        self.world, self.name, self.n_lives = world, name, 0
        self.begin()

    def begin(self) -> None:
        """Start, after a crash too: no lane is claimed."""
        world = self.world
        self.n_lives += 1
        owner = f"{self.name}.{self.n_lives}"
        last = {p: records[-1] for p, records in enumerate(world.progress)}
        self.told_until = [len(records) for records in world.progress]
        state = State(world.stream, N_PARTITIONS)
        for folded in sorted(world.snapshots, reverse=True):
            if not is_ahead(world.snapshots[folded].frontier, last):
                state = State.restore(world.stream, world.snapshots[folded])
                break
        told = world.places(needed_places(state))
        self.replica = Replica(state, last, told, order_wait_ms=world.order_wait_ms)
        self.aside = Aside()
        self.ownership = Ownership(self._claim, last, owner=owner, regrant_s=1e9, stall_s=1e9, aside=self.aside)
        self.owner = owner
        for outbox, until in zip(self.ownership.outboxes, self.told_until, strict=True):
            outbox.told_until = until
        self.at = dict(state.frontier)
        self.copy: StateCopy | None = None
        self.parts: list[Part] = []
        self.base: tuple[Base, Snapshot] | None = None  # the last whole one
        self.marks_at = self.replica.merge.clock_offset
        self._put(self.replica.restored_puts())

    def _put(self, puts: Iterable[Put]) -> None:
        for outbox, put in zip(self.ownership.outboxes, puts, strict=True):
            outbox.put(put)

    def _claim(self, outboxes: Mapping[int, Outbox]) -> list[Lane]:
        lanes: list[Lane] = []
        for p, outbox in outboxes.items():
            lane, records = SimulatedLane(self.world, self.owner, p, outbox), self.world.progress[p]
            for offset in range(outbox.told_until, len(records)):
                cover(outbox, records[offset], offset)
            if records[-1].next_offset < outbox.complete_from:
                raise OutboxOverflowError
            lane.claim(msgspec.structs.replace(records[-1], owner=self.owner, out_of_turn=[]))
            lanes.append(lane)
        return lanes

    def read(self, source: Source, n: int) -> None:
        """The reader brings up to `n` records of one partition."""
        to = min(self.at[source] + n, self.world.seen[source])
        self.replica.merge.add(source, self.world.log[source][self.at[source] : to])
        self.at[source] = max(to, self.at[source])

    def ask(self, source: Source, *, ago_ms: int = 0) -> None:
        """The broker's answer, to a question sent `ago_ms` ago, comes in."""
        at, asked = self.at[source], self.world.now_ms - ago_ms
        self.replica.merge.observe(source, position=at, end=self.world.seen[source], asked_ms=asked, live=True)

    def mark(self) -> None:
        """Write the next mark; any replica may, at any time."""
        if (mark := self.replica.merge.proposal()) is not None:
            self.world.marks.append(mark._replace(next_offset=len(self.world.marks) + 1))

    def follow_marks(self, n: int) -> None:
        """Read up to `n` marks."""
        for mark in self.world.marks[self.marks_at : self.marks_at + n]:
            self.replica.merge.mark(mark)
            self.marks_at += 1

    def tail(self, partition: int, n: int) -> None:
        """Read up to `n` progress records of a partition."""
        records = self.world.progress[partition]
        for offset in range(self.told_until[partition], min(self.told_until[partition] + n, len(records))):
            self.ownership.tailed(partition, records[offset], offset)
            self.told_until[partition] = offset + 1

    def follow_group(self, *, is_slow: bool = False) -> None:
        """See the current assignment; without enough in the outbox, start anew from a snapshot.

        What it lets begin ends at once, or if `is_slow`, the next time: in the whole world one such thing at a time.
        """
        owned = frozenset(p for p, name in enumerate(self.world.owners) if name == self.name)
        self.aside.go_on()
        is_slow = is_slow and self.world.has_slow_claims
        self.aside.is_slow = is_slow and not any(replica.aside.waiting for replica in self.world.replicas)
        try:
            self.ownership.follow(Assignment(self.world.generation, owned))
            if not self.aside.is_slow:
                self.ownership.follow(Assignment(self.world.generation, owned))  # ends what the first one began
        except OutboxOverflowError:
            self.begin()

    def fold(self) -> None:
        """Fold what can be folded; it waits in the outboxes."""
        for puts in self.replica.advance(chunk=3):
            self._put(puts)

    def order(self) -> None:
        """Write the next mark, and fold what all marks so far release."""
        for _ in range(2):  # the marks of others, then one of its own
            self.follow_marks(10**9)
            self.fold()
            self.mark()

    def publish(self, partition: int) -> None:
        """One transaction of a lane, if the partition is owned."""
        if (lane := self.ownership.lanes.get(partition)) is not None:
            lane.publish_some()  # type: ignore[attr-defined]

    def fail(self, at: Literal["before the windows", "among the windows", "after the step"]) -> None:
        """A step raises, where it folds anything; then, as the scorer does at its error exit, it is restarted."""
        windows = self.replica.state.windows
        patched: Any = windows if at == "before the windows" else windows._columns[-1]
        if at != "after the step":
            patched.fold = _out_of_memory
        try:
            for _ in self.replica.advance(chunk=3):
                if at == "after the step":
                    _out_of_memory()
        except MemoryError:
            with pytest.raises(InternalError, match="no snapshot can be taken"):
                self.replica.copy(self.ownership.progress)
        self.begin()

    def snapshot(self, *, disk_full: bool = False, rows: int = 10**9, changes: bool = False) -> None:
        """Begin a copy of the state or its changes, or go on with it; then it is kept, if the disk is not full."""
        if self.copy is None:
            self.base = self.base if changes else None
            self.copy = self.replica.copy(self.ownership.progress, self.base[0] if self.base else None)
        for _ in self.world.stream.entities:  # a step ends with its column
            self.copy.step(rows)
        self.parts += self.copy.parts()
        if not self.copy.is_whole:
            return
        snapshot = Snapshot(self.copy.meta, joined(self.parts), self.base[1] if self.base else None)
        self.base = self.base or (self.copy.as_base, snapshot)
        self.copy, self.parts = None, []
        if not disk_full:
            self.world.snapshots[sum(snapshot.frontier.values())] = snapshot

    def drain(self) -> None:
        """Everything is shown, read, marked, folded, tailed and published."""
        for source in self.world.sources:
            self.read(source, 10**9)
            self.ask(source)
        self.order()
        self.order()
        for partition in range(N_PARTITIONS):
            self.tail(partition, 10**9)
        self.follow_group()
        for partition, lane in self.ownership.lanes.items():
            while len(lane.outbox) and lane.failure is None:
                self.world.publish(self, partition)


class World:
    """Everything that outlives a crash: the log, what was published, the marks, the snapshots; and some replicas.

    `seen[source]` is how much of a partition its broker shows; records behind it have their stamp already (a broker
    stamps before it shows). `owners` is what the group says now; each replica sees it when it looks.
    """

    def __init__(
        self, stream: Stream = STREAM, *, order_wait_ms: int = 5, n_replicas: int = 1, has_slow_claims: bool = False
    ) -> None:
        self.stream, self.order_wait_ms, self.has_slow_claims = stream, order_wait_ms, has_slow_claims
        self.now_ms = START_MS
        self.sources = sources(N_PARTITIONS, labels=True)
        self.log: dict[Source, list[Received]] = {s: [] for s in self.sources}
        self.seen = dict.fromkeys(self.sources, 0)
        origin = by_kind(dict.fromkeys(self.sources, 0), N_PARTITIONS)
        claim = Progress(
            next_offset=0, start=0, n_scored=0, n_refused=0, n_duplicates=0, n_out_of_turn=0, owner="",
            n_partitions=N_PARTITIONS, definition="", model="", origin=origin, frontier=None, out_of_turn=[],
        )  # fmt: skip
        self.progress: list[list[Progress]] = [[claim] for _ in range(N_PARTITIONS)]
        self.epochs = [0] * N_PARTITIONS
        self.published: dict[tuple[int, int], Published] = {}
        self.alerted: list[list[AlertRecord]] = [[] for _ in range(N_PARTITIONS)]
        self.too_large: set[tuple[int, int]] = set()  # events about which the broker takes only the shortest record
        self.fault = ""  # what happens to the next transaction: (crash | doubt) (before | after)
        self.serving = Serving(Linear(stream))
        self.marks: list[Mark] = []
        self.snapshots: dict[int, Snapshot] = {}
        self.generation, self.owners = 1, ["0"] * N_PARTITIONS
        self.replicas = [SimulatedReplica(self, str(n)) for n in range(n_replicas)]
        self.replica.follow_group()

    @property
    def replica(self) -> SimulatedReplica:
        """The first replica."""
        return self.replicas[0]

    def restart(self, number: int = 0) -> None:
        """A replica crashes and begins again."""
        self.replicas[number].begin()
        self.replicas[number].follow_group()

    def assign(self, partition: int, number: int) -> None:
        """The group gives a partition to a replica; nobody has seen it yet."""
        self.generation += 1
        self.owners[partition] = self.replicas[number].name

    def places(self, needed: Frontier) -> dict[tuple[int, int, int], Key]:
        """Places as a start finds them: each partition's progress records are read back as far as they may matter."""
        told: dict[tuple[int, int, int], Key] = {}
        for records in self.progress:
            for record in reversed(records):
                if not tells_more(record, needed):
                    break
                for place, key in places_told(record).items():
                    assert told.setdefault(place, key) == key, "a place was told in two ways"
        return told

    def append(self, kind: int, partition: int, value: bytes, key: bytes, *, too_large: bool = False) -> None:
        """The broker stamps a record; it shows it later. What goes out about it may be `too_large`."""
        log = self.log[Source(kind, partition)]
        if too_large and kind == EVENT:
            self.too_large.add((partition, len(log)))
        log.append(Received(self._topic(kind), partition, len(log), self.now_ms, key, value))

    def append_unreadable(self, kind: int, partition: int) -> None:
        """A record that no reader can make sense of; even its stamp is unknown."""
        log = self.log[Source(kind, partition)]
        log.append(Received(self._topic(kind), partition, len(log), 0, None, None, "its batch is damaged"))

    def _topic(self, kind: int) -> str:
        return self.stream.topic(KIND_NAMES[kind])

    def show(self, source: Source, n: int) -> None:
        """The broker shows `n` records more."""
        self.seen[source] = min(self.seen[source] + n, len(self.log[source]))

    def publish(self, replica: SimulatedReplica, partition: int, *, fault: str = "") -> None:
        """One transaction of a lane; `fault`: a "crash" or a "doubt" (no answer comes), "before" or "after" it."""
        self.fault = fault
        try:
            replica.publish(partition)
        except CrashError:
            replica.begin()
            replica.follow_group()
        self.fault = ""

    def commit(
        self,
        partition: int,
        told: Progress,
        published: dict[tuple[int, int], Published],
        alerted: Iterable[AlertRecord] = (),
    ) -> None:
        """The broker takes a transaction, or what is to happen instead does."""
        fault, self.fault = self.fault, ""
        if fault.endswith("before"):
            raise CrashError if fault.startswith("crash") else BrokerError("nothing was committed")
        records = self.progress[partition]
        earlier = {place for record in records for place in places_told(record)}
        assert not earlier & places_told(told).keys(), "a place was told twice"
        assert not self.published.keys() & published.keys(), "an event was published twice"
        assert furthest({0: told, 1: records[-1]}) == furthest({0: told}), "a promise shrank"
        self.published |= published
        self.alerted[partition] += alerted
        records.append(told)
        if fault:
            raise CrashError if fault.startswith("crash") else BrokerError("no answer came")

    def drain(self) -> None:
        """Everything is shown, read, folded and published."""
        self.now_ms += 1_000
        for source in self.sources:
            self.show(source, 10**9)
        for _ in range(4):  # a fenced lane returns
            for replica in self.replicas:
                replica.drain()

    def _folded(self) -> Block:
        """The whole log, by the places told, folded in one piece."""
        told = {k: v for records in self.progress for r in records for k, v in places_told(r).items()}
        lag_ms = self.stream.labels.lag_ms if self.stream.labels else 0
        items = []
        for source, log in self.log.items():
            arrival = 0
            for record in log:
                arrival = max(arrival, record.timestamp_ms)
                place = told.get((*source, record.offset))
                natural = Key(arrival + (lag_ms if source.kind == LABEL else 0), *source, record.offset)
                items.append(Item(place or natural, source, arrival, record, place is not None))
        items.sort()
        return State(self.stream, N_PARTITIONS).fold(Decoder(self.stream).block(run_of(items)))

    def offline_alerts(self) -> tuple[list[list[AlertRecord]], list[AlertMemory | None]]:
        """What must have been published about alerts, and what must be remembered, of each partition as one batch."""
        block, records, memories = self._folded(), list[list[AlertRecord]](), list[AlertMemory | None]()
        for p in range(N_PARTITIONS):
            rows = block.take(block.is_event & (block.partition == p))
            is_large = np.array([(p, offset) in self.too_large for offset in rows.offset.tolist()], bool)
            for_letters = without_scores(rows)
            rows.refusal[is_large & rows.is_scored] = for_letters.refusal[is_large & rows.is_scored]
            storm = Storm(self.stream, AlertMemory(), partition=p, n_partitions=N_PARTITIONS)
            messages = outcomes_of(rows, self.stream, self.serving.champion, storm=storm).messages
            topic = self.stream.topic("alerts")
            records.append([decode_alert(message.value) for message in messages if message.topic == topic])
            memories.append(storm.memory)
        return records, memories

    def offline(self) -> dict[tuple[int, int], Published]:
        """What must have been published, from the whole log and the places told."""
        expected: dict[tuple[int, int], Published] = {}
        block = self._folded()
        is_duplicate = block.is_duplicate.tolist()
        for row in np.flatnonzero(block.is_event).tolist():
            at = (int(block.partition[row]), int(block.offset[row]))
            if (refusal := block.refusal[row]) is not None:
                expected[at] = Published.refused(refusal.rule)
            elif is_duplicate[row]:
                expected[at] = Published.refused("duplicate", int(block.duplicate_of[row]))
            elif at in self.too_large:
                expected[at] = Published.refused("unpublishable")
            else:
                late_ms, features_hash = int(block.late_ms[row]), int(block.features_hash[row])
                expected[at] = Published("", None, late_ms, features_hash, bool(block.out_of_turn[row]))
        return expected


def _out_of_memory(*_: object) -> None:
    raise MemoryError


def event_of(id_: int, *, card: int, shop: int, at_ms: int, amount: float | None = 1.0) -> bytes:
    """An event's message."""
    return json.dumps({"id": id_, "at": at_ms, "card": card, "shop": shop, "amount": amount}).encode()


def label_of(id_: int, *, card: int, shop: int, at_ms: int, label: int = 1) -> bytes:
    """A label's message."""
    event = {"id": id_, "at": at_ms, "card": card, "shop": shop}
    return json.dumps(event | {"label": label, "labelled_at": at_ms, "source": "test"}).encode()
