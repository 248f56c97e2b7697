"""The client of the adapter for confluent-kafka."""

from collections.abc import Mapping
from typing import Any

from pipelines.kafka.confluent.admin import ConfluentAdmin
from pipelines.kafka.confluent.member import ConfluentMember
from pipelines.kafka.confluent.opening import OPENING_MS
from pipelines.kafka.confluent.options import MECHANISMS, NAMES
from pipelines.kafka.confluent.reader import ConfluentReader
from pipelines.kafka.confluent.transactions import ConfluentTransactions
from pipelines.kafka.confluent.writer import ConfluentWriter
from pipelines.kafka.options import check_options
from pipelines.kafka.port import Admin, Client, Member, Position, Reader, TransactionalWriter, Writer
from pipelines.kafka.server import Server


class Confluent(Client):
    """Opens clients of confluent-kafka.

    Raises:
        LoginError: an option is unknown, missing or unusable.
    """

    def __init__(self, bootstrap: str, options: Mapping[str, Any]) -> None:
        check_options(options, known=NAMES, mechanisms=MECHANISMS)
        self._server = Server(bootstrap, options)

    def reader(self, positions: Mapping[Position, int], *, max_records: int) -> Reader:
        return ConfluentReader(self._server, positions, max_records=max_records)

    def member(self, group: str, topic: str, *, instance_id: str | None, session_ms: int) -> Member:
        return ConfluentMember(self._server, group, topic, instance_id=instance_id, session_ms=session_ms)

    def writer(self, *, linger_ms: int) -> Writer:
        return ConfluentWriter(self._server, linger_ms=linger_ms)

    def transactional_writer(self, transactional_id: str) -> TransactionalWriter:
        return ConfluentTransactions(self._server, transactional_id)

    def admin(self, *, opening_ms: int) -> Admin:
        return ConfluentAdmin(self._server, opening_ms=opening_ms)

    def note_group(self, group: str, positions: Mapping[Position, int]) -> None:
        with ConfluentAdmin(self._server, opening_ms=OPENING_MS) as admin:
            admin.note_group(group, positions)
