"""Record batches made by hand, so that they can be broken, and sent as they are."""

import struct
import time
from collections.abc import Sequence
from typing import NamedTuple

from kafka import KafkaAdminClient
from kafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from kafka.protocol.producer import ProduceRequest
from kafka.record.util import calc_crc32c, encode_varint

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
CODEC_NAMES = ("none", "gzip", "snappy", "lz4", "zstd")
_COMPRESS = {GZIP: gzip_encode, SNAPPY: snappy_encode, LZ4: lz4_encode, ZSTD: zstd_encode}
CRC_AT, ATTRIBUTES_AT, LAST_DELTA_AT, RECORDS_AT = 17, 21, 23, 61


class Raw(NamedTuple):
    """A record to be put into a batch; header names are bytes, whatever they say."""

    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[bytes, bytes | None]] = ()


def varint(value: int) -> bytes:
    out = bytearray()
    encode_varint(value, out.append)
    return bytes(out)


def _sized(value: bytes | None) -> bytes:
    return varint(-1) if value is None else varint(len(value)) + value


def record_bytes(offset_delta: int, record: Raw) -> bytes:
    """One record, its length in front."""
    body = b"\0" + varint(0) + varint(offset_delta) + _sized(record.key) + _sized(record.value)
    body += varint(len(record.headers)) + b"".join(_sized(name) + _sized(value) for name, value in record.headers)
    return varint(len(body)) + body


def batch(
    records: Sequence[Raw],
    *,
    base: int = 0,
    codec: int = NONE,
    payload: bytes | None = None,
    last_delta: int | None = None,
    count: int | None = None,
    stamp_ms: int | None = None,
) -> bytes:
    """A batch with a sound checksum.

    Args:
        payload: the records' bytes where they are to be others than `records` give, compressed already.
        last_delta, count: what the header says, where it is to be wrong.
    """
    if payload is None:
        payload = b"".join(record_bytes(n, record) for n, record in enumerate(records))
        if codec in _COMPRESS:
            payload = _COMPRESS[codec](payload)
    stamp = stamp_ms if stamp_ms is not None else round(time.time() * 1000)
    last = len(records) - 1 if last_delta is None else last_delta
    n = len(records) if count is None else count
    checked = struct.pack(">hiqqqhii", codec, last, stamp, stamp, -1, -1, -1, n) + payload
    head = struct.pack(">ibI", -1, 2, calc_crc32c(memoryview(checked)))
    return struct.pack(">qi", base, len(head) + len(checked)) + head + checked


def with_crc(raw: bytes) -> bytes:
    """The batch with the checksum that fits its bytes."""
    return raw[:CRC_AT] + struct.pack(">I", calc_crc32c(memoryview(raw)[ATTRIBUTES_AT:])) + raw[ATTRIBUTES_AT:]


def send(bootstrap: str, topic: str, partition: int, raw: bytes) -> int:
    """Store a batch as it is; returns the offset of its first record."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        data = ProduceRequest.TopicProduceData
        parts = [data.PartitionProduceData(index=partition, records=raw)]
        request = ProduceRequest(
            transactional_id=None,
            acks=-1,
            timeout_ms=10_000,
            topic_data=[data(name=topic, partition_data=parts)],
            min_version=3,
            max_version=9,
        )
        leader = admin.describe_topics([topic])[0]["partitions"][partition]["leader_id"]
        answer = admin._manager.run(admin._manager.send, request, leader).responses[0].partition_responses[0]
    finally:
        admin.close()
    assert answer.error_code == 0, f"the broker refuses the batch: {answer}"
    return int(answer.base_offset)
