"""The reader of assigned partitions."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaException

from pipelines.errors import BrokerError, LoginError
from pipelines.kafka.confluent.fetch import Fetch
from pipelines.kafka.confluent.offsets import END, FIRST, Offsets
from pipelines.kafka.confluent.opening import closed, opened
from pipelines.kafka.kafka_python.reader import FETCH_BYTES, KafkaPythonReader
from pipelines.kafka.port import ANSWER_MS, FETCH_WAIT_MS, REQUEST_MS, Position, Reader
from pipelines.kafka.server import Server
from pipelines.record import Received

log = logging.getLogger(__name__)

DISTRUST = 20_000  # offsets that kafka-python reads after librdkafka gave a partition up

_SETTINGS: dict[str, Any] = {
    "group.id": "unmask-reader",  # required, but without a subscription no group is joined
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
    "enable.partition.eof": True,
    "check.crcs": True,
    "fetch.wait.max.ms": FETCH_WAIT_MS,
    "fetch.message.max.bytes": FETCH_BYTES,
    "fetch.max.bytes": FETCH_BYTES,  # bounds what one response can be decompressed to
    "receive.message.max.bytes": 64 << 20,
    "fetch.error.backoff.ms": 100,
    "fetch.queue.backoff.ms": FETCH_WAIT_MS,
    "queued.min.messages": 20_000,  # per partition
    "queued.max.messages.kbytes": 16 << 10,
}


class ConfluentReader(Reader):
    """A consumer without a group. Where librdkafka cannot be trusted, the parser of kafka-python reads for a while.

    So each offset is either delivered by librdkafka right after the one before, or accounted for by that parser.
    """

    def __init__(self, server: Server, positions: Mapping[Position, int], *, max_records: int) -> None:
        self._server, self._max_records = server, max_records
        self._clients = [opened(server, Consumer, _SETTINGS)]
        self._offsets = Offsets(server)
        self._fetch = Fetch(self._clients[0], self._offsets, max_records=max_records)
        self._other: KafkaPythonReader | None = None
        self._other_has_turn = False
        self._read_by_other: set[Position] = set()
        self.assign(positions)

    def assign(self, positions: Mapping[Position, int]) -> None:
        self._fetch.keep({})
        self._at = dict(positions)  # where each partition was when it was last moved between the two, or held
        self._held: set[Position] = set()
        self._until: dict[Position, int] = {}  # read by kafka-python up to this offset
        self._arrange()

    def poll(self, *, timeout_ms: int = FETCH_WAIT_MS) -> list[Received]:
        if not self._read_by_other:
            return self._fetched(timeout_ms)
        timeout_ms = min(timeout_ms, FETCH_WAIT_MS)  # kafka-python does not return when the position passes a marker
        if not self._fetch.next:
            return self._parsed(timeout_ms)
        self._other_has_turn = not self._other_has_turn
        first, second = (self._parsed, self._fetched) if self._other_has_turn else (self._fetched, self._parsed)
        return first(0) or second(timeout_ms // 2)

    def _fetched(self, timeout_ms: int) -> list[Received]:
        """Records that librdkafka read."""
        records = self._fetch.poll(timeout_ms)
        if given_up := self._fetch.given_up:
            self._at |= given_up
            self._until |= {position: offset + DISTRUST for position, offset in given_up.items()}
            self._fetch.given_up = {}
            self._arrange()
        return records

    def _parsed(self, timeout_ms: int) -> list[Received]:
        """Records that kafka-python read."""
        try:
            other = self._opened_other()
        except LoginError:
            raise
        except BrokerError as error:
            log.warning("%s", error)
            return []
        records = other.poll(timeout_ms=timeout_ms)
        self._at |= {position: other.position(position) for position in self._read_by_other}
        passed = [position for position in self._read_by_other if self._at[position] >= self._until[position]]
        for position in passed:
            del self._until[position]
        if passed:
            self._arrange()
        return records

    def _arrange(self) -> None:
        """Give each partition that is not held to the one that must read it."""
        self._at |= self._fetch.next
        reading = self._at.keys() - self._held
        parsed = reading & self._until.keys()
        self._fetch.keep({position: self._at[position] for position in reading - parsed})
        if parsed != self._read_by_other:
            self._read_by_other = parsed
            if self._other is not None:
                self._other.assign({position: self._at[position] for position in parsed})

    def _opened_other(self) -> KafkaPythonReader:
        if self._other is None:
            positions = {position: self._at[position] for position in self._read_by_other}
            self._other = KafkaPythonReader(self._server, positions, max_records=self._max_records)
        return self._other

    def ends(self, *, timeout_ms: int = ANSWER_MS) -> dict[Position, int]:
        return self._offsets.ends(self._at, committed=False, timeout_ms=timeout_ms)

    def spans(self, partitions: Iterable[Position]) -> dict[Position, tuple[int, int]]:
        asked = list(partitions)
        first, end = (self._offsets.until_known(edge, asked, timeout_ms=REQUEST_MS) for edge in (FIRST, END))
        return {position: (first[position], end[position]) for position in asked}

    def n_partitions(self, topic: str, *, timeout_ms: int = ANSWER_MS) -> int | None:
        try:
            found = self._clients[0].list_topics(topic, timeout_ms / 1000).topics[topic]
        except KafkaException as error:
            log.debug("no answer about the partitions of %s: %s", topic, error)
            return None
        return len(found.partitions) or None

    def position(self, position: Position) -> int:
        return self._fetch.next.get(position, self._at[position])

    def hold(self, positions: Iterable[Position]) -> None:
        wanted = set(positions)
        if wanted != self._held:
            self._held = wanted
            self._arrange()

    def close(self) -> None:
        self._fetch.consumer = None
        closed(self._clients)
        self._offsets.close()
        if self._other is not None:
            self._other.close()
