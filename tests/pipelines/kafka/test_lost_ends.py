"""What is left of a transaction whose end the broker did not write is not committed by the next owner of the id.

Kafka 4.4.0 loses it where a broker is killed in a transaction and restarts: until the session of the old process ends,
the partitions have no leader, and it takes them for deleted ones (`TransactionMarkerChannelManager`: "likely deleted
already and hence can be skipped"). Here, the broker is not told that the partition is part of the transaction.
"""

import uuid
from collections.abc import Iterator

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from pipelines.errors import BrokerError
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Adapter, Message, Position
from pipelines.kafka.topics import KEEP_FOR_EVER, bounds, create_topics, read_between


@pytest.fixture
def unverified(kafka: str) -> Iterator[str]:
    """A broker that believes a producer which says that it has told the coordinator of a partition."""
    admin = KafkaAdminClient(bootstrap_servers=kafka)

    def set_to(settings: dict[str, str]) -> None:
        admin.alter_configs([ConfigResource(ConfigResourceType.BROKER, "1", settings)])

    set_to({"transaction.partition.verification.enable": "false"})
    yield kafka
    set_to({})
    admin.close()


@pytest.fixture
def topic(unverified: str) -> str:
    name = f"lost-{uuid.uuid4().hex[:8]}"
    create_topics(Connection(unverified), {name: 2}, config=KEEP_FOR_EVER)
    return name


def leave_open(bootstrap: str, transactional_id: str, at: Position, value: bytes) -> None:
    """A record of a transaction that no coordinator knows of, and whose producer is gone."""
    owner = KafkaProducer(bootstrap_servers=bootstrap, transactional_id=transactional_id, max_block_ms=10_000)
    owner.init_transactions()
    owner.begin_transaction()
    owner._transaction_manager._partitions_in_transaction.add(TopicPartition(*at))
    owner.send(at[0], value, partition=at[1]).get(timeout=10)
    owner.close(timeout=1)


def ends(connection: Connection, topic: str) -> tuple[int, int]:
    """The end of partition 0, and the end of what is committed."""
    with connection.reading({(topic, 0): 0}) as reader:
        return reader.ends(timeout_ms=5_000)[topic, 0], reader.spans([(topic, 0)])[topic, 0][1]


def committed(connection: Connection, topic: str) -> list[tuple[int, bytes | None]]:
    spans = bounds(connection, [topic])
    return sorted((r.partition, r.value) for batch in read_between(connection, spans) for r in batch)


def test_what_a_dead_owner_left_open_is_not_committed_by_the_next_one(
    unverified: str, topic: str, adapter: Adapter
) -> None:
    connection = Connection(unverified, adapter=adapter)
    with connection.transactional_writer(topic, [(topic, 0)]) as first:
        first.commit([Message(topic, b"1", partition=0)])
    leave_open(unverified, topic, (topic, 0), b"left open")
    connection.transactional_writer(topic).close()
    assert ends(connection, topic) == (3, 2)  # the broker has ended what it knows of

    with connection.transactional_writer(topic, [(topic, 0), (topic, 1)]) as owner_after:
        assert ends(connection, topic) == (5, 5)  # a void record and the marker that ends both
        owner_after.commit([Message(topic, b"2", partition=0), Message(topic, b"3", partition=1)])
    assert committed(connection, topic) == [(0, b"1"), (0, b"2"), (1, b"3")]


def test_what_is_confirmed_is_committed_by_the_next_one(unverified: str, topic: str, adapter: Adapter) -> None:
    connection, asked = Connection(unverified, adapter=adapter), list[list[Position]]()
    leave_open(unverified, topic, (topic, 0), b"1")

    def is_confirmed(left_open: list[Position]) -> bool:
        asked.append(left_open)
        return True

    positions = [(topic, 0), (topic, 1)]
    with connection.transactional_writer(topic, positions, is_confirmed=is_confirmed) as owner_after:
        owner_after.commit([Message(topic, b"2", partition=0)])
    assert asked == [[(topic, 0)]]
    assert committed(connection, topic) == [(0, b"1"), (0, b"2")]


def test_what_another_id_left_open_is_told_with_its_remedy(unverified: str, topic: str, adapter: Adapter) -> None:
    connection = Connection(unverified, adapter=adapter)
    leave_open(unverified, f"{topic}-other", (topic, 0), b"left open")
    with pytest.raises(BrokerError, match=r"of another producer stays open in .*, 0\).* run `unmask recover`"):
        connection.transactional_writer(topic, [(topic, 0), (topic, 1)])
