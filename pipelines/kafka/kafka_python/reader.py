"""The reader of assigned partitions."""

import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress

from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import KafkaError

from pipelines.errors import BrokerError
from pipelines.kafka.kafka_python.errors import client_errors, is_from_client
from pipelines.kafka.kafka_python.opening import opened
from pipelines.kafka.kafka_python.records import read_past_unreadable
from pipelines.kafka.port import ANSWER_MS, FETCH_WAIT_MS, REQUEST_MS, Position, Reader
from pipelines.kafka.server import Server
from pipelines.record import Received

log = logging.getLogger(__name__)

FETCH_BYTES = (1 << 20) + (1 << 16)  # a batch of the broker's default limit and the start of the next one


class KafkaPythonReader(Reader):
    """A consumer without a group; fetched batches are parsed by `records`."""

    def __init__(self, server: Server, positions: Mapping[Position, int], *, max_records: int) -> None:
        self._server = server
        self._consumer = opened(
            server,
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
        self._partitions = {position: TopicPartition(*position) for position in positions}
        self._held: dict[Position, int] = {}
        with client_errors("reading could not be started"):
            self._consumer.assign(list(self._partitions.values()))
            for position, offset in positions.items():
                self._consumer.seek(self._partitions[position], offset)

    def poll(self, *, timeout_ms: int = FETCH_WAIT_MS) -> list[Received]:
        with client_errors("reading failed, nothing was skipped"):
            batches = self._consumer.poll(timeout_ms=timeout_ms)
        return [record for batch in batches.values() for record in batch]

    def ends(self, *, timeout_ms: int = ANSWER_MS) -> dict[Position, int]:
        asked = set(self._partitions.values())
        while asked:
            try:
                ends = self._asker.end_offsets(list(asked), timeout_ms=timeout_ms)
            except KeyError as error:
                asked.discard(error.args[0])  # the client's way to report a partition without a leader
            except Exception as error:
                if not is_from_client(error):
                    raise
                log.warning("no answer about the end offsets of %d partitions: %s", len(asked), error)
                return self._ends_apart(asked, timeout_ms)
            else:
                return {(tp.topic, tp.partition): offset for tp, offset in ends.items()}
        return {}

    def _ends_apart(self, asked: Iterable[TopicPartition], timeout_ms: int) -> dict[Position, int]:
        """End offsets asked one by one, within a time for all: one topic that is gone keeps all others waiting."""
        found, until = dict[Position, int](), time.monotonic() + timeout_ms / 1000
        for tp in asked:
            if time.monotonic() < until:
                with suppress(KeyError, KafkaError):
                    ends = self._asker.end_offsets([tp], timeout_ms=max(timeout_ms // 4, 1))
                    found[tp.topic, tp.partition] = ends[tp]
        return found

    def spans(self, partitions: Iterable[Position]) -> dict[Position, tuple[int, int]]:
        asked = [TopicPartition(*p) for p in partitions]
        with client_errors(f"no answer about offsets from {self._server.bootstrap}"):
            first, end = self._consumer.beginning_offsets(asked), self._consumer.end_offsets(asked)
            return {(tp.topic, tp.partition): (first[tp], end[tp]) for tp in asked}

    def n_partitions(self, topic: str, *, timeout_ms: int = ANSWER_MS) -> int | None:
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
        held = self._held.get(position)
        if held is not None:
            return held
        # The client's `position` asks the broker whether it is right, and fails while there is none; `poll` asks, too.
        known = self._consumer._subscription.assignment[self._partitions[position]].position
        if known is None:
            raise BrokerError("the read position of {} [{}] is unknown".format(*position))
        return int(known.offset)

    def hold(self, positions: Iterable[Position]) -> None:
        """Pause partitions by removing them from the assignment.

        `pause` of kafka-python 3.0.12 can lose a partition permanently: records already fetched are parked, and they
        stay parked after `resume` while a drained fetch of another partition is pending.
        """
        wanted = set(positions)
        if wanted == set(self._held):
            return
        offsets = {p: self.position(p) for p in self._partitions}
        self._held = {p: offsets[p] for p in wanted}
        with client_errors("reading could not be continued"):
            self._consumer.assign([tp for p, tp in self._partitions.items() if p not in wanted])
            for p, tp in self._partitions.items():
                if p not in wanted:
                    self._consumer.seek(tp, offsets[p])

    def close(self) -> None:
        with suppress(Exception):
            self._consumer.close(autocommit=False)
