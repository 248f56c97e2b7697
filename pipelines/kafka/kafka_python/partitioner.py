"""Where a key lies."""

from kafka.partitioner.default import murmur2


def partition_of(key: bytes, n_partitions: int) -> int:
    """Where the Java client's default partitioner puts a key (murmur2); every adapter's writer does the same.

    >>> partition_of(b"4711", 4)
    2
    """
    return int((murmur2(key) & 0x7FFFFFFF) % n_partitions)
