"""What comes to a scorer from outside: a link that fails, transactions of others, clocks of others."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.local.kafka_server import Broker
from pipelines.errors import BrokerError
from pipelines.kafka import topics as kafka_adapter
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message
from pipelines.kafka.reader import Reader
from pipelines.kafka.topics import KEEP_FOR_EVER
from pipelines.kafka.writer import TransactionalWriter, Writer
from pipelines.lake.ingest import ingest
from pipelines.lake.tables import Lake
from tests.pipelines.kafka.link import Linked, linked_broker
from tests.pipelines.live.scoring import N_PARTITIONS, Rig, running


def event(rig: Rig, partition: int) -> Message:
    """A good event of one shop; its card lies in this partition."""
    card = f"c{partition}"
    value = {"id": f"e{rig.n_sent}", "at": int(time.time() * 1000), "card": card, "shop": 1, "amount": 5.0}
    rig.n_sent += 1
    return Message(rig.stream.topic("events"), json.dumps(value).encode(), card.encode(), partition)


@pytest.fixture(scope="module")
def linked(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Linked]:
    if broker.kind != "kafka":
        pytest.skip("needs a broker of its own behind a link")
    with linked_broker(tmp_path_factory.mktemp("linked")) as linked:
        yield linked


def ask_everything(connection: Connection, topic: str) -> Iterator[Callable[[], object]]:
    """Every way into the adapter."""
    yield lambda: kafka_adapter.topic_names(connection)
    yield lambda: kafka_adapter.topic_ids(connection, [topic])
    yield lambda: kafka_adapter.stamps_appends(connection, topic)
    yield lambda: kafka_adapter.bounds(connection, [topic])
    yield lambda: kafka_adapter.last_record(connection, topic, 0)
    yield lambda: kafka_adapter.create_topics(connection, {topic: 1}, config=KEEP_FOR_EVER)
    yield lambda: kafka_adapter.note_group(connection, topic, {(topic, 0): 1})
    yield lambda: kafka_adapter.group_positions(connection, topic)

    def read() -> None:
        with Reader(connection, {(topic, 0): 0}) as reader:
            for _ in range(20):
                reader.poll()
                reader.ends()
                reader.n_partitions(topic)
                reader.hold({(topic, 0)})
                reader.hold(())

    def write() -> None:
        with Writer(connection) as writer:
            writer.send(Message(topic, b"x", partition=0))
            writer.flush(timeout_s=2.0)

    def write_together() -> None:
        writer = TransactionalWriter(connection, topic)
        try:
            writer.commit([Message(topic, b"x", partition=0)])
        finally:
            writer.close()

    yield from (read, write, write_together)


@pytest.mark.timeout(300)
def test_over_a_failing_link_none_but_our_own_errors_leave_the_adapter(linked: Linked) -> None:
    topic, rng, done = "flapping", random.Random(2), threading.Event()
    kafka_adapter.create_topics(Connection(linked.broker.bootstrap), {topic: 1}, config=KEEP_FOR_EVER)
    connection = Connection(linked.bootstrap)

    def flap() -> None:
        while not done.wait(rng.uniform(0.02, 0.6)):
            rng.choice((linked.link.cut, linked.link.cut, linked.link.swallow))()
            done.wait(rng.uniform(0.02, 0.6))
            linked.link.mend()

    flapping = threading.Thread(target=flap)
    flapping.start()
    n_asked = n_errors = 0
    until = time.monotonic() + 25
    try:
        while time.monotonic() < until:
            for ask in ask_everything(connection, topic):
                n_asked += 1
                try:
                    ask()
                except BrokerError:
                    n_errors += 1
    finally:
        done.set()
        flapping.join()
        linked.link.mend()
    assert n_errors > 0, n_asked


@pytest.mark.timeout(300)
def test_a_link_that_fails_for_25_s_ends_no_scorer_and_costs_no_event(linked: Linked, tmp_path: Path) -> None:
    rig = Rig(linked.broker.bootstrap, tmp_path)
    fail: list[Callable[[], None]] = []

    def fault(name: str) -> None:
        if name == "before_flush" and fail:
            fail.pop()()

    direct, rig.connection = rig.connection, Connection(linked.bootstrap)
    scorer = rig.scorer(fault=fault)
    rig.connection = direct
    with running(scorer) as run:
        rig.send(100)
        rig.wait_until_out()
        for act, seconds in ((linked.link.swallow, 25.0), (linked.link.cut, 6.0)):
            fail.append(act)
            rig.send(100)
            time.sleep(seconds)
            assert run.error is None
            assert not fail
            linked.link.mend()
            rig.send(100)
            rig.wait_until_out(deadline_s=100)
        assert sum(lane.n_rebuilt for lane in scorer.lanes) > 0
    scored = [score["event_id"] for score in rig.scores()]
    assert sorted(scored) == sorted(f"e{n}" for n in range(500))


def test_what_an_open_transaction_wrote_is_waited_for_and_comes_in_its_turn(kafka: str, tmp_path: Path) -> None:
    rig = Rig(kafka, tmp_path)
    upstream = TransactionalWriter(rig.connection, f"upstream-{rig.stream.topics}")
    with running(rig.scorer()) as run, Writer(rig.connection) as writer:

        def messages() -> Iterator[Message]:
            yield event(rig, 0)
            time.sleep(0.5)  # it is sent
            writer.send(event(rig, 1))
            writer.flush()
            time.sleep(1.0)
            assert run.scorer.counters.n_folded == n_before, "the later event did not wait for the open transaction"

        for _ in range(3):
            n_before = rig.n_sent
            upstream.commit(messages())
            until = time.monotonic() + 60
            while run.scorer.counters.n_folded < rig.n_sent:
                assert time.monotonic() < until
                time.sleep(0.05)
        assert run.scorer.counters.n_out_of_turn == 0
    upstream.close()
    assert [score["out_of_order"] for score in rig.scores()] == [False] * 6


def test_labels_that_their_sender_stamps_are_refused_at_the_start_with_what_to_do(kafka: str, tmp_path: Path) -> None:
    rig = Rig(kafka, tmp_path)
    labels = rig.stream.topic("labels")
    kafka_adapter.delete_topics(rig.connection, [labels])
    kafka_adapter.create_topics(rig.connection, {labels: N_PARTITIONS}, config=KEEP_FOR_EVER)
    told = rf"{labels} must have message.timestamp.type=LogAppendTime.*kafka-configs.sh --alter --topic {labels}"
    with pytest.raises(BrokerError, match=told):
        rig.scorer()
    with pytest.raises(BrokerError, match=told):
        ingest(rig.connection, rig.stream, Lake(tmp_path / "lake", rig.stream))


def test_the_setting_itself_is_read_and_no_other_that_sounds_like_it(kafka: str, tmp_path: Path) -> None:
    topic = "LogAppendTime-by-name-only"
    kafka_adapter.create_topics(Connection(kafka), {topic: 1}, config={"message.timestamp.type": "CreateTime"})
    assert not kafka_adapter.stamps_appends(Connection(kafka), topic)
