"""First and end offsets of partitions, with one request for all of them."""

from collections.abc import Iterable
from typing import Any

from confluent_kafka import KafkaException, TopicPartition

from pipelines.kafka.port import Position


def offsets_at(
    consumer: Any, edge: int, partitions: Iterable[Position], *, timeout_ms: int
) -> dict[Position, int | KafkaException]:
    """The offset, or why it is unknown, of each partition.

    Args:
        consumer: its isolation level says whether open transactions count.
        edge: OFFSET_BEGINNING or OFFSET_END. As timestamps, they mean the same to the broker.

    Raises:
        KafkaException: no answer.
    """
    asked = [TopicPartition(topic, partition, edge) for topic, partition in partitions]
    answered = consumer.offsets_for_times(asked, timeout_ms / 1000) if asked else []
    return {(tp.topic, tp.partition): KafkaException(tp.error) if tp.error else tp.offset for tp in answered}
