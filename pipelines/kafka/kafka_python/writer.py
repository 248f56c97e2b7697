"""The idempotent writer."""

from contextlib import suppress
from typing import Any

from kafka import KafkaProducer

from pipelines.kafka.kafka_python.errors import client_errors
from pipelines.kafka.kafka_python.opening import opened
from pipelines.kafka.port import MAX_REQUEST_BYTES, REQUEST_MS, Message, Writer
from pipelines.kafka.server import Server


class KafkaPythonWriter(Writer):
    """An idempotent producer; the future of every record is kept until `flush`."""

    def __init__(self, server: Server, *, linger_ms: int) -> None:
        self._producer = opened(
            server,
            KafkaProducer,
            acks="all",
            linger_ms=linger_ms,
            batch_size=1 << 18,
            max_request_size=MAX_REQUEST_BYTES,
            request_timeout_ms=REQUEST_MS,
            delivery_timeout_ms=60_000,
        )
        self._futures: list[Any] = []

    def send(self, message: Message) -> None:
        with client_errors(f"a record for {message.topic} was not sent"):
            self._futures.append(send(self._producer, message))

    def flush(self, *, timeout_s: float = 60.0) -> list[tuple[str, int, int]]:
        futures, self._futures = self._futures, []
        with client_errors("a record was not stored"):
            self._producer.flush(timeout=timeout_s)
            stored = [f.get(timeout=1) for f in futures]
        return [(m.topic, m.partition, m.offset) for m in stored]

    def close(self) -> None:
        close_producer(self._producer, timeout_s=5)


def close_producer(producer: KafkaProducer, *, timeout_s: float) -> None:
    """Close a producer and end its thread; the client's `close` raises while records wait, and leaves it running."""
    try:
        producer.close(timeout=timeout_s)
    except Exception:
        with suppress(Exception):
            producer._sender.force_close()
        producer._closed = True


def send(producer: KafkaProducer, message: Message) -> Any:
    """Send a message with a producer; returns its future."""
    return producer.send(
        message.topic,
        value=message.value,
        key=message.key,
        headers=list(message.headers),
        partition=message.partition,
        timestamp_ms=message.timestamp_ms,
    )
