"""First and end offsets of partitions, with one request to each broker."""

import logging
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Any

from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from pipelines.errors import BrokerError
from pipelines.kafka.confluent.opening import ANY_TOPIC, Reasons, closed, connecting
from pipelines.kafka.port import Position
from pipelines.kafka.server import Server

log = logging.getLogger(__name__)

FIRST, END = OffsetSpec.earliest(), OffsetSpec.latest()
RETRY_S = 0.5


class Offsets:
    """Asks for offsets with a client of its own, which connects in the background.

    The consumer's own requests are not used: where one partition has no leader, they answer for none.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._clients: list[Any] = []
        self._silent: set[Position] = set()
        self._retry_due_s = 0.0

    def ends(self, partitions: Iterable[Position], *, committed: bool, timeout_ms: int) -> dict[Position, int]:
        """The end of each partition about which a broker answers in time; one without answer is left out for a moment.

        Args:
            committed: records of open transactions do not count.
        """
        if self._silent and time.monotonic() >= self._retry_due_s:
            self._find_leaders({topic for topic, _ in self._silent}, timeout_ms)
            self._silent = set()
        asked = set(partitions) - self._silent
        found = self._at(END, asked, committed=committed, timeout_ms=timeout_ms)
        if silent := asked - found.keys():
            log.warning("no answer about the end offsets of %s", sorted(silent))
            self._silent |= silent
            self._retry_due_s = time.monotonic() + RETRY_S
        return found

    def until_known(self, edge: Any, partitions: Iterable[Position], *, timeout_ms: int) -> dict[Position, int]:
        """The offset at an edge of the committed records of each partition.

        Raises:
            BrokerError: no answer about one of them.
        """
        until, missing = time.monotonic() + timeout_ms / 1000, set(partitions)
        found: dict[Position, int] = {}
        if not self._clients:
            self._find_leaders({ANY_TOPIC}, timeout_ms)  # connects; else the first question may wait for 1 or 3 s
        while missing:
            left_ms = round((until - time.monotonic()) * 1000)
            if left_ms <= 0:
                raise BrokerError(f"no answer about offsets of {sorted(missing)} from {self._server.bootstrap}")
            found |= self._at(edge, missing, committed=True, timeout_ms=left_ms)
            missing -= found.keys()
            if missing:
                time.sleep(0.05)
                self._find_leaders({topic for topic, _ in missing}, max(1, left_ms))
        return found

    def _at(
        self, edge: OffsetSpec, partitions: Collection[Position], *, committed: bool, timeout_ms: int
    ) -> dict[Position, int]:
        if not partitions:
            return {}
        asked = {TopicPartition(topic, partition): edge for topic, partition in partitions}
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        answers = self._client.list_offsets(asked, isolation_level=level, request_timeout=timeout_ms / 1000)
        found = {}
        for tp, answer in answers.items():
            try:
                offset = answer.result().offset
            except KafkaException as error:
                log.debug("no answer about an offset of %s [%d]: %s", tp.topic, tp.partition, error)
            else:
                if offset >= 0:  # negative: no answer in time, which is not reported as an error
                    found[tp.topic, tp.partition] = offset
        return found

    def _find_leaders(self, topics: Iterable[str], timeout_ms: int) -> None:
        """Look for the leaders of partitions again: this client does so only if it is asked about topics."""
        with suppress(KafkaException):
            for topic in topics:
                self._client.list_topics(topic, timeout_ms / 1000)

    @property
    def _client(self) -> Any:
        if not self._clients:
            self._clients.append(connecting(self._server, AdminClient, {}, Reasons()))
        self._clients[0].poll(0)  # serves its callbacks
        return self._clients[0]

    def close(self) -> None:
        closed(self._clients)
