"""A reader of assigned partitions: raw bytes, committed records only."""

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import Fetcher

from pipelines.kafka.connection import REQUEST_MS, Connection, client_errors, is_from_client, opened
from pipelines.kafka.port import Position, Received
from pipelines.kafka.records import read_past_unreadable

log = logging.getLogger(__name__)

FETCH_WAIT_MS = 20
FETCH_BYTES = (1 << 20) + (1 << 16)  # a batch of the broker's default limit, and the beginning of the next one
ANSWER_MS = 200  # the loop stands still while it waits for an answer about end offsets


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
