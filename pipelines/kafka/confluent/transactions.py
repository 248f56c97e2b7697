"""The transactional writer."""

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from confluent_kafka import KafkaError, KafkaException, Producer

from pipelines.errors import BrokerError, FencedError, RejectedError
from pipelines.kafka.confluent.errors import broker_error, of_client
from pipelines.kafka.confluent.opening import ANY_TOPIC, ClientLog, closed, opened
from pipelines.kafka.confluent.sending import SETTINGS, send
from pipelines.kafka.port import DELIVERY_MS, SENT_AGAIN, TRANSACTION_MS, Message, TransactionalWriter
from pipelines.kafka.server import Server

_DEADLINE_S = DELIVERY_MS / 1000
_LINGER_MS = 100  # a flush sends at once; with several full batches in a transaction, librdkafka's thread spins
_LOG_LEVEL = 6  # of syslog: with "info", which is the level at which a lost connection to the coordinator is told


class _Log(ClientLog):
    """The log of a producer; keeps what it says about the connection to the transaction coordinator.

    librdkafka tells nowhere else that it has sent a commit again.
    """

    def __init__(self) -> None:
        self.about_coordinator: list[str] = []

    def log(self, level: int, text: str, *values: object) -> None:
        told = text % values
        if "TxnCoordinator" in told:
            self.about_coordinator.append(told)
        if level >= logging.ERROR:
            super().log(level, text, *values)


class ConfluentTransactions(TransactionalWriter):
    """A transactional writer: it flushes, checks that every record is stored, and commits within a deadline.

    Only failures are reported to Python; a record is stored if it left the queue without one. librdkafka sends a commit
    again when its connection is lost.
    """

    def __init__(self, server: Server, transactional_id: str) -> None:
        self._id = transactional_id
        self._failures: list[KafkaError] = []
        failures = self._failures
        settings = SETTINGS | {
            "transactional.id": transactional_id,
            "transaction.timeout.ms": TRANSACTION_MS,
            "message.timeout.ms": DELIVERY_MS,
            "linger.ms": _LINGER_MS,
            "delivery.report.only.error": True,
            "on_delivery": lambda error, _record: failures.append(error),
        }
        self._log = _Log()
        settings |= {"logger": self._log, "log_level": _LOG_LEVEL}
        self._producers: list[Producer] = [opened(server, Producer, settings)]
        try:
            with self._errors():
                self._producers[0].list_topics(ANY_TOPIC, _DEADLINE_S)  # connects; else the next call waits for 0.5 s
                self._producers[0].init_transactions(_DEADLINE_S)
        except BaseException:
            self.close()
            raise

    def commit(self, messages: Iterable[Message], *, before_commit: Callable[[], None] | None = None) -> None:
        self._store(messages)
        if before_commit is not None:
            before_commit()
        with self._errors():
            self._producer.poll(0)  # brings the log of what was before
            self._log.about_coordinator.clear()
            self._producer.commit_transaction(_DEADLINE_S)
            self._producer.poll(0)
        if self._log.about_coordinator:
            raise BrokerError(f"{self._id}: {SENT_AGAIN} ({self._log.about_coordinator[0]})")

    def abort(self, messages: Iterable[Message]) -> None:
        self._store(messages)
        with self._errors():
            self._producer.abort_transaction(_DEADLINE_S)

    def _store(self, messages: Iterable[Message]) -> None:
        """Begin a transaction and wait until all records are stored."""
        try:
            self._send_all(messages)
        except BrokerError as error:
            traceback.clear_frames(error.__traceback__)  # they refer to the producer, which could not be destroyed
            raise self._telling_most(error) from error

    def _send_all(self, messages: Iterable[Message]) -> None:
        producer = self._producer
        with self._errors():
            producer.begin_transaction()
        for message in messages:
            send(producer, message, wait_s=_DEADLINE_S)
        with self._errors():
            n_waiting = producer.flush(_DEADLINE_S)
        if n_waiting or self._failures:
            raise BrokerError(f"{self._id}: a record was not stored within {_DEADLINE_S:g} s")

    def _telling_most(self, error: BrokerError) -> BrokerError:
        """The most specific reason for a failed transaction: one rejected record fails all others."""
        reasons = [error]
        try:
            with self._errors():
                self._producer.begin_transaction()  # it cannot begin, but says why
        except BrokerError as why:
            reasons.append(why)
        failed = [self._translate(failure) for failure in self._failures]
        telling = [e for e in (*reasons, *failed) if isinstance(e, FencedError | RejectedError)]
        return next(iter((*telling, *failed, error)))

    @property
    def _producer(self) -> Producer:
        """The producer; BrokerError if another thread has closed this writer meanwhile."""
        try:
            return self._producers[0]
        except IndexError:
            raise BrokerError(f"{self._id}: it was closed before the transaction ended") from None

    def close(self) -> None:
        """Destroy the producer within 2 s; an open transaction is aborted by the next owner."""
        closed(self._producers)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (KafkaException, SystemError) as error:
            raise self._translate(of_client(error)) from error

    def _translate(self, error: KafkaError) -> BrokerError:
        if error.code() == KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
            return RejectedError(f"{self._id}: not allowed; grant Write and Describe on this TransactionalId")
        return broker_error(self._id, error)
