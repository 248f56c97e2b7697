"""The reader over a real broker: what is held is not lost, open transactions are waited for; the guarded writer."""

import random
import time
from collections.abc import Iterator

import pytest
from kafka import KafkaAdminClient
from kafka.errors import KafkaError, KafkaTimeoutError, ProducerFencedError

from pipelines.errors import BrokerError, FencedError
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message, Position, Received
from pipelines.kafka.reader import Reader
from pipelines.kafka.topics import KEEP_FOR_EVER, create_topics, last_record
from pipelines.kafka.writer import TransactionalWriter, Writer
from tests.pipelines.kafka import batches
from tests.pipelines.kafka.batches import Raw


def test_partitions_held_in_any_order_are_read_whole_and_in_order(kafka: str) -> None:
    connection, topic, n = Connection(kafka), f"held-{time.time_ns()}", 6_000
    create_topics(connection, {topic: 3}, config=KEEP_FOR_EVER)
    with Writer(connection) as writer:
        for i in range(3 * n):
            writer.send(Message(topic, b"x" * 200, partition=i % 3))
        writer.flush()
    rng, positions = random.Random(5), [(topic, p) for p in range(3)]
    read: dict[int, list[int]] = {p: [] for p in range(3)}
    deadline = time.monotonic() + 60
    with Reader(connection, dict.fromkeys(positions, 0), max_records=500) as reader:
        while sum(map(len, read.values())) < 3 * n:
            held = rng.sample(positions, rng.randrange(3))
            reader.hold(held)
            for _ in range(rng.randrange(1, 4)):
                for record in reader.poll():
                    assert (topic, record.partition) not in held
                    read[record.partition].append(record.offset)
            assert time.monotonic() < deadline, {p: len(offsets) for p, offsets in read.items()}
        assert all(reader.position(p) == n for p in positions)
    assert all(offsets == list(range(n)) for offsets in read.values())


def test_partitions_added_while_reading_are_seen(kafka: str) -> None:
    connection, topic = Connection(kafka), f"grown-{time.time_ns()}"
    create_topics(connection, {topic: 2}, config=KEEP_FOR_EVER)
    with Reader(connection, {(topic, 0): 0, (topic, 1): 0}) as reader:
        reader.poll()
        assert reader.n_partitions(topic, timeout_ms=5_000) == 2
        admin = KafkaAdminClient(bootstrap_servers=kafka)
        admin.create_partitions({topic: 3})
        admin.close()
        deadline = time.monotonic() + 30
        while reader.n_partitions(topic, timeout_ms=5_000) != 3:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert reader.n_partitions("no-such-topic") is None


def test_whatever_is_held_no_more_is_read_again(kafka: str) -> None:
    connection, topic = Connection(kafka), f"released-{time.time_ns()}"
    create_topics(connection, {topic: 3}, config=KEEP_FOR_EVER)
    a, b, c = ((topic, p) for p in range(3))
    steps: list[set[Position]] = [{a, b}, {b}, set(), {a}, {a, b, c}, {c}, set()]
    read = dict.fromkeys((a, b, c), 0)
    with Reader(connection, dict(read)) as reader, Writer(connection) as writer:
        for sent, held in enumerate(steps, 1):
            reader.hold(held)
            before = dict(read)
            for _, partition in read:
                writer.send(Message(topic, b"x", partition=partition))
            writer.flush()
            deadline = time.monotonic() + 30
            while any(read[p] < sent for p in read if p not in held):
                for record in reader.poll():
                    read[(topic, record.partition)] += 1
                assert time.monotonic() < deadline, f"{held} are held, read is {read} of {sent} each"
            assert {p: read[p] for p in held} == {p: before[p] for p in held}


def test_the_end_of_a_partition_lies_behind_what_open_transactions_wrote(kafka: str) -> None:
    connection, topic = Connection(kafka), f"open-{time.time_ns()}"
    create_topics(connection, {topic: 2}, config=KEEP_FOR_EVER)
    upstream = TransactionalWriter(connection, topic)
    with Reader(connection, {(topic, 0): 0, (topic, 1): 0}) as reader:

        def messages() -> Iterator[Message]:
            yield Message(topic, b"open", partition=0)
            time.sleep(0.5)
            reader.poll()
            assert reader.ends(timeout_ms=5_000) == {(topic, 0): 1, (topic, 1): 0}
            assert reader.position((topic, 0)) == 0
            yield Message(topic, b"more", partition=0)

        upstream.commit(messages())
        deadline = time.monotonic() + 30
        while reader.position((topic, 0)) != 3:
            reader.poll()
            assert time.monotonic() < deadline
        assert reader.ends(timeout_ms=5_000) == {(topic, 0): 3, (topic, 1): 0}  # two records and a marker
    upstream.close()


def test_a_record_that_fails_while_it_is_committed_is_told(kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connection, topic = Connection(kafka), f"guard-{time.time_ns()}"
    create_topics(connection, {topic: 1}, config=KEEP_FOR_EVER)
    writer = TransactionalWriter(connection, topic)
    sent = []
    send, commit = writer._producer.send, writer._producer.commit_transaction

    def remembered(*args: object, **kwargs: object) -> object:
        sent.append(send(*args, **kwargs))
        return sent[-1]

    def commit_transaction() -> None:
        commit()
        sent[0].exception = KafkaTimeoutError(
            "expired"
        )  # the client's defect B: the commit returns as if all were well

    monkeypatch.setattr(writer._producer, "send", remembered)
    monkeypatch.setattr(writer._producer, "commit_transaction", commit_transaction)
    with pytest.raises(BrokerError, match="committed without a record"):
        writer.commit([Message(topic, b"x", partition=0), Message(topic, b"y", partition=0)])
    writer.close()


def test_a_record_that_nobody_can_read_is_the_last_one_all_the_same(kafka: str) -> None:
    connection, topic = Connection(kafka), f"last-{time.time_ns()}"
    create_topics(connection, {topic: 1}, config=KEEP_FOR_EVER)
    batches.send(kafka, topic, 0, batches.batch([Raw(b"good"), Raw(b"bad", headers=[(b"\xff", b"")])]))
    why = "the name of a header is not UTF-8"
    assert last_record(connection, topic, 0) == Received(topic, 0, 1, 0, None, None, why)


def test_a_send_after_a_fenced_request_is_told_as_fenced(kafka: str) -> None:
    connection = Connection(kafka)
    create_topics(connection, {"fenced-after": 1}, config=KEEP_FOR_EVER)
    writer = TransactionalWriter(connection, "fenced-after")
    after = KafkaError("Cannot perform send because at least one previous request has failed", ProducerFencedError())
    assert isinstance(writer._translate(after), FencedError)
    writer.close()
