"""The client of the adapter for kafka-python."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.net.manager import KafkaConnectionManager
from kafka.net.sasl import SASL_MECHANISMS
from kafka.structs import OffsetAndMetadata

from pipelines.kafka.kafka_python.admin import KafkaPythonAdmin
from pipelines.kafka.kafka_python.errors import client_errors
from pipelines.kafka.kafka_python.member import KafkaPythonMember
from pipelines.kafka.kafka_python.opening import opened
from pipelines.kafka.kafka_python.reader import KafkaPythonReader
from pipelines.kafka.kafka_python.transactions import KafkaPythonTransactions
from pipelines.kafka.kafka_python.writer import KafkaPythonWriter
from pipelines.kafka.options import check_options
from pipelines.kafka.port import (
    DELIVERY_MS,
    REQUEST_MS,
    Admin,
    Client,
    Member,
    Position,
    Reader,
    TransactionalWriter,
    Writer,
)
from pipelines.kafka.server import Server

OPTIONS = frozenset(
    name for name in KafkaConnectionManager.DEFAULT_CONFIG if name.startswith(("security_", "sasl_", "ssl_"))
)


class KafkaPython(Client):
    """Opens clients of kafka-python.

    Raises:
        LoginError: an option is unknown, missing or unusable.
    """

    def __init__(self, bootstrap: str, options: Mapping[str, Any]) -> None:
        check_options(options, known=OPTIONS, mechanisms=SASL_MECHANISMS)
        self._server = Server(bootstrap, options)

    def reader(self, positions: Mapping[Position, int], *, max_records: int) -> Reader:
        return KafkaPythonReader(self._server, positions, max_records=max_records)

    def member(self, group: str, topic: str, *, instance_id: str | None, session_ms: int) -> Member:
        return KafkaPythonMember(self._server, group, topic, instance_id=instance_id, session_ms=session_ms)

    def writer(self, *, linger_ms: int) -> Writer:
        return KafkaPythonWriter(self._server, linger_ms=linger_ms)

    def transactional_writer(self, transactional_id: str) -> TransactionalWriter:
        return KafkaPythonTransactions(self._server, transactional_id)

    def admin(self, *, opening_ms: int) -> Admin:
        return KafkaPythonAdmin(self._server, opening_ms=opening_ms)

    def note_group(self, group: str, positions: Mapping[Position, int]) -> None:
        consumer = opened(
            self._server, KafkaConsumer, group_id=group, enable_auto_commit=False, request_timeout_ms=REQUEST_MS
        )
        try:
            with client_errors(f"the offsets of group {group} were not committed"):
                offsets = {TopicPartition(*p): OffsetAndMetadata(offset, "", -1) for p, offset in positions.items()}
                consumer.assign(list(offsets))
                consumer.commit(offsets, timeout_ms=DELIVERY_MS)
        finally:
            with suppress(Exception):
                consumer.close(autocommit=False)
