"""Topics: making and describing them, how far they go, reading a part of them."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.errors import (
    TopicAlreadyExistsError,
)
from kafka.partitioner.default import murmur2
from kafka.structs import OffsetAndMetadata

from pipelines.errors import BrokerError, LoginError
from pipelines.kafka.connection import (
    DELIVERY_MS,
    REQUEST_MS,
    Connection,
    Shared,
    client_errors,
    opened,
)
from pipelines.kafka.port import Position, Received
from pipelines.kafka.reader import Reader

KEEP_FOR_EVER = {"retention.ms": "-1", "retention.bytes": "-1"}


def wait_until_up(connection: Connection, *, deadline_s: float = 10.0) -> None:
    """Return once the broker answers.

    Raises:
        BrokerError: no answer within `deadline_s`.
    """
    until = time.monotonic() + deadline_s
    while True:
        try:
            with _admin(connection, "asking who is there", opening_ms=1_000) as admin:
                admin.describe_cluster()
            return
        except LoginError:
            raise
        except BrokerError as error:
            if time.monotonic() > until:
                if not str(error).startswith("no Kafka answers"):
                    raise
                raise BrokerError(
                    f"{error} within {deadline_s:g} s; start one with `unmask kafka start` or set "
                    "KAFKA_BOOTSTRAP_SERVERS"
                ) from error
            time.sleep(0.1)


@contextmanager
def _admin(connection: Connection, doing: str, *, opening_ms: int = DELIVERY_MS) -> Iterator[KafkaAdminClient]:
    """An admin client for one question: of its own, or the shared one; the client's errors in the block become ours."""

    def make() -> KafkaAdminClient:
        return opened(connection, KafkaAdminClient, opening_ms=opening_ms, request_timeout_ms=REQUEST_MS)

    if isinstance(connection, Shared):
        with connection.lock, client_errors(doing):
            yield connection.client("admin", make)
        return
    admin = make()
    try:
        with client_errors(doing):
            yield admin
    finally:
        with suppress(Exception):
            admin.close()


def create_topics(
    connection: Connection, topics: Mapping[str, int], *, config: Mapping[str, str], replication: int = 1
) -> None:
    """Create the topics that are not there yet: name -> number of partitions."""
    with _admin(connection, f"topics {sorted(topics)} were not created") as admin:
        for name, n_partitions in topics.items():
            with suppress(TopicAlreadyExistsError):
                admin.create_topics(
                    [NewTopic(name, n_partitions, replication, topic_configs=dict(config))], timeout_ms=10_000
                )
        until = time.monotonic() + 10
        while missing := set(topics) - set(admin.list_topics()):
            if time.monotonic() > until:
                raise BrokerError(f"topics {sorted(missing)} did not appear within 10 s of being created")
            time.sleep(0.05)


def delete_topics(connection: Connection, topics: Iterable[str]) -> None:
    """Delete topics, and wait until they are gone."""
    names = set(topics)
    with _admin(connection, f"topics {sorted(names)} were not deleted") as admin:
        admin.delete_topics(list(names), timeout_ms=10_000)
        until = time.monotonic() + 10
        while left := names & set(admin.list_topics()):
            if time.monotonic() > until:
                raise BrokerError(f"topics {sorted(left)} were still there 10 s after being deleted")
            time.sleep(0.05)


def topic_names(connection: Connection) -> set[str]:
    """Names of all topics."""
    with _admin(connection, "no answer about topics") as admin:
        return set(admin.list_topics())


def topic_ids(connection: Connection, topics: Iterable[str]) -> dict[str, str]:
    """Kafka's own ids (KIP-516) of topics: a topic that was deleted and made anew has another one.

    A broker that knows no ids gives none.

    Raises:
        BrokerError: a topic does not exist.
    """
    names = list(topics)
    with _admin(connection, "no answer about topics") as admin:
        found = {t["name"]: str(t["topic_id"]) for t in admin.describe_topics(names) if not t["error_code"]}
    for name in names:
        if name not in found:
            raise BrokerError(
                f"topic {name} does not exist; run `unmask topics create`, or check `topics` in the stream file"
            )
    return {name: topic_id for name, topic_id in found.items() if topic_id.strip("0-") not in ("", "None")}


def add_partitions(connection: Connection, topics: Mapping[str, int]) -> None:
    """Give topics more partitions: name -> how many there shall be; returns once they are there."""
    with _admin(connection, f"no partitions were added to {sorted(topics)}") as admin:
        admin.create_partitions(dict(topics), timeout_ms=10_000)
        until = time.monotonic() + 10
        while any(len(t["partitions"]) < topics[t["name"]] for t in admin.describe_topics(list(topics))):
            if time.monotonic() > until:
                raise BrokerError(f"partitions of {sorted(topics)} did not appear within 10 s of being added")
            time.sleep(0.05)


def stamps_appends(connection: Connection, *topics: str) -> bool:
    """Whether the broker stamps the topics' records on arrival (message.timestamp.type=LogAppendTime).

    Raises:
        BrokerError: it does so for some of them only, or gives no answer.
    """
    with _admin(connection, f"no answer about the settings of {', '.join(topics)}") as admin:
        asked = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
        settings = admin.describe_configs(asked, config_filter="all")["topic"]
    stamped = {t: settings[t].get("message.timestamp.type", {}).get("value") == "LogAppendTime" for t in topics}
    if len(set(stamped.values())) > 1:
        wrong = next(topic for topic, yes in stamped.items() if not yes)
        raise BrokerError(
            f"{wrong} must have message.timestamp.type=LogAppendTime, as the stream's other inputs have: one record "
            f"stamped years ahead would hold up all after it; set it with `kafka-configs.sh --alter --topic {wrong} "
            "--add-config message.timestamp.type=LogAppendTime`"
        )
    return all(stamped.values())


@contextmanager
def _reader(connection: Connection, positions: Mapping[Position, int]) -> Iterator[Reader]:
    """A reader for one question: of its own, or the shared one."""
    if not isinstance(connection, Shared):
        with Reader(connection, positions) as reader:
            yield reader
        return
    with connection.lock:
        shared = connection.client("reader", lambda: Reader(connection, {}))
        shared.assign(positions)
        yield shared


def partitions_of(connection: Connection, topic: str) -> list[Position]:
    """The topic's partitions.

    Raises:
        BrokerError: there is no such topic.
    """
    return _partitions(connection, [topic])


def _partitions(connection: Connection, topics: Iterable[str]) -> list[Position]:
    with _admin(connection, "no answer about topics") as admin:
        described = {t["name"]: t["partitions"] for t in admin.describe_topics(list(topics)) if not t["error_code"]}
    for topic in topics:
        if not described.get(topic):
            raise BrokerError(
                f"topic {topic} does not exist; run `unmask topics create`, or check `topics` in the stream file"
            )
    return [(topic, n) for topic in topics for n in sorted(p["partition_index"] for p in described[topic])]


def bounds(connection: Connection, topics: Iterable[str]) -> dict[Position, tuple[int, int]]:
    """First offset kept and end offset (of what is committed) of every partition of the topics."""
    tps = [TopicPartition(*p) for p in _partitions(connection, list(topics))]
    with _reader(connection, {}) as reader, client_errors(f"no answer about offsets from {connection.bootstrap}"):
        first, end = reader._consumer.beginning_offsets(tps), reader._consumer.end_offsets(tps)
        return {(tp.topic, tp.partition): (first[tp], end[tp]) for tp in tps}


def read_between(
    connection: Connection, spans: Mapping[Position, tuple[int, int]], *, stall_s: float = 30.0
) -> Iterator[list[Received]]:
    """Batches of every committed record with first <= offset < end, per partition.

    Raises:
        BrokerError: nothing came for `stall_s` seconds while records are missing.
    """
    open_spans = {p: span for p, span in spans.items() if span[0] < span[1]}
    if not open_spans:
        return
    with _reader(connection, {p: first for p, (first, _) in open_spans.items()}) as reader:
        moved, before = time.monotonic(), -1
        while any(reader.position(p) < end for p, (_, end) in open_spans.items()):
            batch = [r for r in reader.poll(timeout_ms=200) if r.offset < open_spans[(r.topic, r.partition)][1]]
            if batch:
                yield batch
            total = sum(reader.position(p) for p in open_spans)
            if total != before:
                moved, before = time.monotonic(), total
            elif time.monotonic() - moved > stall_s:
                raise BrokerError(
                    f"nothing came from {connection.bootstrap} for {stall_s:g} s while records are missing"
                )


def note_group(connection: Connection, group: str, positions: Mapping[Position, int]) -> None:
    """Commit a group's offsets: a hint for those who watch lag, never an authority."""
    consumer = opened(
        connection, KafkaConsumer, group_id=group, enable_auto_commit=False, request_timeout_ms=REQUEST_MS
    )
    try:
        with client_errors(f"the offsets of group {group} were not noted"):
            tps = {TopicPartition(*p): OffsetAndMetadata(offset, "", -1) for p, offset in positions.items()}
            consumer.assign(list(tps))
            consumer.commit(tps, timeout_ms=DELIVERY_MS)
    finally:
        with suppress(Exception):
            consumer.close(autocommit=False)


def group_positions(connection: Connection, group: str) -> dict[Position, int]:
    """The offsets that `note_group` committed."""
    with _admin(connection, f"no answer about group {group}") as admin:
        return {(tp.topic, tp.partition): o.offset for tp, o in admin.list_group_offsets(group)[group].items()}


def partition_of(key: bytes, n_partitions: int) -> int:
    """Where the Java client's default partitioner puts a key (murmur2).

    >>> partition_of(b"4711", 4)
    2
    """
    return int((murmur2(key) & 0x7FFFFFFF) % n_partitions)


def last_record(connection: Connection, topic: str, partition: int) -> Received | None:
    """The last committed record of a partition, None where there is none."""
    return last_records(connection, [(topic, partition)]).get((topic, partition))


def last_records(connection: Connection, positions: Iterable[Position]) -> dict[Position, Received]:
    """The last committed record of each partition that has any.

    Control markers and aborted records take offsets too, so it steps back wider and wider.
    """
    wanted = set(positions)
    spans = {p: span for p, span in bounds(connection, {topic for topic, _ in wanted}).items() if p in wanted}
    found: dict[Position, Received] = {}
    width = 8
    while spans:
        starts = {p: (max(first, end - width), end) for p, (first, end) in spans.items()}
        for batch in read_between(connection, starts):
            for record in batch:
                found[record.topic, record.partition] = record
        spans = {p: (first, starts[p][0]) for p, (first, _) in spans.items() if p not in found and starts[p][0] > first}
        width *= 8
    return found
