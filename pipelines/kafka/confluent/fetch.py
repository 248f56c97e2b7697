"""The partitions that librdkafka reads, and when it is not to be trusted with one of them."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, Message, TopicPartition

from pipelines.kafka.confluent.errors import broker_error, client_errors
from pipelines.kafka.confluent.offsets import Offsets
from pipelines.kafka.confluent.received import n_consecutive, n_small, received, runs
from pipelines.kafka.port import ANSWER_MS, Position
from pipelines.record import Received

log = logging.getLogger(__name__)

STALL_S = 2.0
_NOT_ALLOWED = {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED}


class Fetch:
    """Takes only successive offsets from librdkafka, and gives a partition up where it cannot.

    librdkafka does not report the offsets of an unreadable batch, or stands still at it without a report, and it
    accepts any offset that a record claims to have; after a wrong checksum it goes on at a random place. So a partition
    is given up at a gap (also at that of a control marker), at an error (its offset may be a random one, too), at a
    standstill, and before a record that is too large to be one without compression.

    Attributes:
        next: next offset of each partition that is read.
        given_up: partition -> offset from which something else must read it.
    """

    def __init__(self, consumer: Any, offsets: Offsets, *, max_records: int) -> None:
        self.consumer = consumer
        self._offsets = offsets
        self._max_records = max_records
        self.next: dict[Position, int] = {}
        self.given_up: dict[Position, int] = {}
        self._behind: dict[Position, int] = {}  # positions before the end at the last look
        self._last_look: dict[Position, int] = {}
        self._look_due_s = 0.0

    def keep(self, positions: Mapping[Position, int]) -> None:
        """Read these partitions and no others; those that are new, from these offsets."""
        gone = self.next.keys() - positions.keys()
        new = [TopicPartition(*position, offset) for position, offset in positions.items() if position not in self.next]
        with client_errors("reading could not be started"):
            if gone:
                self.consumer.incremental_unassign([TopicPartition(*position) for position in gone])
            if new:
                self.consumer.incremental_assign(new)
        self.next = {position: self.next.get(position, offset) for position, offset in positions.items()}

    def poll(self, timeout_ms: int) -> list[Received]:
        """Records that arrived; returns as soon as there are any.

        Raises:
            RejectedError: not allowed.
        """
        records: list[Received] = []
        with client_errors("reading failed, nothing was skipped"):
            messages = self._consumed(timeout_ms)
        for position, messages_of_one in runs(messages):
            records += self._taken(position, messages_of_one)
        if len(messages) < self._max_records and time.monotonic() >= self._look_due_s:  # nothing else is waiting
            self._look_for_standstill()
        return records

    def _consumed(self, timeout_ms: int) -> list[Message]:
        """`consume` with a timeout waits until it has all messages that were asked for: so it may wait for one only."""
        found: list[Message] = self.consumer.consume(self._max_records, 0)
        if not found and timeout_ms:
            found = self.consumer.consume(1, timeout_ms / 1000)
            if found and self._max_records > 1:
                found += self.consumer.consume(self._max_records - 1, 0)
        return found

    def _taken(self, position: Any, messages: Sequence[Message]) -> list[Received]:
        if not any(map(Message.error, messages)):
            return self._good(position, messages)
        records = []
        for message in messages:
            if error := message.error():
                self._note(position, message.offset(), error)
            else:
                records += self._good(position, [message])
        return records

    def _good(self, position: Position, messages: Sequence[Message]) -> list[Received]:
        expected = self.next.get(position)
        if expected is None:
            return []  # fetched before the partition was given up or paused
        n = min(n_consecutive(messages, expected), n_small(messages))
        self.next[position] = expected + n
        if n < len(messages):
            self._give_up(position, "an offset is missing, or a record is very large")
        return received(messages[:n])

    def _note(self, position: Any, offset: int | None, error: KafkaError) -> None:
        expected = self.next.get(position)
        if expected is None or (error.code() == KafkaError._PARTITION_EOF and offset == expected):
            return
        if error.code() in _NOT_ALLOWED:
            raise broker_error(f"reading {position[0]} [{position[1]}] failed, nothing was skipped", error)
        self._give_up(position, error.str())

    def _give_up(self, position: Position, why: str) -> None:
        offset = self.given_up[position] = self.next.pop(position)
        log.debug("%s [%d] is given up at offset %d: %s", *position, offset, why)
        with client_errors("reading could not be continued"):
            self.consumer.incremental_unassign([TopicPartition(*position)])

    def _look_for_standstill(self) -> None:
        """Give up partitions that stand where they stood at the last look, although more had been committed then."""
        self._look_due_s = time.monotonic() + STALL_S
        for position, offset in list(self._behind.items()):
            if self.next.get(position) == offset:
                self._give_up(position, "it stands still")
        still = [position for position, offset in self.next.items() if self._last_look.get(position) == offset]
        ends = self._offsets.ends(still, committed=True, timeout_ms=ANSWER_MS)
        self._behind = {position: self.next[position] for position, end in ends.items() if end > self.next[position]}
        self._last_look = dict(self.next)
