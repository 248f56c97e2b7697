"""The port: the interface of a Kafka client that every adapter implements, and its value types."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from pipelines.record import Received

# request < delivery < transaction: a record gives up before its transaction does.
REQUEST_MS, DELIVERY_MS, TRANSACTION_MS = 5_000, 10_000, 15_000
FETCH_WAIT_MS = 20
ANSWER_MS = 200  # the scorer's loop is blocked while it waits for end offsets
MAX_REQUEST_BYTES = 1 << 20  # of one record, including key and headers; also the default of the broker
SENT_AGAIN = "the commit was sent again after a lost connection, and the first one may still be on its way"

Position = tuple[str, int]  # topic, partition


class Message(NamedTuple):
    """A record to write. If `partition` is None, the key determines it (murmur2, like the Java client)."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    partition: int | None = None
    timestamp_ms: int | None = None
    headers: Sequence[tuple[str, bytes]] = ()


class TopicFacts(NamedTuple):
    """An existing topic: its id (KIP-516; None if the broker does not support ids) and its partitions.

    `copies` and `in_sync` are those of the partition that has the fewest.
    """

    id: str | None
    partitions: tuple[int, ...]
    copies: int
    in_sync: int


class ClusterFacts(NamedTuple):
    """The brokers: how many, the version of one (None if the client does not tell it), and its settings."""

    n_brokers: int
    version: str | None
    settings: dict[str, str]


class Closing(Protocol):
    """A resource that is closed at the end of a `with` block."""

    def close(self) -> None:
        """Close without raising."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Reader(Closing, Protocol):
    """Reads assigned partitions: raw bytes, committed records only. Not thread-safe."""

    def assign(self, positions: Mapping[Position, int]) -> None:
        """Read only these partitions, starting at these offsets."""

    def poll(self, *, timeout_ms: int = FETCH_WAIT_MS) -> list[Received]:
        """Records that arrived since the last poll, in order within each partition; includes unreadable records.

        Raises:
            BrokerError: the position is no longer in the log (retention removed it, or the topic was recreated).
        """
        ...

    def ends(self, *, timeout_ms: int = ANSWER_MS) -> dict[Position, int]:
        """End offset (including control markers) of each assigned partition for which the broker answered in time.

        Records of open transactions count: a position reaches the end only after these transactions are finished.
        """
        ...

    def spans(self, partitions: Iterable[Position]) -> dict[Position, tuple[int, int]]:
        """First available offset and end offset of the committed records, of any partitions.

        Raises:
            BrokerError: no answer.
        """
        ...

    def n_partitions(self, topic: str, *, timeout_ms: int = ANSWER_MS) -> int | None:
        """Current number of partitions of a topic that is being read; None if the broker does not answer in time."""
        ...

    def position(self, position: Position) -> int:
        """Next offset to read; also moves past control markers."""
        ...

    def hold(self, positions: Iterable[Position]) -> None:
        """Pause exactly these partitions; all others are fetched."""


class Assignment(NamedTuple):
    """The partitions that a group gives to a member, since a generation of the group."""

    generation: int
    partitions: frozenset[int]


class Member(Closing, Protocol):
    """A member of a consumer group that divides the partitions of one topic; it reads no records.

    The members rebalance cooperatively: a partition moves without stopping the others.
    """

    def assigned(self) -> Assignment:
        """The current assignment; does not wait.

        Raises:
            BrokerError: the membership has ended, and why.
        """
        ...


class Writer(Closing, Protocol):
    """An idempotent producer; `flush` reports the failure of any record."""

    def send(self, message: Message) -> None:
        """Queue a record, which is sent in the background."""

    def flush(self, *, timeout_s: float = 60.0) -> list[tuple[str, int, int]]:
        """Wait until all records are stored; returns (topic, partition, offset) of each.

        Raises:
            RejectedError: the broker rejects a record permanently.
            BrokerError: a record was not stored.
        """
        ...


class TransactionalWriter(Closing, Protocol):
    """The producer of one transactional id. Opening it fences the previous producer and aborts its open transaction.

    After any error the writer is unusable: open a new one.
    """

    def commit(self, messages: Iterable[Message], *, before_commit: Callable[[], None] | None = None) -> None:
        """Write all messages in one transaction, or none.

        Raises:
            FencedError: another producer opened the same id.
            RejectedError: the broker rejects one of the messages permanently.
            BrokerError: the transaction failed or its outcome is unknown, or its commit was sent more than once (one
                of them may reach the broker late and would commit a part of the next transaction); read the topic
                before continuing.
        """

    def abort(self, messages: Iterable[Message]) -> None:
        """Write all messages in a transaction that is aborted: no reader of committed records sees them.

        Raises:
            BrokerError: see `commit`.
        """


class Admin(Closing, Protocol):
    """Administration of topics and groups. Every method raises BrokerError if the broker does not answer."""

    def ping(self) -> None:
        """Return when the broker answers."""

    def create_topic(self, name: str, n_partitions: int, *, config: Mapping[str, str], replication: int) -> None:
        """Create a topic, which appears a moment later; no error if it exists."""

    def delete_topics(self, names: Iterable[str]) -> None:
        """Delete topics; they disappear a moment later."""

    def create_partitions(self, counts: Mapping[str, int]) -> None:
        """Add partitions: topic -> new number of partitions. They appear a moment later."""

    def topic_names(self) -> set[str]:
        """Names of all topics."""
        ...

    def describe(self, names: Iterable[str]) -> dict[str, TopicFacts]:
        """The topics that exist."""
        ...

    def cluster(self) -> ClusterFacts:
        """The brokers of this Kafka; needs the right DescribeConfigs on the cluster."""
        ...

    def settings(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """All settings of each topic, including defaults."""
        ...

    def change_settings(self, names: Iterable[str], settings: Mapping[str, str]) -> None:
        """Change these settings of each topic; they apply a moment later. All others keep their values."""

    def group_positions(self, group: str) -> dict[Position, int]:
        """The committed offsets of a group."""
        ...


class Client(Protocol):
    """Opens readers, writers and admin clients of one library for one Kafka.

    Every method raises LoginError if the login or the TLS settings are wrong, and BrokerError if Kafka does not answer.
    """

    def reader(self, positions: Mapping[Position, int], *, max_records: int) -> Reader:
        """A reader of these partitions, starting at these offsets; a poll returns at most `max_records`."""
        ...

    def member(self, group: str, topic: str, *, instance_id: str | None, session_ms: int) -> Member:
        """Join a group. With an `instance_id` (KIP-345), a restart within `session_ms` causes no rebalance."""
        ...

    def writer(self, *, linger_ms: int) -> Writer:
        """A writer that waits `linger_ms` for more records before it sends a batch."""
        ...

    def transactional_writer(self, transactional_id: str) -> TransactionalWriter:
        """The writer of a transactional id."""
        ...

    def admin(self, *, opening_ms: int) -> Admin:
        """An admin client; opening it times out after `opening_ms`."""
        ...

    def note_group(self, group: str, positions: Mapping[Position, int]) -> None:
        """Commit a group's offsets.

        Raises:
            BrokerError: they were not committed.
        """


Adapter = Callable[[str, Mapping[str, Any]], Client]  # bootstrap servers, client options -> client; LoginError
