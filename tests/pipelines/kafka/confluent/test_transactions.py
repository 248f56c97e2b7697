"""What the transactional writer of librdkafka adds to the client."""

import uuid
from collections.abc import Iterator

import psutil
import pytest
from confluent_kafka import KafkaError, KafkaException

from pipelines.errors import BrokerError, FencedError, RejectedError
from pipelines.kafka import topics
from pipelines.kafka.confluent import sending
from pipelines.kafka.confluent.client import Confluent
from pipelines.kafka.confluent.errors import client_errors
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import MAX_REQUEST_BYTES, Message
from pipelines.kafka.topics import KEEP_FOR_EVER
from tests.patience import wait_until


@pytest.fixture
def connection(kafka: str) -> Connection:
    return Connection(kafka, adapter=Confluent)


def new_topic(connection: Connection) -> str:
    name = f"confluent-{uuid.uuid4().hex[:12]}"
    topics.create_topics(connection, {name: 1}, config=KEEP_FOR_EVER)
    return name


def test_a_full_queue_delays_a_commit_and_does_not_fail_it(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sending.SETTINGS, "queue.buffering.max.kbytes", 1_024)
    topic = new_topic(connection)
    with connection.transactional_writer(topic) as writer:
        writer.commit(Message(topic, b"x" * 100_000, partition=0) for _ in range(100))
    assert topics.bounds(connection, [topic])[topic, 0] == (0, 101)


def test_a_producer_that_is_fenced_while_it_sends_is_reported_as_fenced(connection: Connection) -> None:
    topic = new_topic(connection)
    older = connection.transactional_writer(topic)
    older.commit([Message(topic, b"1", partition=0)])

    def messages() -> Iterator[Message]:
        yield Message(topic, b"2", partition=0)
        connection.transactional_writer(topic).close()
        for _ in range(1_000):
            yield Message(topic, b"x" * 1_000, partition=0)

    with older, pytest.raises(FencedError, match="another producer has taken over"):
        older.commit(messages())


def test_a_writer_that_is_closed_after_an_error_leaves_no_thread(connection: Connection) -> None:
    topic, process = new_topic(connection), psutil.Process()
    connection.transactional_writer(topic).close()
    n_threads = process.num_threads()
    for messages in ([Message(topic, b"x" * (MAX_REQUEST_BYTES + 1), partition=0)], []):
        writer = connection.transactional_writer(topic)
        assert process.num_threads() > n_threads
        newer = connection.transactional_writer(topic)
        with pytest.raises(BrokerError) as raised:
            writer.commit([*messages, Message(topic, b"x", partition=0)])
        writer.close()
        newer.close()
        wait_until(lambda: process.num_threads() <= n_threads, seen=process.num_threads)
        del raised  # only now


def test_an_error_that_is_the_cause_of_a_system_error_is_found() -> None:
    fenced = KafkaException(KafkaError(KafkaError._FENCED))
    with pytest.raises(FencedError), client_errors("sending"):
        raise SystemError("returned a result with an exception set") from fenced
    with pytest.raises(SystemError), client_errors("sending"):
        raise SystemError("our own")
    with pytest.raises(BrokerError, match="sending: "), client_errors("sending"):
        raise KafkaException(KafkaError(KafkaError._TRANSPORT))


def test_a_timestamp_that_the_client_would_replace_is_refused(connection: Connection) -> None:
    topic = new_topic(connection)
    with connection.writer() as writer:
        with pytest.raises(RejectedError, match="timestamp 0"):
            writer.send(Message(topic, b"x", partition=0, timestamp_ms=0))
        writer.send(Message(topic, b"x", partition=0, timestamp_ms=1))
        assert writer.flush() == [(topic, 0, 0)]
