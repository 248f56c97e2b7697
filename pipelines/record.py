"""A record as a Kafka client reads it: raw bytes at an offset."""

from typing import NamedTuple


class Received(NamedTuple):
    """A record as it was read."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    unreadable: str | None = None  # why the record cannot be read; then key and value are None and the timestamp is 0
