"""Batches that cannot be read: every offset is accounted for, wherever a reader starts and a fetch ends."""

import random
import struct
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from kafka import TopicPartition
from kafka.protocol.consumer import IsolationLevel
from kafka.record import MemoryRecords

from pipelines.kafka.kafka_python import records
from pipelines.record import Received
from tests.pipelines.kafka import batches
from tests.pipelines.kafka.batches import (
    ATTRIBUTES_AT,
    GZIP,
    LAST_DELTA_AT,
    LZ4,
    NONE,
    RECORDS_AT,
    SNAPPY,
    ZSTD,
    Raw,
)

TP = TopicPartition("t", 0)
CODECS = (NONE, GZIP, SNAPPY, LZ4, ZSTD)
NOT_UTF8 = [(b"\xff\xfe", b"x")]


def three(base: int, codec: int = NONE) -> bytes:
    """A batch of three, with headers; the middle one has a bad header name."""
    rows = [Raw(b"v0", b"k", [(b"h", b"1")]), Raw(b"v1", b"k", NOT_UTF8), Raw(None, None, [(b"h", None)])]
    return batches.batch(rows, base=base, codec=codec, stamp_ms=base)


def read(
    log: Sequence[bytes], start: int, *, fetch_bytes: int = 1 << 20, at_once: int = 1_000, end: int = 1 << 40
) -> list[Received]:
    """What a reader gets that starts at `start`, from a broker that finds batches as Kafka does."""
    found: list[Received] = []
    position = start
    for _ in range(10_000):
        firsts = [struct.unpack_from(">q", b)[0] for b in log]
        lasts = [f + struct.unpack_from(">i", b, LAST_DELTA_AT)[0] for f, b in zip(firsts, log, strict=True)]
        at = next((n for n, last in enumerate(lasts) if last >= position), None)
        if at is None or position >= end:
            return found
        data = b"".join(log[at:])
        data = data[: max(fetch_bytes, len(log[at]))]
        fetched = records._PartitionRecords(
            position, TP, MemoryRecords(data), isolation_level=IsolationLevel.READ_COMMITTED
        )
        while fetched:
            found += fetched.take(at_once)
            assert fetched.next_fetch_offset >= position, "reading goes backwards"
            position = fetched.next_fetch_offset
    raise AssertionError("reading makes no headway")


def outcome(record: Received) -> tuple[int, bool, bytes | None]:
    return record.offset, record.unreadable is None, record.value


@pytest.mark.parametrize("codec", CODECS)
def test_a_bad_header_name_costs_one_record_and_its_neighbours_are_read(codec: int) -> None:
    found = read([three(5, codec)], 5)
    assert found == [
        Received("t", 0, 5, 5, b"k", b"v0"),
        Received("t", 0, 6, 0, None, None, "the name of a header is not UTF-8"),
        Received("t", 0, 7, 5, None, None),
    ]


def bombs() -> dict[int, bytes]:
    """Payloads of twice what is allowed."""
    big = batches.record_bytes(0, Raw(bytes(2 * records.MAX_BATCH_BYTES)))
    return {codec: batches._COMPRESS[codec](big) for codec in CODECS[1:]}


def test_a_bomb_is_refused_before_it_has_unfolded() -> None:
    import tracemalloc

    for codec, payload in bombs().items():
        raw = batches.batch([Raw(b"")] * 2, codec=codec, payload=payload)
        tracemalloc.start()
        found = read([raw, three(2)], 0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert [outcome(r) for r in found[:3]] == [(0, False, None), (1, False, None), (2, True, b"v0")]
        assert "64 MiB" in (found[0].unreadable or "")
        assert peak < 2.5 * records.MAX_BATCH_BYTES, f"{batches.CODEC_NAMES[codec]}: {peak >> 20} MiB"


@pytest.mark.parametrize("codec", [*CODECS[1:], 5, 7])
def test_a_payload_that_does_not_decompress_costs_its_batch(codec: int) -> None:
    bad = batches.batch([Raw(b"a")] * 3, base=2, codec=codec, payload=b"\x05nonsense" * 9)
    found = read([batches.batch([Raw(b"x")] * 2), bad, three(5)], 0)
    assert [outcome(r)[:2] for r in found] == [(n, n not in (2, 3, 4, 6)) for n in range(8)]


@pytest.mark.parametrize("codec", CODECS[1:])
def test_a_payload_cut_short_costs_its_batch(codec: int) -> None:
    whole = batches.batch([Raw(random.Random(1).randbytes(50_000))] * 2, codec=codec)
    found = read([batches.with_crc(struct.pack(">qi", 0, len(whole) - 100 - 12) + whole[12:-100]), three(2)], 0)
    assert [outcome(r)[:2] for r in found] == [(0, False), (1, False), (2, True), (3, False), (4, True)]


@pytest.mark.parametrize(
    ("at", "why"),
    [(1, "record lengths"), (2, "field lengths"), (6, "field lengths"), (0, "record lengths")],
)
def test_bytes_that_are_no_record_are_refused(at: int, why: str) -> None:
    sound = batches.record_bytes(0, Raw(b"value", b"key"))
    broken = bytearray(batches.record_bytes(1, Raw(b"value", b"key")))
    if at == 0:
        broken = bytearray(batches.varint(1 << 40))
    elif at == 1:
        broken[3:4] = batches.varint(9)  # an offset beyond the batch
    else:
        broken[at + 2] = 0x7F
    payload = sound + bytes(broken) + batches.record_bytes(2, Raw(b"value"))
    found = read([batches.batch([Raw(b"")] * 3, payload=payload), three(3)], 0)
    assert [r.offset for r in found] == list(range(6))
    assert outcome(found[0]) == (0, True, b"value")
    assert why in (found[1].unreadable or "")


def damaged(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :]


@pytest.mark.parametrize("at", [ATTRIBUTES_AT + 1, LAST_DELTA_AT + 3, 30, 45, 57, RECORDS_AT + 3, 16, 17])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_offset_of_a_damaged_batch_is_refused_and_no_other(at: int, place: int) -> None:
    log = [batches.batch([Raw(b"x")] * 4, base=4 * n) for n in range(3)]
    log[place] = damaged(log[place], at)
    first = 4 * place
    expected = [(n, not first <= n < first + 4) for n in range(12)]
    assert [outcome(r)[:2] for r in read(log, 0, end=12)] == expected
    if at == LAST_DELTA_AT + 3:
        return  # the broker itself looks for a batch by this field
    for start in range(12):
        assert [outcome(r)[:2] for r in read(log, start, end=12)] == expected[start:]


def test_wherever_a_reader_starts_and_a_fetch_ends_the_same_offsets_are_unreadable() -> None:
    rng = random.Random(3)
    log: list[bytes] = []
    base = 0
    for n in range(40):
        raw = three(base, rng.choice(CODECS))
        if n % 5 == 1:
            raw = damaged(raw, rng.choice([ATTRIBUTES_AT + 1, 30, 45, RECORDS_AT + 2, len(raw) - 1]))
        if n % 5 == 3:
            raw = batches.batch([Raw(b"x")] * 3, base=base, codec=6, payload=b"?")
        log.append(raw)
        base += 3 + (n % 7 == 0)  # a gap, as compaction leaves it
    whole = [outcome(r) for r in read(log, 0)]
    assert [offset for offset, *_ in whole] == sorted({offset for offset, *_ in whole})
    assert {good for _, good, _ in whole} == {True, False}
    for _ in range(300):
        start = rng.randrange(base)
        found = read(log, start, fetch_bytes=rng.choice([1, 100, 300, 5_000]), at_once=rng.choice([1, 2, 7, 1_000]))
        assert [outcome(r) for r in found] == [o for o in whole if o[0] >= start]


def marker(base: int, producer: int, *, commit: bool) -> bytes:
    raw = batches.batch([Raw(b"\0" * 6, struct.pack(">hh", 0, int(commit)))], base=base)
    return transactional(raw, producer, 0x30)


def transactional(raw: bytes, producer: int, attributes: int = 0x10) -> bytes:
    """The batch as one of a producer's transaction."""
    head = struct.pack(">h", raw[ATTRIBUTES_AT + 1] | attributes)
    return batches.with_crc(raw[:ATTRIBUTES_AT] + head + raw[23:43] + struct.pack(">qh", producer, 0) + raw[53:])


def test_aborted_transactions_and_markers_stay_hidden() -> None:
    rows = [Raw(b"x")] * 2
    log = [
        transactional(batches.batch(rows), 7),
        marker(2, 7, commit=False),
        transactional(batches.batch(rows, base=3), 7),
        damaged(transactional(batches.batch(rows, base=5), 8), RECORDS_AT),
        marker(7, 7, commit=True),
        batches.batch(rows, base=8),
    ]
    aborted = [SimpleNamespace(producer_id=7, first_offset=0)]
    fetched = records._PartitionRecords(
        0,
        TP,
        MemoryRecords(b"".join(log)),
        isolation_level=IsolationLevel.READ_COMMITTED,
        aborted_transactions=aborted,
    )
    assert [outcome(r)[:2] for r in fetched.take()] == [
        (3, True),
        (4, True),
        (5, False),
        (6, False),
        (8, True),
        (9, True),
    ]
    assert fetched.next_fetch_offset == 10
