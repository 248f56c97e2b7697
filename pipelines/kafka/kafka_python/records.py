"""Parses fetched record batches. Unreadable records are identified by their offset; reading continues after them.

kafka-python stops permanently at an unreadable record, and does not limit decompression. This module replaces its
parser of fetched batches. Records of aborted transactions and control batches are skipped as before.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import lz4.frame
import snappy
import zstandard
from kafka import KafkaConsumer
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.protocol.consumer import IsolationLevel
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.legacy_records import LegacyRecordBatch
from kafka.record.util import decode_varint

from pipelines.record import Received

MAX_BATCH_BYTES = 64 << 20  # of one decompressed batch
_CHUNK_BYTES = 1 << 20
_HEADER_BYTES = DefaultRecordBatch.HEADER_STRUCT.size
_MAGIC_AT = 16
_LEAST_LENGTH = 14


def read_past_unreadable(consumer: KafkaConsumer) -> None:
    """Make a consumer's `poll` return `Received`, including one for each unreadable offset."""
    consumer._fetcher.PartitionRecords = _PartitionRecords


class _PartitionRecords(Fetcher.PartitionRecords):
    """The fetched records of one partition."""

    next_fetch_offset: int

    def _unpack_records(self, tp: Any, records: Any, *_: Any) -> Iterator[Received]:
        for base, raw, following in _slices(memoryview(records._buffer)):
            self.bytes_read += len(raw)
            batch: Iterator[_ParsedRecord]
            legacy = _legacy_records(raw)
            if legacy is not None:
                batch, end = legacy, base + 1
            elif (why := _damage(raw)) is not None:
                first = max(base, self.next_fetch_offset)
                end = _end_of_damaged(raw, base, first, following)
                batch = _all_unreadable(first, end, why)
            else:
                header = DefaultRecordBatch(raw)
                self.leader_epoch, end = header.leader_epoch, header.next_offset
                batch = iter(()) if self._is_hidden(header) else _records(header, bytes(raw[_HEADER_BYTES:]))
            for offset, stamp, key, value, unreadable in batch:
                self.records_read += 1
                self.next_fetch_offset = max(self.next_fetch_offset, offset + 1)
                yield Received(tp.topic, tp.partition, offset, stamp, key, value, unreadable)
            self.next_fetch_offset = max(self.next_fetch_offset, end)
        self.drain()

    def _is_hidden(self, batch: DefaultRecordBatch) -> bool:
        """Whether the batch is a control batch or belongs to an aborted transaction."""
        if self.isolation_level == IsolationLevel.READ_COMMITTED and batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if batch.is_control_batch:
                self.aborted_producer_ids.discard(batch.producer_id)  # commit or abort, it ends the transaction
            elif self._is_batch_aborted(batch):
                return True
        return bool(batch.is_control_batch)


_ParsedRecord = tuple[
    int, int, bytes | None, bytes | None, str | None
]  # offset, time stamp, key, value, why unreadable


def _slices(buffer: memoryview) -> Iterator[tuple[int, memoryview, int | None]]:
    """(first offset, bytes, first offset of the next batch) of each complete batch."""
    at = 0
    while at + 12 <= len(buffer):
        base, length = struct.unpack_from(">qi", buffer, at)
        if length < _LEAST_LENGTH:
            raise CorruptRecordError(f"the batch at offset {base} has length {length}: the log is damaged")
        end = at + 12 + length
        if end > len(buffer):
            return
        following = struct.unpack_from(">q", buffer, end)[0] if end + 8 <= len(buffer) else None
        yield base, buffer[at:end], following if following is not None and following > base else None
        at = end


def _damage(raw: memoryview) -> str | None:
    """The damage of a batch as a whole; if None, its header is valid."""
    if len(raw) < _HEADER_BYTES or raw[_MAGIC_AT] != 2:
        return "the format of its batch is unknown"
    if not DefaultRecordBatch(raw).validate_crc():
        return "the checksum of its batch is wrong"
    return None


def _end_of_damaged(raw: memoryview, base: int, first: int, following: int | None) -> int:
    """The end offset of a damaged batch: from its header if plausible, and at most the offset of the next batch.

    If neither is known, only `first` is skipped; reading continues at the next offset.
    """
    claimed = None
    if len(raw) >= _HEADER_BYTES:
        header = DefaultRecordBatch(raw)
        if header.records_count > 0 and header.last_offset_delta == header.records_count - 1:
            claimed = base + header.records_count
    if following is not None:
        return min(claimed or following, following)
    return max(claimed or 0, first + 1)


def _all_unreadable(first: int, end: int, why: str) -> Iterator[_ParsedRecord]:
    return ((offset, 0, None, None, why) for offset in range(first, end))


def _records(batch: DefaultRecordBatch, data: bytes) -> Iterator[_ParsedRecord]:
    """The records of a batch with a valid checksum. A damaged record is skipped by its length."""
    base, end_offset = batch.base_offset, batch.next_offset
    first_stamp = batch.first_timestamp
    append_stamp = batch.max_timestamp if batch.timestamp_type == batch.LOG_APPEND_TIME else None
    try:
        data = _decompressed(batch.compression_type, data)
    except _UnreadableError as error:
        yield from _all_unreadable(base, end_offset, str(error))
        return
    at, next_offset = 0, base
    for _ in range(batch.records_count):
        try:
            length, start = decode_varint(data, at)
            stamp_delta, body = decode_varint(data, start + 1)
            offset_delta, body = decode_varint(data, body)
            at, offset = start + length, base + offset_delta
            if length < 0 or at > len(data) or not next_offset <= offset < end_offset:
                raise ValueError
        except (IndexError, ValueError):
            yield from _all_unreadable(next_offset, end_offset, "its batch is damaged: the record lengths do not match")
            return
        next_offset = offset + 1
        try:
            key, value = _key_and_value(data, body, at)
        except UnicodeDecodeError:
            yield offset, 0, None, None, "the name of a header is not UTF-8"
        except (IndexError, ValueError):
            yield offset, 0, None, None, "the record is damaged: the field lengths do not match"
        else:
            yield offset, first_stamp + stamp_delta if append_stamp is None else append_stamp, key, value, None


def _key_and_value(data: bytes, at: int, end: int) -> tuple[bytes | None, bytes | None]:
    """Key and value of the record whose key length is at `at`; headers are only validated."""
    size, at = decode_varint(data, at)
    key = None if size < 0 else data[at : at + size]
    at += max(size, 0)
    size, at = decode_varint(data, at)
    value = None if size < 0 else data[at : at + size]
    at += max(size, 0)
    n_headers, at = decode_varint(data, at)
    for _ in range(n_headers):
        size, at = decode_varint(data, at)
        if size < 0 or at + size > end:
            raise ValueError
        data[at : at + size].decode()
        size, at = decode_varint(data, at + size)
        at += max(size, 0)
        if at > end:
            raise ValueError
    if n_headers < 0 or at != end:
        raise ValueError
    return key, value


def _legacy_records(raw: memoryview) -> Iterator[_ParsedRecord] | None:
    """The records of a batch in a format older than Kafka 0.11; None if it has another format."""
    if raw[_MAGIC_AT] > 1:
        return None
    batch = LegacyRecordBatch(raw, raw[_MAGIC_AT])
    if not batch.validate_crc():
        return None
    try:
        records = [(r.offset, r.timestamp or 0, r.key, r.value, None) for r in batch]
    except MemoryError:
        raise
    except Exception:
        return _all_unreadable(batch.base_offset, batch.base_offset + 1, "its old-format batch cannot be decoded")
    return iter(records)


class _UnreadableError(Exception):
    """Why a batch cannot be decompressed."""


def _decompressed(codec: int, data: bytes) -> bytes:
    if codec == DefaultRecordBatch.CODEC_NONE:
        return data
    if codec not in _CODECS:
        raise _UnreadableError(f"its batch is compressed with an unknown codec ({codec})")
    try:
        out = bytearray()
        for chunk in _CODECS[codec](data):
            out += chunk
            _check_size(len(out))
        return bytes(out)
    except (_UnreadableError, MemoryError):
        raise
    except Exception as error:
        raise _UnreadableError("its batch cannot be decompressed") from error


def _check_size(n_bytes: int) -> None:
    if n_bytes > MAX_BATCH_BYTES:
        raise _UnreadableError(f"its batch is larger than {MAX_BATCH_BYTES >> 20} MiB after decompression")


def _gzip(data: bytes) -> Iterator[bytes]:
    while data:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            chunk = member.decompress(data, _CHUNK_BYTES)
            data = member.unconsumed_tail
            if not chunk and not data and not member.eof:
                raise EOFError
            yield chunk
        data = member.unused_data.lstrip(b"\0")


def _snappy(data: bytes) -> Iterator[bytes]:
    n_given = 0
    for block in _snappy_blocks(data):
        size = shift = 0  # a block begins with its decompressed size
        for byte in block[:5]:
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        _check_size(n_given + size)
        n_given += size
        yield snappy.decompress(block)


def _snappy_blocks(data: bytes) -> Iterator[bytes]:
    if not data.startswith(b"\x82SNAPPY\0"):
        yield data
        return
    at = 16
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


def _lz4(data: bytes) -> Iterator[bytes]:
    frame = lz4.frame.LZ4FrameDecompressor()
    yield frame.decompress(data, max_length=_CHUNK_BYTES)
    while not frame.eof:
        if frame.needs_input:
            raise EOFError
        yield frame.decompress(b"", max_length=_CHUNK_BYTES)


def _zstd(data: bytes) -> Iterator[bytes]:
    with zstandard.ZstdDecompressor(max_window_size=MAX_BATCH_BYTES).stream_reader(
        data, read_across_frames=True
    ) as reader:
        while chunk := reader.read(_CHUNK_BYTES):
            yield chunk


_CODECS: dict[int, Callable[[bytes], Iterator[bytes]]] = {
    DefaultRecordBatch.CODEC_GZIP: _gzip,
    DefaultRecordBatch.CODEC_SNAPPY: _snappy,
    DefaultRecordBatch.CODEC_LZ4: _lz4,
    DefaultRecordBatch.CODEC_ZSTD: _zstd,
}
