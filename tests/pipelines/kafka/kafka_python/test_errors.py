"""What the client raises becomes our error; our own defects stay what they are."""

import pytest
from kafka.errors import KafkaError, ProducerFencedError

from pipelines.errors import BrokerError, FencedError
from pipelines.kafka.kafka_python.errors import client_errors
from pipelines.kafka.kafka_python.transactions import KafkaPythonTransactions


def test_our_own_defects_are_not_taken_for_the_brokers() -> None:
    for error in (KeyError("ours"), AssertionError(), MemoryError(), ValueError()):
        with pytest.raises(type(error)), client_errors("asking"):
            raise error
    with pytest.raises(BrokerError, match="asking: "), client_errors("asking"):
        raise ConnectionResetError("gone")


def test_a_send_after_a_fenced_request_is_reported_as_fenced() -> None:
    writer = KafkaPythonTransactions.__new__(KafkaPythonTransactions)
    writer._id = "t"
    after = KafkaError("Cannot perform send because at least one previous request has failed", ProducerFencedError())
    assert isinstance(writer._translate(after), FencedError)
