"""The idempotent writer."""

from functools import partial
from typing import Any

from confluent_kafka import KafkaError, Producer
from confluent_kafka import Message as Stored

from pipelines.errors import BrokerError
from pipelines.kafka.confluent.errors import broker_error, client_errors
from pipelines.kafka.confluent.opening import closed, opened
from pipelines.kafka.confluent.sending import SETTINGS, send
from pipelines.kafka.port import Message, Writer
from pipelines.kafka.server import Server

_DELIVERY_S = 60.0
_SERVE_EVERY = 500  # records; the client keeps each record until its outcome is taken

_Outcome = tuple[str, int, int] | KafkaError | None


class ConfluentWriter(Writer):
    """An idempotent producer; the outcome of every record is kept until `flush`."""

    def __init__(self, server: Server, *, linger_ms: int) -> None:
        settings = SETTINGS | {"linger.ms": linger_ms, "message.timeout.ms": round(_DELIVERY_S * 1000)}
        self._producers: list[Producer] = [opened(server, Producer, settings)]
        self._outcomes: list[_Outcome] = []

    def send(self, message: Message) -> None:
        producer, outcomes = self._producers[0], self._outcomes
        send(producer, message, partial(_note, outcomes, len(outcomes)), wait_s=_DELIVERY_S)
        outcomes.append(None)
        if not len(outcomes) % _SERVE_EVERY:
            with client_errors("a record was not stored"):
                producer.poll(0)

    def flush(self, *, timeout_s: float = 60.0) -> list[tuple[str, int, int]]:
        outcomes, self._outcomes = self._outcomes, []
        with client_errors("a record was not stored"):
            self._producers[0].flush(timeout_s)
        stored = []
        for outcome in outcomes:
            if outcome is None:
                raise BrokerError(f"a record was not stored within {timeout_s:g} s")
            if isinstance(outcome, KafkaError):
                raise broker_error("a record was not stored", outcome)
            stored.append(outcome)
        return stored

    def close(self) -> None:
        closed(self._producers)


def _note(outcomes: list[Any], place: int, error: KafkaError | None, record: Stored) -> None:
    outcomes[place] = error or (record.topic(), record.partition(), record.offset())
