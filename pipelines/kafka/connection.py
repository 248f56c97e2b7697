"""Connection settings of Kafka. All readers, writers and admin clients are opened here."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import Any, Self, TypeVar

from pipelines.errors import BrokerError
from pipelines.kafka.kafka_python.client import KafkaPython
from pipelines.kafka.port import (
    DELIVERY_MS,
    REQUEST_MS,
    Adapter,
    Admin,
    Client,
    Member,
    Message,
    Position,
    Reader,
    TransactionalWriter,
    Writer,
)

log = logging.getLogger(__name__)

ABORTS = 3  # the partition may have no leader again
LEADER_S = 5.0

Answer = TypeVar("Answer")


def asked_again(ask: Callable[[], Answer]) -> Answer:
    """An answer about partitions; those of a new topic have no leader for a moment, so it is asked for again.

    Raises:
        BrokerError: there was no answer within `LEADER_S`.
    """
    until = time.monotonic() + LEADER_S
    while True:
        try:
            return ask()
        except BrokerError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _open_in(reader: Reader, positions: Collection[Position]) -> list[Position]:
    """Those of the partitions that end after what is committed."""
    committed = {position: end for position, (_, end) in reader.spans(positions).items()}
    reader.assign(committed)
    ends = reader.ends(timeout_ms=REQUEST_MS)
    if missing := committed.keys() - ends.keys():
        raise BrokerError(f"no answer about the ends of {sorted(missing)}")
    return sorted(position for position, end in ends.items() if committed[position] < end)


@dataclass(frozen=True)
class Connection:
    """Address of Kafka. `options` (security_protocol, sasl_*, ssl_*) go to the client and never appear in a repr.

    Raises:
        LoginError: an option is unknown, missing or unusable.
    """

    bootstrap: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    adapter: Adapter = field(default=KafkaPython, repr=False)

    def __post_init__(self) -> None:
        _ = self.client  # checks the options

    @cached_property
    def client(self) -> Client:
        """The client of the adapter's library."""
        return self.adapter(self.bootstrap, self.options)

    def reader(self, positions: Mapping[Position, int], *, max_records: int = 5_000) -> Reader:
        """A reader of these partitions, starting at these offsets."""
        return self.client.reader(positions, max_records=max_records)

    def member(self, group: str, topic: str, *, instance_id: str | None = None, session_ms: int = 20_000) -> Member:
        """A new member of a group that divides the partitions of a topic."""
        return self.client.member(group, topic, instance_id=instance_id, session_ms=session_ms)

    def writer(self, *, linger_ms: int = 5) -> Writer:
        """An idempotent writer."""
        return self.client.writer(linger_ms=linger_ms)

    def transactional_writer(
        self,
        transactional_id: str,
        positions: Collection[Position] = (),
        *,
        is_confirmed: Callable[[list[Position]], bool] = lambda _left_open: False,
        asked: "Connection | None" = None,
    ) -> TransactionalWriter:
        """The writer of a transactional id; fences the previous producer of the id and aborts its open transaction.

        Kafka (seen with 4.4.0) takes a partition that has no leader for a deleted one and writes no end of the
        transaction to it. The next commit of the id would then commit the records of the old transaction, too; so they
        are aborted here.

        Args:
            positions: the partitions that only this id writes transactions to; without any, nothing is looked for.
            is_confirmed: whether what is left open in these partitions is part of a committed transaction. Then the
                next commit publishes it.
            asked: the connection that is asked about the partitions; by default this one.

        Raises:
            BrokerError: no answer, or a transaction stays open.
        """
        writer = self.client.transactional_writer(transactional_id)
        try:
            for _ in range(ABORTS):
                if not (left_open := (asked or self)._left_open(positions)):
                    return writer
                if is_confirmed(left_open):
                    log.warning("%s: Kafka did not end a commit in %s; the next one does", transactional_id, left_open)
                    return writer
                writer.abort([Message(topic, b"", None, partition) for topic, partition in left_open])
                log.warning("%s: Kafka did not end a transaction in %s; it was aborted", transactional_id, left_open)
            raise BrokerError(
                f"{transactional_id}: a transaction of another producer stays open in {left_open}; if this goes on for "
                "minutes, run `unmask recover`, or end it with Kafka's kafka-transactions.sh (find-hanging, abort)"
            )
        except BaseException:
            writer.close()
            raise

    def _left_open(self, positions: Collection[Position]) -> list[Position]:
        """Those of the partitions that hold records of a transaction that has not ended."""
        if not positions:
            return []
        with self.reading({}) as reader:
            return asked_again(lambda: _open_in(reader, positions))

    @contextmanager
    def asking(self, *, opening_ms: int = DELIVERY_MS) -> Iterator[Admin]:
        """An admin client for one request."""
        with self.client.admin(opening_ms=opening_ms) as admin:
            yield admin

    @contextmanager
    def reading(self, positions: Mapping[Position, int]) -> Iterator[Reader]:
        """A reader for one request."""
        with self.reader(positions) as reader:
            yield reader


@dataclass(frozen=True)
class Shared(Connection):
    """A connection whose requests share one admin client and one reader, for a take-over with many requests.

    Use it with `with`. Readers and writers that are opened from it still have their own clients. It is thread-safe:
    a lock is held for the whole request, until its last record is read.
    """

    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)
    _opened: ExitStack = field(default_factory=ExitStack, repr=False, compare=False)

    @classmethod
    def of(cls, connection: Connection) -> Self:
        return cls(connection.bootstrap, connection.options, connection.adapter)

    @cached_property
    def _admin(self) -> Admin:
        return self._opened.enter_context(self.client.admin(opening_ms=DELIVERY_MS))

    @cached_property
    def _reader(self) -> Reader:
        return self._opened.enter_context(self.reader({}))

    @contextmanager
    def asking(self, *, opening_ms: int = DELIVERY_MS) -> Iterator[Admin]:
        with self._lock:
            yield self._admin

    @contextmanager
    def reading(self, positions: Mapping[Position, int]) -> Iterator[Reader]:
        with self._lock:
            self._reader.assign(positions)
            yield self._reader

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()
