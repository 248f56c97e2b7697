"""The partitioner: the partition of a key."""

from kafka.partitioner.default import murmur2


def partition_of(key: bytes, n_partitions: int) -> int:
    """The partition of a key by the Java client's default partitioner (murmur2); all adapters use the same.

    >>> partition_of(b"4711", 4)
    2
    """
    return int((murmur2(key) & 0x7FFFFFFF) % n_partitions)
