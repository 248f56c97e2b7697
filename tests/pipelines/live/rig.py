"""What the broker tests of scorer and lane share: a stream of their own, a scorer in a thread, what came out."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipelines.contracts.block import Block
from pipelines.contracts.decode import Decoder
from pipelines.contracts.messages import Progress, Refused, decode
from pipelines.contracts.stream import Stream
from pipelines.errors import BrokerError
from pipelines.faults import Fault
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Adapter, Assignment, Member, Message
from pipelines.kafka.progress import read_progress
from pipelines.kafka.topics import KEEP_FOR_EVER
from pipelines.live.lane import Lane, LaneSetting
from pipelines.live.scorer import Scorer
from pipelines.live.serving import Serving
from pipelines.live.setting import ScorerSetting, StartFrom
from pipelines.model import Model
from pipelines.order import EVENT, Source, SourceClock
from pipelines.record import Received
from tests.patience import HANG_S, wait_until
from tests.pipelines.kafka.adapters import ADAPTERS, CLIENT
from tests.pipelines.live.kill_stream import stream_named
from tests.pipelines.live.live_scorer import Linear

N_PARTITIONS = 2


def broken_events(stream: Stream, first: int, end: int) -> Block:
    """Refused events at the offsets [first, end) of partition 0."""
    clock = SourceClock(Source(EVENT, 0))
    records = [Received(stream.topic("events"), 0, offset, 0, None, b"{") for offset in range(first, end)]
    return Decoder(stream).block(clock.run(records))


class Fixed(Member):
    """A membership that always gives the same partitions."""

    def __init__(self, partitions: Iterable[int]) -> None:
        self._assignment = Assignment(0, frozenset(partitions))

    def assigned(self) -> Assignment:
        return self._assignment

    def close(self) -> None:
        pass


class Alone(Fixed):
    """A membership that gives every partition: what claims them is what is tested, not how a group divides them."""

    def __init__(self, n_partitions: int) -> None:
        super().__init__(range(n_partitions))


class Rig:
    """A stream of its own on a broker.

    Args:
        configs: gives some of its topics (by kind) a configuration of their own.
        kind: begins the name of the stream, see `stream_named`.
    """

    def __init__(
        self,
        bootstrap: str,
        folder: Path,
        *,
        n_partitions: int = N_PARTITIONS,
        configs: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
        adapter: Adapter = ADAPTERS[CLIENT],
        kind: str = "",
        replication: int = 1,
    ) -> None:
        self.n_partitions = n_partitions
        self.connection = Connection(bootstrap, adapter=adapter)
        self.stream: Stream = stream_named(f"{kind}test-{uuid.uuid4().hex[:8]}")
        self.folder = folder
        kinds = ("events", "labels", "scores", "alerts", "refused", "progress")
        config = KEEP_FOR_EVER | {"message.timestamp.type": "LogAppendTime"}
        for kind in kinds:
            own = {self.stream.topic(kind): n_partitions}
            topics.create_topics(
                self.connection, own, config=config | dict(configs.get(kind, {})), replication=replication
            )
        topics.create_topics(
            self.connection, {self.stream.topic("clock"): 1}, config=KEEP_FOR_EVER, replication=replication
        )
        self.n_sent, self.n_cards = 0, 7
        self.n_out = [0] * n_partitions  # of each partition, when last looked at

    def send(self, n: int) -> None:
        """Valid events, stored."""
        with self.connection.writer() as writer:
            for _ in range(n):
                card = f"c{self.n_sent % self.n_cards}"
                event = {"id": f"e{self.n_sent}", "at": int(time.time() * 1000), "card": card, "amount": 5.0}
                writer.send(Message(self.stream.topic("events"), json.dumps(event).encode(), card.encode()))
                self.n_sent += 1
            writer.flush()

    def send_raw(self, value: bytes, key: bytes | None, *, kind: str = "events", partition: int | None = None) -> None:
        """Any record, stored."""
        self.send_many([value], key, kind=kind, partition=partition)

    def send_many(
        self, values: Sequence[bytes], key: bytes | None, *, kind: str = "events", partition: int | None = None
    ) -> None:
        """Any records of one key, stored."""
        with self.connection.writer() as writer:
            for value in values:
                writer.send(Message(self.stream.topic(kind), value, key, partition))
            writer.flush()
        self.n_sent += len(values) if kind == "events" else 0

    def scorer(
        self,
        *,
        start: StartFrom | None = "earliest",
        model: Model | None = None,
        serving: Serving | None = None,
        **setting: Any,
    ) -> Scorer:
        """A scorer, ready to run; what `setting` names goes to its `ScorerSetting`."""
        snapshots = setting.pop("snapshots", self.folder / "snapshots")
        full = ScorerSetting(self.stream, self.connection, snapshots, **setting)
        n_partitions = len(topics.partitions_of(self.connection, self.stream.topic("events")))
        serving = serving or Serving(model or Linear(self.stream))
        return Scorer(full, serving, start=start, member=Alone(n_partitions))

    def published(self, kind: str) -> list[Received]:
        """Every committed record of a topic."""
        spans = topics.bounds(self.connection, [self.stream.topic(kind)])
        return [record for batch in topics.read_between(self.connection, spans) for record in batch]

    def scores(self) -> list[dict[str, Any]]:
        """Every committed score."""
        return [json.loads(record.value or b"") for record in self.published("scores")]

    def refused(self) -> list[Refused]:
        """Every committed dead letter."""
        return [decode(record.value, Refused) for record in self.published("refused")]

    def wait_until_out(self) -> None:
        """Until progress says that everything sent is out."""
        wait_until(self.all_is_out, seen=lambda: f"of {self.n_sent} events sent {self.n_out} are out")

    def all_is_out(self) -> bool:
        """Look at the progress records, once."""
        with suppress(BrokerError):  # it may stand still: that is tested
            told = [read_progress(self.connection, self.stream, p) for p in range(self.n_partitions)]
            self.n_out = [progress.next_offset if progress else 0 for progress in told]
        return sum(self.n_out) == self.n_sent


class Running:
    """A scorer in a thread; `error` is what it ended with."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.error = scorer, None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    error: BaseException | None

    def _run(self) -> None:
        try:
            self.scorer.run(self._stop.is_set)
        except BaseException as error:
            self.error = error

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        self._thread.join(HANG_S)
        assert not self._thread.is_alive(), "the scorer did not end"

    def stop(self) -> None:
        self._stop.set()
        self.join()


@contextmanager
def running(scorer: Scorer) -> Iterator[Running]:
    """Run a scorer; its error, if it has one, is raised at the end."""
    run = Running(scorer)
    try:
        yield run
    finally:
        run.stop()
    if run.error:
        raise run.error


def lane_of(rig: Rig, owner: str, *, stall_deadline_s: float = 60.0) -> Lane:
    """A lane of partition 0 that has not claimed it."""
    setting = LaneSetting(
        rig.connection, rig.stream, Serving(Linear(rig.stream)), "definition", owner, stall_deadline_s=stall_deadline_s
    )
    return Lane(setting, 0)


def claim_of(owner: str, *, next_offset: int = 0) -> Progress:
    return Progress(
        next_offset=next_offset, start=0, n_scored=0, n_refused=0, n_duplicates=0, n_out_of_turn=0, n_partitions=2,
        owner=owner, definition="definition", model="linear", origin={"events": [0, 0]}, frontier=None, out_of_turn=[],
    )  # fmt: skip


def at_passage(point: str, nth: int, act: Callable[[], None]) -> Fault:
    """A fault that acts at the nth passage of a point."""
    passed = [0]

    def fault(name: str) -> None:
        passed[0] += name == point
        if name == point and passed[0] == nth:
            act()

    return fault
