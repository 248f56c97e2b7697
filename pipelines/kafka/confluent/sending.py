"""How records are given to a producer of librdkafka."""

import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaException, Producer

from pipelines.errors import BrokerError, RejectedError
from pipelines.kafka.confluent.errors import broker_error, of_client
from pipelines.kafka.port import MAX_REQUEST_BYTES, REQUEST_MS, Message

SETTINGS: dict[str, Any] = {
    "enable.idempotence": True,
    "partitioner": "murmur2_random",  # of a key, that of the Java client
    "compression.type": "none",
    "request.timeout.ms": REQUEST_MS,
    "message.max.bytes": MAX_REQUEST_BYTES,
    "batch.size": 1_000_000,
    "batch.num.messages": 100_000,
    "queue.buffering.max.messages": 0,  # the queue is bounded in bytes
    "queue.buffering.max.kbytes": 64 << 10,
}
_ANY_PARTITION = -1
_NOW = 0  # librdkafka replaces this timestamp by the present


def send(
    producer: Producer, message: Message, noted: Callable[[Any, Any], None] | None = None, *, wait_s: float
) -> None:
    """Queue a message; while the queue is full, wait up to `wait_s`.

    Args:
        noted: called with (error or None, the record) when the outcome is known.

    Raises:
        RejectedError: the record is too large, or has the timestamp 0, which librdkafka cannot write.
        BrokerError: the queue stayed full.
    """
    topic, value, key, partition, stamp, headers = message
    if stamp == _NOW:
        raise RejectedError(f"a record for {topic} has the timestamp 0 (1970), which confluent-kafka cannot write")
    where = _ANY_PARTITION if partition is None else partition
    until = None
    try:
        while True:
            try:
                producer.produce(
                    topic, value, key, where, noted, None, stamp or _NOW, list(headers) if headers else None
                )
                return
            except BufferError as error:  # the queue is full
                now = time.monotonic()
                until = until or now + wait_s
                if now > until:
                    raise BrokerError(f"a record for {topic} was not sent: {error} for {wait_s:g} s") from error
                producer.poll(0.05)
    except (KafkaException, SystemError) as error:
        raise broker_error(f"a record for {topic} was not sent", of_client(error)) from error
