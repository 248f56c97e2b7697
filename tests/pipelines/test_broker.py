"""The reader over a real broker: what is held is not lost, whatever the order of holding."""

import random
import time

from kafka import KafkaAdminClient

from pipelines.broker import KEEP_FOR_EVER, Connection, Message, Reader, Writer, create_topics


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
