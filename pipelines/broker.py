"""Kafka: topics, a reader of assigned partitions, a writer, guarded transactions."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, NamedTuple, Self

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.consumer.fetcher import Fetcher
from kafka.errors import (
    InvalidProducerEpochError,
    KafkaError,
    ProducerFencedError,
    TopicAlreadyExistsError,
    TransactionalIdAuthorizationFailedError,
    UnknownError,
)
from kafka.partitioner.default import murmur2
from kafka.structs import OffsetAndMetadata

from pipelines.connection import Connection as Connection
from pipelines.connection import Shared as Shared
from pipelines.connection import broker_error, client_errors, is_from_client, opened
from pipelines.errors import BrokerError, FencedError, LoginError, RejectedError
from pipelines.records import Received as Received
from pipelines.records import read_past_unreadable

log = logging.getLogger(__name__)

# request < delivery < transaction: a record gives up before its transaction does.
REQUEST_MS, DELIVERY_MS, TRANSACTION_MS = 5_000, 10_000, 15_000
FETCH_WAIT_MS = 20
FETCH_BYTES = (1 << 20) + (1 << 16)  # a batch of the broker's default limit, and the beginning of the next one
ANSWER_MS = 200  # the loop stands still while it waits for an answer about end offsets
MAX_REQUEST_BYTES = 1 << 20  # of one record as it is sent, key and headers included: the broker's default too
KEEP_FOR_EVER = {"retention.ms": "-1", "retention.bytes": "-1"}


class Message(NamedTuple):
    """What is to be written. `partition` None lets the key decide (murmur2, as the Java client does)."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    partition: int | None = None
    timestamp_ms: int | None = None
    headers: Sequence[tuple[str, bytes]] = ()


Position = tuple[str, int]  # topic, partition


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
            raise BrokerError(f"topic {name} does not exist; create it, or check the stream file's `topics`")
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


class Reader:
    """Reads assigned partitions, raw bytes, committed records only; one thread at a time."""

    def __init__(self, connection: Connection, positions: Mapping[Position, int], *, max_records: int = 5_000) -> None:
        self._consumer = opened(
            connection,
            KafkaConsumer,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            request_timeout_ms=REQUEST_MS,
            max_poll_records=max_records,
            max_partition_fetch_bytes=FETCH_BYTES,
        )
        read_past_unreadable(self._consumer)
        self._asker = Fetcher(self._consumer._client, self._consumer._subscription, isolation_level="read_uncommitted")
        self.assign(positions)

    def assign(self, positions: Mapping[Position, int]) -> None:
        """Read these partitions, from these offsets on, and no others."""
        self._partitions = {position: TopicPartition(*position) for position in positions}
        self._held: dict[Position, int] = {}
        with client_errors("reading does not begin"):
            self._consumer.assign(list(self._partitions.values()))
            for position, offset in positions.items():
                self._consumer.seek(self._partitions[position], offset)

    def poll(self, *, timeout_ms: int = FETCH_WAIT_MS) -> list[Received]:
        """What has come since the last poll, in order within each partition; `unreadable` ones included.

        Raises:
            BrokerError: the position is not in the log any more (retention has passed it, or the topic was made anew).
        """
        with client_errors("reading stopped, nothing was skipped"):
            batches = self._consumer.poll(timeout_ms=timeout_ms)
        return [record for batch in batches.values() for record in batch]

    def ends(self, *, timeout_ms: int = ANSWER_MS) -> dict[Position, int]:
        """End offset (control markers included) of every partition about which the broker answered in time.

        Records of transactions still open are counted: a position reaches the end only when all are done.
        """
        asked = set(self._partitions.values())
        while asked:
            try:
                ends = self._asker.end_offsets(list(asked), timeout_ms=timeout_ms)
            except KeyError as error:
                asked.discard(error.args[0])  # this is how the client says that a partition has no leader now
            except Exception as error:
                if not is_from_client(error):
                    raise
                log.warning("no answer about end offsets: %s", error)
                break
            else:
                return {(tp.topic, tp.partition): offset for tp, offset in ends.items()}
        return {}

    def n_partitions(self, topic: str, *, timeout_ms: int = ANSWER_MS) -> int | None:
        """How many partitions a topic has now, as the broker says; None without an answer in time or without the topic.

        Stands still for `timeout_ms` at most. The topic is one of those read.
        """
        consumer = self._consumer
        try:
            consumer._net.run(consumer._manager.wait_for, consumer._cluster.request_update(), timeout_ms)
            numbers = consumer._cluster.partitions_for_topic(topic)
        except Exception as error:
            if not is_from_client(error):
                raise
            log.debug("no answer about the partitions of %s: %s", topic, error)
            return None
        return len(numbers) if numbers else None

    def position(self, position: Position) -> int:
        """Next offset to read; moves past control markers too."""
        held = self._held.get(position)
        if held is not None:
            return held
        with client_errors("the position is not known"):
            return int(self._consumer.position(self._partitions[position], timeout_ms=REQUEST_MS))

    def hold(self, positions: Iterable[Position]) -> None:
        """Fetch nothing more of exactly these partitions; the others go on.

        The held ones are taken out of the assignment. kafka-python 3.0.12's own `pause` can lose a partition for good:
        what had been fetched is parked, and after `resume` it stays so while a drained fetch of another one lingers.
        """
        wanted = set(positions)
        if wanted == set(self._held):
            return
        offsets = {p: self.position(p) for p in self._partitions}
        self._held = {p: offsets[p] for p in wanted}
        with client_errors("reading does not go on"):
            self._consumer.assign([tp for p, tp in self._partitions.items() if p not in wanted])
            for p, tp in self._partitions.items():
                if p not in wanted:
                    self._consumer.seek(tp, offsets[p])

    def close(self) -> None:
        with suppress(Exception):
            self._consumer.close(autocommit=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
            raise BrokerError(f"topic {topic} does not exist; create it, or check the stream file's `topics`")
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


class Writer:
    """An idempotent producer whose failures cannot be overlooked: `flush` checks every record sent."""

    def __init__(self, connection: Connection, *, linger_ms: int = 5) -> None:
        self._producer = opened(
            connection,
            KafkaProducer,
            acks="all",
            linger_ms=linger_ms,
            batch_size=1 << 18,
            max_request_size=MAX_REQUEST_BYTES,
            request_timeout_ms=REQUEST_MS,
            delivery_timeout_ms=60_000,
        )
        self._futures: list[Any] = []

    def send(self, message: Message) -> None:
        with client_errors(f"a record for {message.topic} was not sent"):
            self._futures.append(_send(self._producer, message))

    def flush(self, *, timeout_s: float = 60.0) -> list[tuple[str, int, int]]:
        """Wait until everything sent is stored; returns (topic, partition, offset) of each record.

        Raises:
            RejectedError: the broker refuses a record for good.
            BrokerError: a record was not stored.
        """
        futures, self._futures = self._futures, []
        with client_errors("a record was not stored"):
            self._producer.flush(timeout=timeout_s)
            stored = [f.get(timeout=1) for f in futures]
        return [(m.topic, m.partition, m.offset) for m in stored]

    def close(self) -> None:
        with suppress(Exception):
            self._producer.close(timeout=5)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TransactionalWriter:
    """One transactional id. Opening it fences and aborts whoever used the id before.

    The guard (kafka-python's commit is silent about a record that expired): flush, check every record's future,
    commit within a deadline, check every future again. After any error the writer is done: open a new one.
    """

    def __init__(self, connection: Connection, transactional_id: str) -> None:
        self._id = transactional_id
        self._producer = opened(
            connection,
            KafkaProducer,
            transactional_id=transactional_id,
            acks="all",
            linger_ms=0,
            batch_size=1 << 18,
            max_request_size=MAX_REQUEST_BYTES,
            request_timeout_ms=REQUEST_MS,
            delivery_timeout_ms=DELIVERY_MS,
            transaction_timeout_ms=TRANSACTION_MS,
            max_block_ms=DELIVERY_MS,
            retry_backoff_ms=5,  # the coordinator answers CONCURRENT_TRANSACTIONS for a few ms after each commit
        )
        try:
            self._within(DELIVERY_MS / 1000, self._producer.init_transactions)
        except BaseException:
            self.close()
            raise

    def commit(self, messages: Iterable[Message], *, before_commit: Callable[[], None] | None = None) -> None:
        """Write all messages in one transaction, or none.

        Raises:
            FencedError: somebody else has opened the same id.
            RejectedError: the broker refuses one of the messages for good.
            BrokerError: the outcome is failure or unknown; read what is there before going on.
        """
        futures: list[Any] = []
        try:
            with self._errors():
                self._producer.begin_transaction()
            for message in messages:
                with self._errors():
                    futures.append(_send(self._producer, message))
            until = time.monotonic() + DELIVERY_MS / 1000
            with self._errors(), suppress(UnknownError):  # so flush says that it split a batch which was too large
                self._producer.flush(timeout=DELIVERY_MS / 1000)
            for future in futures:
                with suppress(KafkaError):
                    future.get(timeout=max(0.0, until - time.monotonic()))
            if not all(f.succeeded() for f in futures):
                raise BrokerError(f"{self._id}: a record was not stored within {DELIVERY_MS / 1000:g} s")
        except BrokerError as error:
            raise self._telling_most(error, futures) from error
        if before_commit is not None:
            before_commit()
        self._within(DELIVERY_MS / 1000, self._producer.commit_transaction)
        for future in futures:
            if not future.succeeded():
                raise BrokerError(f"{self._id}: the transaction was committed without a record")

    def _telling_most(self, error: BrokerError, futures: Sequence[Any]) -> BrokerError:
        """Why a transaction failed: one record that is refused for good takes the others with it."""
        failed = [self._translate(f.exception) for f in futures if f.failed()]
        telling = [e for e in (error, *failed) if isinstance(e, FencedError | RejectedError)]
        return next(iter((*telling, *failed, error)))

    def close(self) -> None:
        """Give the producer up within a second; an open transaction is left to the next owner."""
        closing = threading.Thread(target=self._close_quietly, daemon=True)
        closing.start()
        closing.join(timeout=2)

    def _close_quietly(self) -> None:
        with suppress(Exception):
            self._producer.close(timeout=1)

    def _within(self, deadline_s: float, call: Any) -> None:
        """Run `call` in a thread of its own: the client waits for ever in commit, we do not."""
        outcome: Future[None] = Future()

        def run() -> None:
            try:
                call()
                outcome.set_result(None)
            except BaseException as error:
                outcome.set_exception(error)

        threading.Thread(target=run, daemon=True, name=f"{self._id}-call").start()
        with self._errors():
            try:
                outcome.result(timeout=deadline_s)
            except TimeoutError as error:
                raise BrokerError(f"{self._id}: {call.__name__} gave no answer within {deadline_s:g} s") from error

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not is_from_client(error):
                raise
            raise self._translate(error) from error

    def _translate(self, error: BaseException) -> BrokerError:
        # What comes after a failed request says only that it failed, with its error as an argument.
        error = next((cause for cause in error.args if isinstance(cause, KafkaError)), error)
        if isinstance(error, ProducerFencedError | InvalidProducerEpochError):
            return FencedError(f"{self._id}: another producer has taken over ({type(error).__name__})")
        if isinstance(error, KafkaError) and "EndTxn" in str(error) and "UnknownError" in str(error):
            # So the coordinator answers while another producer of the id is being initialised.
            return FencedError(f"{self._id}: the commit failed, another producer may be taking over ({error})")
        if isinstance(error, TransactionalIdAuthorizationFailedError):
            return RejectedError(f"{self._id}: not allowed; grant Write and Describe on this TransactionalId")
        return broker_error(self._id, error)


def _send(producer: KafkaProducer, message: Message) -> Any:
    return producer.send(
        message.topic,
        value=message.value,
        key=message.key,
        headers=list(message.headers),
        partition=message.partition,
        timestamp_ms=message.timestamp_ms,
    )
