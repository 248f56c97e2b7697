"""Whatever lies in a log, the reader of librdkafka gives the same as that of kafka-python: nothing is skipped."""

import random
import uuid
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from flows.local.kafka_server import Broker, start_broker
from pipelines.kafka import topics
from pipelines.kafka.confluent import fetch, reader
from pipelines.kafka.confluent.client import Confluent
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message
from pipelines.kafka.topics import KEEP_FOR_EVER
from pipelines.record import Received
from tests.patience import wait_until
from tests.pipelines.kafka import batches
from tests.pipelines.kafka.batches import GZIP, LZ4, NONE, SNAPPY, ZSTD, Raw
from tests.pipelines.live.hostile import damage

NOT_UTF8 = [(b"\xff", b"x")]
_number = count()


def new_topic(bootstrap: str) -> str:
    name = f"confluent-{uuid.uuid4().hex[:12]}"
    topics.create_topics(Connection(bootstrap), {name: 1}, config=KEEP_FOR_EVER)
    return name


def rows(n: int) -> list[Raw]:
    return [Raw(b"v%d" % next(_number), b"k", [(b"h", b"1")]) for _ in range(n)]


def claims_other_offsets() -> bytes:
    """A batch whose second record claims an offset far behind the batch; the broker accepts it."""
    payload = b"".join(batches.record_bytes(delta, Raw(b"o", b"k")) for delta in (0, 9, 2))
    return batches.batch([Raw(b"")] * 3, payload=payload)


def large(n_bytes: int, codec: int) -> bytes:
    """A batch with one record that is large only after decompression."""
    payload = batches._COMPRESS[codec](batches.record_bytes(0, Raw(bytes(n_bytes))))
    return batches.batch([Raw(b"")], codec=codec, payload=payload)


def everything() -> Iterator[bytes]:
    """Batches of all kinds, in any order."""
    for codec in (NONE, GZIP, SNAPPY, LZ4, ZSTD):
        yield batches.batch(rows(3), codec=codec)
        yield batches.batch([rows(1)[0], Raw(b"bad", None, NOT_UTF8), *rows(1)], codec=codec)
    yield claims_other_offsets()
    yield claims_other_offsets()
    yield large(3 << 20, GZIP)
    yield large(66 << 20, LZ4)
    yield large(66 << 20, ZSTD)
    yield batches.batch([Raw(None), Raw(b""), Raw(None, b"")])
    yield from (batches.batch(rows(1), stamp_ms=stamp) for stamp in (-1, 0, 1))


def aborted(bootstrap: str, topic: str) -> None:
    """A record, rolled back by the next producer of its id."""
    connection = Connection(bootstrap)
    writer = connection.transactional_writer(topic)
    with pytest.raises(ZeroDivisionError):
        writer.commit(Message(topic, b"aborted", partition=int(1 / n)) for n in (10, 0))
    writer.close()
    with connection.transactional_writer(topic) as successor:
        successor.commit([Message(topic, b"committed", partition=0)])


def read(connection: Connection, topic: str, start: int, end: int, *, max_records: int = 5_000) -> list[Received]:
    found: list[Received] = []
    with connection.reader({(topic, 0): start}, max_records=max_records) as one:

        def is_read() -> bool:
            found.extend(one.poll())
            return one.position((topic, 0)) >= end

        wait_until(is_read, seen=lambda: one.position((topic, 0)))
    return found


@pytest.mark.parametrize(("distrust", "max_records"), [(1, 5_000), (1, 2), (20_000, 5_000)])
def test_every_offset_is_accounted_for_as_by_the_other_adapter(
    kafka: str, monkeypatch: pytest.MonkeyPatch, distrust: int, max_records: int
) -> None:
    monkeypatch.setattr(reader, "DISTRUST", distrust)
    topic, rng = new_topic(kafka), random.Random(distrust + max_records)
    kinds = list(everything())
    rng.shuffle(kinds)
    for raw in kinds:
        batches.send(kafka, topic, 0, raw)
        if rng.random() < 0.2:
            aborted(kafka, topic)
    batches.send(kafka, topic, 0, batches.batch(rows(2)))
    plain, fast = Connection(kafka), Connection(kafka, adapter=Confluent)
    end = topics.bounds(plain, [topic])[topic, 0][1]
    expected = read(plain, topic, 0, end)
    assert sum(record.unreadable is not None for record in expected) > 5
    for start in (0, *rng.sample(range(end), 2)):
        found = read(fast, topic, start, end, max_records=max_records)
        assert found == [record for record in expected if record.offset >= start]


DAMAGES: Sequence[tuple[int, int, bool]] = (  # codec, place, whether the checksum is made to fit
    (NONE, batches.RECORDS_AT + 9, False),
    (NONE, batches.CRC_AT, False),
    (NONE, 16, False),
    (NONE, batches.RECORDS_AT, True),
    (NONE, batches.RECORDS_AT + 4, True),
    (NONE, batches.RECORDS_AT + 6, True),
    (NONE, batches.ATTRIBUTES_AT + 1, True),
    (GZIP, batches.RECORDS_AT + 20, True),
    (ZSTD, -9, False),
)


def test_what_is_damaged_on_disk_is_accounted_for_as_by_the_other_adapter(
    tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broker.kind != "kafka":
        pytest.skip("needs a broker of its own")
    monkeypatch.setattr(reader, "DISTRUST", 1)
    monkeypatch.setattr(fetch, "STALL_S", 0.2)
    own = start_broker(tmp_path / "kafka", log=lambda line: None)
    try:
        topic = new_topic(own.bootstrap)
        places = {}
        for codec, place, fit in DAMAGES:
            batches.send(own.bootstrap, topic, 0, batches.batch(rows(2)))
            places[batches.send(own.bootstrap, topic, 0, batches.batch(rows(4), codec=codec))] = place, fit
        batches.send(own.bootstrap, topic, 0, batches.batch(rows(2)))
        position, before = (topic, 0), Connection(own.bootstrap, adapter=Confluent).reader({(topic, 0): 0})
        wait_until(lambda: position in before.ends())
        own.stop()
        damage(own.folder / "data" / f"{topic}-0" / f"{0:020d}.log", places)
        own = start_broker(own.folder, log=lambda line: None)
        plain, fast = Connection(own.bootstrap), Connection(own.bootstrap, adapter=Confluent)
        topics.wait_until_up(plain)
        end = topics.bounds(plain, [topic])[topic, 0][1]
        expected = read(plain, topic, 0, end)
        bad = {record.offset for record in expected if record.unreadable}
        assert len(expected) == end
        assert all(bad & set(range(first, first + 4)) for first in places)
        assert read(fast, topic, 0, end) == expected
        assert read(fast, topic, 0, end, max_records=1) == expected
        wait_until(lambda: before.ends() == {position: end})  # a restart makes a client's leader epoch a stale one
        before.close()
    finally:
        own.stop()


def test_no_group_is_joined(kafka: str) -> None:
    topic = new_topic(kafka)
    batches.send(kafka, topic, 0, batches.batch(rows(1)))
    read(Connection(kafka, adapter=Confluent), topic, 0, 1)
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    try:
        assert "unmask-reader" not in str(admin.list_groups())
    finally:
        admin.close()
