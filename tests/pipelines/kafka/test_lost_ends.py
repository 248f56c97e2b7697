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

from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Adapter, Message
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


def ends(connection: Connection, topic: str) -> tuple[int, int]:
    """The end of partition 0, and the end of what is committed."""
    with connection.reading({(topic, 0): 0}) as reader:
        return reader.ends(timeout_ms=5_000)[topic, 0], reader.spans([(topic, 0)])[topic, 0][1]


def test_what_a_dead_owner_left_open_is_not_committed_by_the_next_one(unverified: str, adapter: Adapter) -> None:
    connection, topic = Connection(unverified, adapter=adapter), f"lost-{uuid.uuid4().hex[:8]}"
    create_topics(connection, {topic: 2}, config=KEEP_FOR_EVER)
    with connection.transactional_writer(topic, [(topic, 0)]) as first:
        first.commit([Message(topic, b"1", partition=0)])
    owner = KafkaProducer(bootstrap_servers=unverified, transactional_id=topic, max_block_ms=10_000)
    owner.init_transactions()
    owner.begin_transaction()
    owner._transaction_manager._partitions_in_transaction.add(TopicPartition(topic, 0))
    owner.send(topic, b"left open", partition=0).get(timeout=10)
    owner.close(timeout=1)
    connection.transactional_writer(topic).close()
    assert ends(connection, topic) == (3, 2)  # the broker has ended what it knows of

    with connection.transactional_writer(topic, [(topic, 0), (topic, 1)]) as owner_after:
        assert ends(connection, topic) == (5, 5)  # a void record and the marker that ends both
        owner_after.commit([Message(topic, b"2", partition=0), Message(topic, b"3", partition=1)])
    spans = bounds(connection, [topic])
    found = {r.value: r.partition for batch in read_between(connection, spans) for r in batch}
    assert found == {b"1": 0, b"2": 0, b"3": 1}
