"""Topics: create, describe, change and delete them, find their offsets, read ranges; with any client."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime

from pipelines.errors import BrokerError, LoginError
from pipelines.kafka.connection import Connection, asked_again
from pipelines.kafka.kafka_python.partitioner import partition_of as partition_of
from pipelines.kafka.port import Position, TopicFacts
from pipelines.record import Received

_LAST_S = datetime.max.replace(tzinfo=UTC).timestamp() - 1  # what a date can show; a stamp may be any number
KEEP_FOR_EVER = {"retention.ms": "-1", "retention.bytes": "-1"}


def wait_until_up(connection: Connection, *, deadline_s: float = 10.0) -> None:
    """Return when the broker answers.

    Raises:
        BrokerError: no answer within `deadline_s`.
    """
    until = time.monotonic() + deadline_s
    while True:
        try:
            with connection.asking(opening_ms=1_000) as admin:
                admin.ping()
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


def create_topics(
    connection: Connection, topics: Mapping[str, int], *, config: Mapping[str, str], replication: int = 1
) -> None:
    """Create the topics that do not exist yet: name -> number of partitions."""
    with connection.asking() as admin:
        for name, n_partitions in topics.items():
            admin.create_topic(name, n_partitions, config=config, replication=replication)
        _wait_until(
            lambda: set(topics) <= admin.topic_names(),
            f"topics {sorted(topics)} did not appear within 10 s of being created",
        )


def delete_topics(connection: Connection, topics: Iterable[str]) -> None:
    """Delete topics and wait until they are gone."""
    names = set(topics)
    with connection.asking() as admin:
        admin.delete_topics(names)
        _wait_until(
            lambda: not names & admin.topic_names(), f"topics {sorted(names)} still exist 10 s after being deleted"
        )


def topic_names(connection: Connection) -> set[str]:
    """Names of all topics."""
    with connection.asking() as admin:
        return admin.topic_names()


def topic_ids(connection: Connection, topics: Iterable[str]) -> dict[str, str]:
    """Kafka's ids (KIP-516) of topics: a topic that was deleted and recreated has a new id.

    Empty if the broker does not support ids.

    Raises:
        BrokerError: a topic does not exist.
    """
    return {name: facts.id for name, facts in _described(connection, topics).items() if facts.id is not None}


def add_partitions(connection: Connection, topics: Mapping[str, int]) -> None:
    """Add partitions to topics: name -> new number of partitions; returns when they exist."""
    with connection.asking() as admin:
        admin.create_partitions(topics)

        def are_there() -> bool:
            found = admin.describe(topics)
            return all(name in found and len(found[name].partitions) >= n for name, n in topics.items())

        _wait_until(are_there, f"partitions of {sorted(topics)} did not appear within 10 s of being added")


def _wait_until(holds: Callable[[], bool], otherwise: str) -> None:
    """Wait until the broker has completed a request, which it does a moment later."""
    until = time.monotonic() + 10
    while not holds():
        if time.monotonic() > until:
            raise BrokerError(otherwise)
        time.sleep(0.05)


def stamp_appends(connection: Connection, *topics: str) -> None:
    """Let the broker stamp new records of the topics on arrival; records already there keep their timestamps.

    Raises:
        BrokerError: the newest record of a partition has a timestamp in the future, or the broker does not answer.
    """
    now_ms = time.time() * 1000
    positions = [position for topic in topics for position in partitions_of(connection, topic)]
    for (topic, partition), record in last_records(connection, positions).items():
        if record.timestamp_ms > now_ms:
            until = datetime.fromtimestamp(min(record.timestamp_ms / 1000, _LAST_S), UTC).isoformat(timespec="seconds")
            raise BrokerError(
                f"{topic} [{partition}] has a record with the timestamp {until}, which is in the future: new records "
                "could not be ordered after it; wait until then, or replay only the past into other topics"
            )
    with connection.asking() as admin:
        admin.change_settings(topics, {"message.timestamp.type": "LogAppendTime"})
        _wait_until(
            lambda: all(s.get("message.timestamp.type") == "LogAppendTime" for s in admin.settings(topics).values()),
            f"the settings of {', '.join(topics)} did not change within 10 s",
        )


def stamps_appends(connection: Connection, *topics: str) -> bool:
    """Whether the broker stamps the topics' records on arrival (message.timestamp.type=LogAppendTime).

    Raises:
        BrokerError: the topics differ, or the broker does not answer.
    """
    with connection.asking() as admin:
        settings = admin.settings(topics)
    stamped = {t: settings[t].get("message.timestamp.type") == "LogAppendTime" for t in topics}
    if len(set(stamped.values())) > 1:
        wrong = next(topic for topic, yes in stamped.items() if not yes)
        raise BrokerError(
            f"{wrong} must have message.timestamp.type=LogAppendTime, like the stream's other inputs: one record with "
            f"a far future timestamp would block all records after it; run `kafka-configs.sh --alter --topic {wrong} "
            "--add-config message.timestamp.type=LogAppendTime`"
        )
    return all(stamped.values())


def partitions_of(connection: Connection, topic: str) -> list[Position]:
    """The topic's partitions.

    Raises:
        BrokerError: the topic does not exist.
    """
    return _partitions(connection, [topic])


def _partitions(connection: Connection, topics: Iterable[str]) -> list[Position]:
    return [(name, p) for name, facts in _described(connection, topics).items() for p in facts.partitions]


def _described(connection: Connection, topics: Iterable[str]) -> dict[str, TopicFacts]:
    names = list(topics)
    with connection.asking() as admin:
        found = admin.describe(names)
    for name in names:
        if name not in found:
            raise BrokerError(
                f"topic {name} does not exist; run `unmask topics create`, or check `topics` in the stream file"
            )
    return {name: found[name] for name in names}


def bounds(connection: Connection, topics: Iterable[str]) -> dict[Position, tuple[int, int]]:
    """First available offset and end offset (of committed records) of every partition of the topics.

    Raises:
        BrokerError: a topic does not exist, or Kafka did not answer within `LEADER_S`.
    """
    partitions = _partitions(connection, topics)
    with connection.reading({}) as reader:
        return asked_again(lambda: reader.spans(partitions))


def read_between(
    connection: Connection, spans: Mapping[Position, tuple[int, int]], *, stall_s: float = 30.0
) -> Iterator[list[Received]]:
    """Yield batches of the committed records with first <= offset < end, per partition.

    Raises:
        BrokerError: no records came for `stall_s` seconds although more are expected.
    """
    open_spans = {p: span for p, span in spans.items() if span[0] < span[1]}
    if not open_spans:
        return
    with connection.reading({p: first for p, (first, _) in open_spans.items()}) as reader:
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
                    f"{connection.bootstrap} sent no records for {stall_s:g} s, although more are expected"
                )


def offsets_at(connection: Connection, spans: Mapping[Position, tuple[int, int]], time_ms: int) -> dict[Position, int]:
    """An offset of each partition in a span: all records before it are older than a time, none from it on is.

    Timestamps must not fall within a partition. It reads a few records, about the logarithm of the span.

    Raises:
        BrokerError: no answer.
    """
    low, high = ({p: span[edge] for p, span in spans.items()} for edge in (0, 1))
    while between := {p: (low[p] + high[p]) // 2 for p in spans if low[p] < high[p]}:
        first = _first_records(connection, {p: (middle, high[p]) for p, middle in between.items()})
        for p, middle in between.items():
            if p in first and first[p].timestamp_ms < time_ms:
                low[p] = first[p].offset + 1
            else:
                high[p] = middle
    return low


def _first_records(connection: Connection, spans: Mapping[Position, tuple[int, int]]) -> dict[Position, Received]:
    """The first record of each span that has one; others have only control markers."""
    found: dict[Position, Received] = {}
    for batch in read_between(connection, spans):
        for record in batch:
            found.setdefault((record.topic, record.partition), record)
        if found.keys() == spans.keys():
            break
    return found


def note_group(connection: Connection, group: str, positions: Mapping[Position, int]) -> None:
    """Commit a group's offsets. They are only for lag monitoring, never authoritative."""
    connection.client.note_group(group, positions)


def group_positions(connection: Connection, group: str) -> dict[Position, int]:
    """The offsets that `note_group` committed."""
    with connection.asking() as admin:
        return admin.group_positions(group)


def last_record(connection: Connection, topic: str, partition: int) -> Received | None:
    """The last committed record of a partition; None if there is none."""
    return last_records(connection, [(topic, partition)]).get((topic, partition))


def last_records(connection: Connection, positions: Iterable[Position]) -> dict[Position, Received]:
    """The last committed record of each partition that has one.

    Control markers and aborted records occupy offsets too, so the range is widened backwards until a record is found.
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
