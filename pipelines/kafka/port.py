"""What every Kafka client here takes and gives."""

from collections.abc import Sequence
from typing import NamedTuple


class Received(NamedTuple):
    """A record as it was read."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    unreadable: str | None = None  # why nobody can read it: then key and value are None, the time stamp is 0


class Message(NamedTuple):
    """What is to be written. `partition` None lets the key decide (murmur2, as the Java client does)."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    partition: int | None = None
    timestamp_ms: int | None = None
    headers: Sequence[tuple[str, bytes]] = ()


Position = tuple[str, int]  # topic, partition
