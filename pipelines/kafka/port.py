"""What every Kafka client here takes and gives."""

from collections.abc import Sequence
from typing import NamedTuple

from pipelines.record import Received

__all__ = ["Message", "Position", "Received"]


class Message(NamedTuple):
    """What is to be written. `partition` None lets the key decide (murmur2, as the Java client does)."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    partition: int | None = None
    timestamp_ms: int | None = None
    headers: Sequence[tuple[str, bytes]] = ()


Position = tuple[str, int]  # topic, partition
