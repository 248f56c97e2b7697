"""What the product needs of a Kafka client, and the values that go in and out: each adapter implements this."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from pipelines.record import Received

# request < delivery < transaction: a record gives up before its transaction does.
REQUEST_MS, DELIVERY_MS, TRANSACTION_MS = 5_000, 10_000, 15_000
FETCH_WAIT_MS = 20
ANSWER_MS = 200  # the scorer's loop stands still while it waits for an answer about end offsets
MAX_REQUEST_BYTES = 1 << 20  # of one record as it is sent, key and headers included: the broker's default too

Position = tuple[str, int]  # topic, partition


class Message(NamedTuple):
    """What is to be written. `partition` None lets the key decide (murmur2, as the Java client does)."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    partition: int | None = None
    timestamp_ms: int | None = None
    headers: Sequence[tuple[str, bytes]] = ()


class TopicFacts(NamedTuple):
    """A topic that exists: Kafka's id of it (KIP-516; None from a broker without ids), and its partitions."""

    id: str | None
    partitions: tuple[int, ...]


class Closing(Protocol):
    """Something that is closed at the end of a `with` block."""

    def close(self) -> None:
        """Close quietly."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Reader(Closing, Protocol):
    """Reads assigned partitions: raw bytes, committed records only. For one thread at a time."""

    def assign(self, positions: Mapping[Position, int]) -> None:
        """Read these partitions, from these offsets on, and no others."""

    def poll(self, *, timeout_ms: int = FETCH_WAIT_MS) -> list[Received]:
        """Records that arrived since the last poll, in order within each partition; `unreadable` ones included.

        Raises:
            BrokerError: the position is no longer in the log (retention removed it, or the topic was recreated).
        """
        ...

    def ends(self, *, timeout_ms: int = ANSWER_MS) -> dict[Position, int]:
        """End offset (control markers included) of every assigned partition about which the broker answered in time.

        Records of open transactions count: a position reaches the end only when all of them are finished.
        """
        ...

    def spans(self, partitions: Iterable[Position]) -> dict[Position, tuple[int, int]]:
        """First offset kept, and end offset of what is committed, of any partitions.

        Raises:
            BrokerError: no answer.
        """
        ...

    def n_partitions(self, topic: str, *, timeout_ms: int = ANSWER_MS) -> int | None:
        """Number of partitions of one of the topics read, as the broker says now; None without an answer in time."""
        ...

    def position(self, position: Position) -> int:
        """Next offset to read; moves past control markers too."""
        ...

    def hold(self, positions: Iterable[Position]) -> None:
        """Fetch nothing more of exactly these partitions; the others go on."""


class Writer(Closing, Protocol):
    """An idempotent producer whose failures cannot be overlooked: `flush` checks every record sent."""

    def send(self, message: Message) -> None:
        """Hand a record over to be sent in the background."""

    def flush(self, *, timeout_s: float = 60.0) -> list[tuple[str, int, int]]:
        """Wait until everything sent is stored; returns (topic, partition, offset) of each record.

        Raises:
            RejectedError: the broker refuses a record for good.
            BrokerError: a record was not stored.
        """
        ...


class TransactionalWriter(Closing, Protocol):
    """One transactional id. Opening it fences whoever used the id before, and aborts what that one left open.

    After any error the writer is unusable: open a new one.
    """

    def commit(self, messages: Iterable[Message], *, before_commit: Callable[[], None] | None = None) -> None:
        """Write all messages in one transaction, or none.

        Raises:
            FencedError: another producer opened the same id.
            RejectedError: the broker refuses one of the messages for good.
            BrokerError: the outcome is failure or unknown; read what is there before going on.
        """


class Admin(Closing, Protocol):
    """Questions and orders about topics and groups. Every method raises BrokerError without an answer."""

    def ping(self) -> None:
        """Return once the broker answers."""

    def create_topic(self, name: str, n_partitions: int, *, config: Mapping[str, str], replication: int) -> None:
        """Order a topic, which appears a moment later; no error where the name exists."""

    def delete_topics(self, names: Iterable[str]) -> None:
        """Order topics to be deleted; they are gone a moment later."""

    def create_partitions(self, counts: Mapping[str, int]) -> None:
        """Order more partitions: topic -> how many there shall be. They appear a moment later."""

    def topic_names(self) -> set[str]:
        """Names of all topics."""
        ...

    def describe(self, names: Iterable[str]) -> dict[str, TopicFacts]:
        """The topics that exist."""
        ...

    def settings(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """Every setting of each topic, defaults included."""
        ...

    def group_positions(self, group: str) -> dict[Position, int]:
        """The offsets a group committed."""
        ...


class Client(Protocol):
    """One library's way to one Kafka.

    Whatever it opens raises LoginError where login or TLS settings do not fit, and BrokerError where Kafka does not
    answer.
    """

    def reader(self, positions: Mapping[Position, int], *, max_records: int) -> Reader:
        """A reader of these partitions from these offsets on; a poll gives `max_records` at most."""
        ...

    def writer(self, *, linger_ms: int) -> Writer:
        """A writer that waits `linger_ms` for more records before it sends a batch."""
        ...

    def transactional_writer(self, transactional_id: str) -> TransactionalWriter:
        """The writer of a transactional id."""
        ...

    def admin(self, *, opening_ms: int) -> Admin:
        """An admin; opening it gives up after `opening_ms`."""
        ...

    def note_group(self, group: str, positions: Mapping[Position, int]) -> None:
        """Commit a group's offsets.

        Raises:
            BrokerError: they were not committed.
        """


Adapter = Callable[[str, Mapping[str, Any]], Client]  # bootstrap servers, client options -> client; LoginError
