"""A topic of one partition whose records each name the hash of the one before: no change of it goes unseen."""

import hashlib
import random
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Self

import msgspec

from pipelines.contracts.contract import UNDECODABLE
from pipelines.contracts.messages import decode
from pipelines.errors import BrokerError, FencedError
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection, Shared
from pipelines.kafka.port import Message
from pipelines.record import Received

FIRST = "0" * 64  # instead of a hash, in the first record of a topic
N_TRIES = 15  # while other writers append, too
MOST_TURNS = 16  # times what an append takes, to wait at most until the next try


class _Link(msgspec.Struct):
    previous: str | None = None


def hash_of(record: Received) -> str:
    """What the next record names: the SHA-256 of the value of a record."""
    return hashlib.sha256(record.value or b"").hexdigest()


class Chain:
    """What the hashes of a topic's records prove, record by record, in their order.

    Records without a hash at the beginning were written by a version that did not chain them: they prove nothing.

    Example:
        >>> records = [Received("t", 0, 0, 0, None, b"{}"), Received("t", 0, 1, 0, None, b'{"previous":"0"}')]
        >>> chain = Chain.of(records)
        >>> chain.n_unchained, chain.n_chained, chain.breaks
        (1, 0, [(1, 'it does not follow the record before it: one was changed, left out or put in')])
    """

    def __init__(self) -> None:
        self.head = FIRST
        self.n_unchained = self.n_chained = 0
        self.breaks: list[tuple[int, str]] = []  # offset, and what is wrong there
        self._n = 0

    @classmethod
    def of(cls, records: Iterable[Received]) -> Self:
        """The chain of all records of a topic."""
        chain = cls()
        for record in records:
            chain.add(record)
        return chain

    def add(self, record: Received) -> str:
        """Take the next record; returns what is wrong with it, or an empty text."""
        try:
            previous = decode(record.value, _Link).previous
        except UNDECODABLE:
            previous = None
        wrong = self._wrong(previous)
        if wrong:
            self.breaks.append((record.offset, wrong))
        elif previous is None:
            self.n_unchained += 1
        else:
            self.n_chained += 1
        self.head = hash_of(record)
        self._n += 1
        return wrong

    def _wrong(self, previous: str | None) -> str:
        if previous == self.head or (previous is None and not self.n_chained):
            return ""
        if previous is None:
            return "it names no record before it: it is not from Unmask, or from an older version"
        if not self._n:
            return "the records before it are gone"
        return "it does not follow the record before it: one was changed, left out or put in"


def append(
    connection: Connection,
    topic: str,
    transactional_id: str,
    make: Callable[[list[Received], str], bytes | None],
    *,
    before_commit: Callable[[], None] = lambda: None,
) -> bool:
    """Append a record after all others; whether there was one to append.

    Writers take turns: opening the transactional id fences a writer that is not done, so that two records never follow
    the same one. A fenced writer begins anew. An outcome that is not known is read from the topic.

    Args:
        make: gives the value of the record from all records so far and the hash that it must name; None: nothing.
        before_commit: called when the record is stored and not yet visible, again for each try. If it raises, nothing
            is appended.

    Raises:
        BrokerError: the topic does not exist, or Kafka does not answer. Nothing was appended, unless the message says
            that the outcome is unknown.
    """
    tried, has_failed = set[bytes](), False
    with Shared.of(connection) as shared:
        topics.partitions_of(shared, topic)  # raises: a missing topic is not asked about its transactions
        for n in range(N_TRIES):
            began_s = time.monotonic()
            try:
                with shared.transactional_writer(transactional_id, [(topic, 0)]) as writer:
                    past = records_of(shared, topic)
                    if any(record.value in tried for record in past):
                        return True
                    value = make(past, Chain.of(past).head)
                    if value is None:
                        return False
                    tried.add(value)
                    writer.commit([Message(topic, value, None, 0)], before_commit=before_commit)
                return True
            except FencedError:
                if n + 1 == N_TRIES:
                    raise
                # as on an Ethernet: writers that fence each other would never be done, however slow the broker is
                time.sleep(random.uniform(0, min(2**n, MOST_TURNS)) * (time.monotonic() - began_s))
            except BrokerError:
                if not tried or has_failed:
                    raise
                has_failed = True
            except BaseException:
                with suppress(BrokerError):  # aborts the open transaction, which readers would wait for
                    shared.transactional_writer(transactional_id).close()
                raise
    raise AssertionError


def records_of(connection: Connection, topic: str) -> list[Received]:
    """All records of a topic.

    Raises:
        BrokerError: the topic does not exist, or Kafka does not answer.
    """
    return [record for batch in topics.read_between(connection, topics.bounds(connection, [topic])) for record in batch]
