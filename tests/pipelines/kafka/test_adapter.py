"""What every adapter of the Kafka port must do, on a real broker."""

import random
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping

import pytest
from kafka import KafkaConsumer, TopicPartition

from pipelines.errors import BrokerError, FencedError, RejectedError, TooLargeError
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection, Shared
from pipelines.kafka.port import MAX_REQUEST_BYTES, Adapter, Message, Position, Reader
from pipelines.kafka.topics import KEEP_FOR_EVER
from pipelines.record import Received
from tests.patience import wait_until
from tests.pipelines.kafka import batches
from tests.pipelines.kafka.batches import Raw
from tests.pipelines.kafka.link import Linked

ANSWER_MS = 60_000  # an answer is wanted, however late it comes
NOT_UTF8 = "the name of a header is not UTF-8"


@pytest.fixture
def connection(kafka: str, adapter: Adapter) -> Connection:
    return Connection(kafka, adapter=adapter)


@pytest.fixture
def over_link(linked: Linked, adapter: Adapter) -> Connection:
    return Connection(linked.bootstrap, adapter=adapter)


def new_topic(connection: Connection, n_partitions: int = 1, config: Mapping[str, str] = KEEP_FOR_EVER) -> str:
    name = f"adapter-{uuid.uuid4().hex[:12]}"
    topics.create_topics(connection, {name: n_partitions}, config=config)
    return name


def write(connection: Connection, *messages: Message) -> list[int]:
    """Offsets of stored messages."""
    with connection.writer() as writer:
        for message in messages:
            writer.send(message)
        return [offset for _, _, offset in writer.flush()]


def read(reader: Reader, n: int) -> list[Received]:
    """The next n records."""
    found: list[Received] = []

    def got_all() -> bool:
        found.extend(reader.poll())
        return len(found) >= n

    wait_until(got_all, seen=lambda: len(found))
    assert len(found) == n
    return found


def whole(connection: Connection, topic: str) -> list[Received]:
    """Every committed record."""
    return [r for batch in topics.read_between(connection, topics.bounds(connection, [topic])) for r in batch]


def values(records: list[Received]) -> list[bytes | None]:
    return [record.value for record in records]


def reach(reader: Reader, position: Position, offset: int) -> None:
    """Poll until the position is there; nothing must come meanwhile."""

    def is_there() -> bool:
        assert not reader.poll()
        return reader.position(position) == offset

    wait_until(is_there, seen=lambda: reader.position(position))


# --- reading


def test_a_reader_starts_at_its_offsets_and_can_be_assigned_again(connection: Connection) -> None:
    topic = new_topic(connection, 2)
    write(connection, *(Message(topic, b"%d" % n, partition=n % 2) for n in range(20)))
    with connection.reader({(topic, 0): 7}) as reader:
        found = read(reader, 3)
        assert [(r.topic, r.partition, r.offset, r.value) for r in found] == [
            (topic, 0, 7, b"14"), (topic, 0, 8, b"16"), (topic, 0, 9, b"18")
        ]  # fmt: skip
        assert reader.position((topic, 0)) == 10
        reader.assign({(topic, 1): 9})
        assert values(read(reader, 1)) == [b"19"]


def test_a_poll_gives_no_more_than_was_asked_for(connection: Connection) -> None:
    topic = new_topic(connection)
    write(connection, *(Message(topic, b"%d" % n, partition=0) for n in range(50)))
    with connection.reader({(topic, 0): 0}, max_records=7) as reader:
        polled: list[list[Received]] = []

        def got_all() -> bool:
            polled.append(reader.poll())
            return sum(map(len, polled)) == 50

        wait_until(got_all)
    assert max(map(len, polled)) <= 7
    assert [r.offset for batch in polled for r in batch] == list(range(50))


def test_a_position_that_is_not_in_the_log_ends_the_reading(connection: Connection) -> None:
    topic = new_topic(connection)
    write(connection, Message(topic, b"x", partition=0))
    with connection.reader({(topic, 0): 5}) as reader, pytest.raises(BrokerError, match="nothing was skipped"):
        wait_until(lambda: bool(reader.poll()))


def test_key_value_and_time_stamp_come_as_they_were_written(connection: Connection) -> None:
    topic = new_topic(connection)
    written = [(None, b"v", 1), (b"", b"", 2), (b"\xff\0", b"\xfe\0", 3), (b"k", None, 1_700_000_000_000)]
    write(connection, *(Message(topic, value, key, 0, stamp) for key, value, stamp in written))
    batches.send(connection.bootstrap, topic, 0, batches.batch([Raw(None)], stamp_ms=4))  # clients refuse to write it
    assert [(r.key, r.value, r.timestamp_ms) for r in whole(connection, topic)] == [*written, (None, None, 4)]


def test_a_broker_that_stamps_appends_has_the_last_word(connection: Connection) -> None:
    topic = new_topic(connection, config={"message.timestamp.type": "LogAppendTime"})
    write(connection, Message(topic, b"x", partition=0, timestamp_ms=1))
    [record] = whole(connection, topic)
    assert abs(record.timestamp_ms / 1000 - time.time()) < 3_600


def test_headers_are_written(connection: Connection) -> None:
    topic = new_topic(connection)
    headers = [("content-type", b"json"), ("empty", b""), ("content-type", b"again")]
    write(connection, Message(topic, b"x", partition=0, headers=headers))
    consumer = KafkaConsumer(bootstrap_servers=connection.bootstrap, consumer_timeout_ms=ANSWER_MS)
    consumer.assign([TopicPartition(topic, 0)])
    consumer.seek_to_beginning()
    assert next(consumer).headers == headers
    consumer.close()


def test_a_record_that_nobody_can_read_is_passed_by_its_offset(connection: Connection) -> None:
    topic = new_topic(connection)
    rows = [Raw(b"a", b"k"), Raw(b"bad", headers=[(b"\xff", b"")]), Raw(b"b")]
    batches.send(connection.bootstrap, topic, 0, batches.batch(rows, stamp_ms=5))
    batches.send(connection.bootstrap, topic, 0, batches.batch(rows, codec=batches.GZIP, stamp_ms=5))
    write(connection, Message(topic, b"c", partition=0, timestamp_ms=6))
    with connection.reader({(topic, 0): 0}) as reader:
        found = read(reader, 7)
        assert reader.position((topic, 0)) == 7
    assert found[:3] == [
        Received(topic, 0, 0, 5, b"k", b"a"),
        Received(topic, 0, 1, 0, None, None, NOT_UTF8),
        Received(topic, 0, 2, 5, None, b"b"),
    ]
    assert [(r.offset, r.value, r.unreadable) for r in found[3:]] == [
        (3, b"a", None), (4, None, NOT_UTF8), (5, b"b", None), (6, b"c", None)
    ]  # fmt: skip


def test_partitions_held_in_any_order_are_read_whole_and_in_order(connection: Connection) -> None:
    n = 6_000
    topic = new_topic(connection, 3)
    write(connection, *(Message(topic, b"x" * 200, partition=i % 3) for i in range(3 * n)))
    rng, positions = random.Random(5), [(topic, p) for p in range(3)]
    found: dict[int, list[int]] = {p: [] for p in range(3)}
    with connection.reader(dict.fromkeys(positions, 0), max_records=500) as reader:

        def read_some() -> bool:
            held = rng.sample(positions, rng.randrange(3))
            reader.hold(held)
            for _ in range(rng.randrange(1, 4)):
                for record in reader.poll():
                    assert (topic, record.partition) not in held
                    found[record.partition].append(record.offset)
            return sum(map(len, found.values())) >= 3 * n

        wait_until(read_some, seen=lambda: [len(offsets) for offsets in found.values()])
        assert all(reader.position(p) == n for p in positions)
    assert all(offsets == list(range(n)) for offsets in found.values())


def test_whatever_is_held_no_more_is_read_again(connection: Connection) -> None:
    topic = new_topic(connection, 3)
    a, b, c = ((topic, p) for p in range(3))
    steps: list[set[Position]] = [{a, b}, {b}, set(), {a}, {a, b, c}, {c}, set()]
    n_read = dict.fromkeys((a, b, c), 0)
    with connection.reader(dict(n_read)) as reader, connection.writer() as writer:
        for sent, held in enumerate(steps, 1):
            reader.hold(held)
            before = dict(n_read)
            for _, partition in n_read:
                writer.send(Message(topic, b"x", partition=partition))
            writer.flush()

            def read_some(sent: int = sent, held: set[Position] = held) -> bool:
                for record in reader.poll():
                    n_read[(topic, record.partition)] += 1
                return all(n_read[p] >= sent for p in n_read if p not in held)

            wait_until(read_some, seen=n_read.copy)
            assert {p: n_read[p] for p in held} == {p: before[p] for p in held}


# --- transactions, as a reader sees them


def test_the_end_of_a_partition_lies_behind_what_open_transactions_wrote(connection: Connection) -> None:
    topic = new_topic(connection, 2)
    at = (topic, 0)
    with connection.reader({at: 0, (topic, 1): 0}) as reader, connection.transactional_writer(topic) as upstream:

        def messages() -> Iterator[Message]:
            yield Message(topic, b"open", partition=0)
            wait_until(lambda: reader.ends(timeout_ms=ANSWER_MS).get(at) == 1)
            assert not reader.poll()
            assert reader.ends(timeout_ms=ANSWER_MS) == {at: 1, (topic, 1): 0}
            assert reader.position(at) == 0
            assert reader.spans([at]) == {at: (0, 0)}  # nothing is committed
            yield Message(topic, b"more", partition=0)

        upstream.commit(messages())
        assert values(read(reader, 2)) == [b"open", b"more"]
        reach(reader, at, 3)
        assert reader.ends(timeout_ms=ANSWER_MS) == {at: 3, (topic, 1): 0}  # two records and a marker
        assert reader.spans([at]) == {at: (0, 3)}


def test_an_aborted_transaction_is_never_seen_and_the_position_passes_it(connection: Connection) -> None:
    topic = new_topic(connection)
    left_open = connection.transactional_writer(topic)

    def messages() -> Iterator[Message]:
        yield Message(topic, b"aborted", partition=0)
        with connection.reader({(topic, 0): 0}) as reader:
            wait_until(lambda: reader.ends(timeout_ms=ANSWER_MS).get((topic, 0)) == 1)
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError):
        left_open.commit(messages())
    with connection.transactional_writer(topic) as successor, connection.reader({(topic, 0): 0}) as reader:
        reach(reader, (topic, 0), 2)  # a record and a marker
        successor.commit([Message(topic, b"committed", partition=0)])
        [record] = read(reader, 1)
        assert (record.offset, record.value) == (2, b"committed")
        reach(reader, (topic, 0), 4)
    left_open.close()


def test_a_topic_that_disappears_costs_no_other_its_end(connection: Connection) -> None:
    kept, gone = new_topic(connection), new_topic(connection)
    write(connection, Message(kept, b"x", partition=0))
    with connection.reader({(kept, 0): 0, (gone, 0): 0}) as reader:
        wait_until(lambda: reader.ends(timeout_ms=ANSWER_MS) == {(kept, 0): 1, (gone, 0): 0})
        topics.delete_topics(connection, [gone])
        wait_until(lambda: reader.ends() == {(kept, 0): 1})


# --- writing


def test_a_writer_returns_where_each_record_lies(connection: Connection) -> None:
    topic = new_topic(connection, 2)
    with connection.writer() as writer:
        for n in range(10):
            writer.send(Message(topic, b"%d" % n, partition=n % 2))
        assert writer.flush() == [(topic, n % 2, n // 2) for n in range(10)]
        assert writer.flush() == []


def test_a_key_decides_the_partition_as_in_java(connection: Connection) -> None:
    topic = new_topic(connection, 5)
    keys = [b"%d" % n for n in range(40)] + [b"", b"\xff"]
    with connection.writer() as writer:
        for key in keys:
            writer.send(Message(topic, b"x", key))
        assert [p for _, p, _ in writer.flush()] == [topics.partition_of(key, 5) for key in keys]


def test_what_is_too_large_is_reported_by_send_or_flush(connection: Connection) -> None:
    topic = new_topic(connection, config={"max.message.bytes": "1000"})
    for size in (2_000, 2 * MAX_REQUEST_BYTES):
        with pytest.raises(TooLargeError), connection.writer() as writer:
            writer.send(Message(topic, b"x" * size, partition=0))
            writer.flush()
    assert not whole(connection, topic)


def test_a_writer_whose_link_fails_stores_each_record_once_and_in_order(over_link: Connection, linked: Linked) -> None:
    direct = Connection(linked.broker.bootstrap)
    topic = new_topic(direct)
    with over_link.writer(linger_ms=0) as writer:
        for n in range(60):
            if n % 20 == 10:  # an answer may be lost with a batch that is stored
                threading.Timer(0.2, linked.link.mend).start()
                linked.link.cut()
            writer.send(Message(topic, b"%d" % n, partition=0))
        wait_until(lambda: not linked.link.is_cut)
        writer.flush()
    assert values(whole(direct, topic)) == [b"%d" % n for n in range(60)]


# --- guarded transactions


def test_a_transaction_is_written_whole_after_its_last_check(connection: Connection) -> None:
    topic = new_topic(connection, 2)
    seen = []
    with connection.transactional_writer(topic) as writer:
        messages = [Message(topic, b"a", b"k", 0, 7, [("h", b"1")]), Message(topic, None, b"k", 1)]
        writer.commit(messages, before_commit=lambda: seen.append(whole(connection, topic)))
        assert seen == [[]]  # stored, but not committed yet
        writer.commit([])
    assert {(r.partition, r.key, r.value) for r in whole(connection, topic)} == {(0, b"k", b"a"), (1, b"k", None)}


def test_an_older_writer_of_the_same_id_is_fenced(connection: Connection) -> None:
    topic = new_topic(connection)
    with connection.transactional_writer(topic) as older:
        older.commit([Message(topic, b"1", partition=0)])
        with connection.transactional_writer(topic) as newer:
            with pytest.raises(FencedError, match="another producer has taken over"):
                older.commit([Message(topic, b"2", partition=0)])
            newer.commit([Message(topic, b"3", partition=0)])
    assert values(whole(connection, topic)) == [b"1", b"3"]


@pytest.mark.parametrize("size", [2_000, MAX_REQUEST_BYTES])
def test_one_record_that_is_too_large_takes_its_transaction_with_it(connection: Connection, size: int) -> None:
    topic = new_topic(connection, config={"max.message.bytes": "1000"})
    with connection.transactional_writer(topic) as writer, pytest.raises(TooLargeError, match=r"max\.message\.bytes"):
        writer.commit([Message(topic, b"small", partition=0), Message(topic, b"x" * size, partition=0)])
    with connection.transactional_writer(topic) as writer:
        writer.commit([Message(topic, b"fits", partition=0)])
    assert values(whole(connection, topic)) == [b"fits"]


def test_what_the_broker_rejects_permanently_is_an_error_of_its_own(connection: Connection) -> None:
    topic = new_topic(connection, config={"cleanup.policy": "compact"})  # takes no record without a key
    with connection.transactional_writer(topic) as writer, pytest.raises(RejectedError):
        writer.commit([Message(topic, b"x", partition=0)])
    with pytest.raises(RejectedError):
        write(connection, Message(topic, b"x", partition=0))


def test_a_record_that_expires_never_leaves_a_commit_that_looks_well(over_link: Connection, linked: Linked) -> None:
    direct = Connection(linked.broker.bootstrap)
    topic = new_topic(direct)
    writer = over_link.transactional_writer(topic)
    writer.commit([Message(topic, b"before", partition=0)])

    def messages() -> Iterator[Message]:
        yield Message(topic, b"stored", partition=0)
        # Once it is stored the partition is in the transaction: what follows can only expire.
        with direct.reader({(topic, 0): 0}) as reader:
            wait_until(lambda: reader.ends(timeout_ms=ANSWER_MS).get((topic, 0)) == 3)
        linked.link.swallow()
        yield Message(topic, b"expired", partition=0)

    with pytest.raises(BrokerError):
        writer.commit(messages())
    linked.link.mend()
    writer.close()
    with over_link.transactional_writer(topic) as again:
        assert values(whole(direct, topic)) == [b"before"]
        again.commit([Message(topic, b"after", partition=0)])
    assert values(whole(direct, topic)) == [b"before", b"after"]


# --- topics and groups


def test_topics_are_created_described_and_deleted(connection: Connection) -> None:
    topic = new_topic(connection, 3)
    topics.create_topics(connection, {topic: 7}, config={})  # it is there: nothing changes
    assert topic in topics.topic_names(connection)
    assert topics.partitions_of(connection, topic) == [(topic, p) for p in range(3)]
    assert topics.bounds(connection, [topic]) == {(topic, p): (0, 0) for p in range(3)}
    first = topics.topic_ids(connection, [topic])[topic]
    topics.delete_topics(connection, [topic])
    assert topic not in topics.topic_names(connection)
    topics.create_topics(connection, {topic: 1}, config={})
    assert topics.topic_ids(connection, [topic])[topic] != first


def test_a_topic_changes_to_stamps_on_arrival_unless_its_newest_record_is_in_the_future(connection: Connection) -> None:
    topic = new_topic(connection, 2, KEEP_FOR_EVER | {"message.timestamp.after.max.ms": str(2**63 - 1)})
    before = int(time.time() * 1000)
    for later in (before + 60_000, 2**62):
        write(connection, Message(topic, b"", None, 1, later))
        with pytest.raises(BrokerError, match=r"\[1\] has a record with the timestamp .* in the future"):
            topics.stamp_appends(connection, topic)
        assert not topics.stamps_appends(connection, topic)
    past = new_topic(connection, 2)
    write(connection, Message(past, b"", None, 1, 1_000))
    topics.stamp_appends(connection, past)
    assert topics.stamps_appends(connection, past)
    write(connection, Message(past, b"", None, 1, 2_000))
    spans = topics.bounds(connection, [past])
    stamps = [record.timestamp_ms for batch in topics.read_between(connection, spans) for record in batch]
    assert stamps[0] == 1_000
    assert stamps[1] >= before


def test_a_topic_that_does_not_exist_is_named(connection: Connection) -> None:
    asked: list[Callable[[], object]] = [
        lambda: topics.partitions_of(connection, "no-such"),
        lambda: topics.topic_ids(connection, ["no-such"]),
        lambda: topics.bounds(connection, ["no-such"]),
    ]
    for ask in asked:
        with pytest.raises(BrokerError, match="topic no-such does not exist"):
            ask()


def test_partitions_added_while_reading_are_seen(connection: Connection) -> None:
    topic = new_topic(connection, 2)
    with connection.reader({(topic, 0): 0, (topic, 1): 0}) as reader:
        reader.poll()
        assert reader.n_partitions(topic, timeout_ms=ANSWER_MS) == 2
        topics.add_partitions(connection, {topic: 3})
        assert topics.partitions_of(connection, topic) == [(topic, p) for p in range(3)]
        wait_until(lambda: reader.n_partitions(topic, timeout_ms=ANSWER_MS) == 3)
        assert reader.n_partitions("no-such-topic") is None


def test_the_setting_itself_is_read_and_no_other_that_sounds_like_it(connection: Connection) -> None:
    stamped = new_topic(connection, config={"message.timestamp.type": "LogAppendTime"})
    plain = f"LogAppendTime-by-name-only-{uuid.uuid4().hex}"
    topics.create_topics(connection, {plain: 1}, config={"message.timestamp.type": "CreateTime"})
    assert topics.stamps_appends(connection, stamped)
    assert not topics.stamps_appends(connection, plain)
    with pytest.raises(BrokerError, match=f"{plain} must have message.timestamp.type=LogAppendTime"):
        topics.stamps_appends(connection, stamped, plain)


def test_a_groups_offsets_are_noted(connection: Connection) -> None:
    topic = new_topic(connection, 2)
    topics.note_group(connection, topic, {(topic, 0): 3, (topic, 1): 0})
    assert topics.group_positions(connection, topic) == {(topic, 0): 3, (topic, 1): 0}


# --- parts of topics


def test_the_last_record_is_found_behind_markers_and_aborted_records(connection: Connection) -> None:
    topic = new_topic(connection, 2)
    assert topics.last_records(connection, [(topic, 0), (topic, 1)]) == {}
    write(connection, Message(topic, b"last", partition=0))
    for _ in range(12):
        writer = connection.transactional_writer(topic)
        with pytest.raises(ZeroDivisionError):
            writer.commit(Message(topic, b"aborted", partition=int(1 / n)) for n in (10, 0))
        writer.close()
    connection.transactional_writer(topic).close()  # aborts what was open
    found = topics.last_record(connection, topic, 0)
    assert found is not None
    assert found.value == b"last"


def test_a_record_that_nobody_can_read_is_the_last_one_all_the_same(connection: Connection) -> None:
    topic = new_topic(connection)
    rows = [Raw(b"good"), Raw(b"bad", headers=[(b"\xff", b"")])]
    batches.send(connection.bootstrap, topic, 0, batches.batch(rows))
    assert topics.last_record(connection, topic, 0) == Received(topic, 0, 1, 0, None, None, NOT_UTF8)


def test_a_part_of_each_partition_is_read_and_nothing_else(connection: Connection) -> None:
    topic = new_topic(connection, 3)
    write(connection, *(Message(topic, struct.pack(">i", n), partition=n % 3) for n in range(300)))
    spans = {(topic, 0): (10, 20), (topic, 1): (99, 100), (topic, 2): (5, 5)}
    found = [(r.partition, r.offset) for batch in topics.read_between(connection, spans) for r in batch]
    assert sorted(found) == [(0, n) for n in range(10, 20)] + [(1, 99)]
    assert not list(topics.read_between(connection, {(topic, 0): (7, 7)}))


def test_many_questions_of_several_threads_share_one_client(connection: Connection) -> None:
    topic = new_topic(connection, 2)
    write(connection, *(Message(topic, b"%d" % n, partition=n % 2) for n in range(200)))
    answers: list[list[bytes | None]] = []
    with Shared.of(connection) as shared:

        def ask() -> None:
            answers.extend(values(whole(shared, topic)) for _ in range(5))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == 15
    assert all(sorted(answer, key=lambda v: int(v or b"")) == [b"%d" % n for n in range(200)] for answer in answers)
