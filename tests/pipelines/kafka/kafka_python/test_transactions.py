"""The guard against kafka-python's silent commits."""

import uuid

import pytest
from kafka.errors import KafkaTimeoutError

from pipelines.errors import BrokerError
from pipelines.kafka.connection import Connection
from pipelines.kafka.kafka_python.transactions import KafkaPythonTransactions
from pipelines.kafka.port import Message
from pipelines.kafka.topics import KEEP_FOR_EVER, create_topics


def test_a_record_that_fails_while_it_is_committed_is_reported(kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connection, topic = Connection(kafka), f"guard-{uuid.uuid4().hex}"
    create_topics(connection, {topic: 1}, config=KEEP_FOR_EVER)
    writer = connection.transactional_writer(topic)
    assert isinstance(writer, KafkaPythonTransactions)
    sent = []
    send, commit = writer._producer.send, writer._producer.commit_transaction

    def remembered(*args: object, **kwargs: object) -> object:
        sent.append(send(*args, **kwargs))
        return sent[-1]

    def commit_transaction() -> None:
        commit()
        sent[0].exception = KafkaTimeoutError("expired")  # defect B of the client: the commit returns as if all is well

    monkeypatch.setattr(writer._producer, "send", remembered)
    monkeypatch.setattr(writer._producer, "commit_transaction", commit_transaction)
    with writer, pytest.raises(BrokerError, match="a record is missing from it"):
        writer.commit([Message(topic, b"x", partition=0), Message(topic, b"y", partition=0)])
