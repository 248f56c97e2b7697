"""The transactional writer."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from typing import Any

from kafka import KafkaProducer
from kafka.errors import (
    InvalidProducerEpochError,
    KafkaError,
    ProducerFencedError,
    TransactionalIdAuthorizationFailedError,
    UnknownError,
)
from kafka.producer.transaction_manager import EndTxnHandler

from pipelines.background import in_background
from pipelines.errors import BrokerError, FencedError, RejectedError
from pipelines.kafka.kafka_python.errors import broker_error, is_from_client
from pipelines.kafka.kafka_python.opening import opened
from pipelines.kafka.kafka_python.writer import close_producer, send
from pipelines.kafka.port import (
    DELIVERY_MS,
    MAX_REQUEST_BYTES,
    REQUEST_MS,
    SENT_AGAIN,
    TRANSACTION_MS,
    Message,
    TransactionalWriter,
)
from pipelines.kafka.server import Server


class KafkaPythonTransactions(TransactionalWriter):
    """A transactional writer that checks every record: kafka-python's commit does not report an expired record.

    It flushes, checks the future of every record, commits within a deadline, and checks every future again. The client
    sends a commit again when its connection is lost, which is counted.
    """

    def __init__(self, server: Server, transactional_id: str) -> None:
        self._id = transactional_id
        self._producer = opened(
            server,
            KafkaProducer,
            transactional_id=transactional_id,
            acks="all",
            linger_ms=0,
            batch_size=1_000_000,
            max_request_size=MAX_REQUEST_BYTES,
            request_timeout_ms=REQUEST_MS,
            delivery_timeout_ms=DELIVERY_MS,
            transaction_timeout_ms=TRANSACTION_MS,
            max_block_ms=DELIVERY_MS,
            retry_backoff_ms=5,  # the coordinator answers CONCURRENT_TRANSACTIONS for a few ms after each commit
        )
        self._n_commits_sent = 0
        self._count_commits()
        try:
            self._within(DELIVERY_MS / 1000, self._producer.init_transactions)
        except BaseException:
            self.close()
            raise

    def commit(self, messages: Iterable[Message], *, before_commit: Callable[[], None] | None = None) -> None:
        futures = self._stored(messages)
        if before_commit is not None:
            before_commit()
        self._n_commits_sent = 0
        self._within(DELIVERY_MS / 1000, self._producer.commit_transaction)
        if not all(future.succeeded() for future in futures):
            raise BrokerError(f"{self._id}: the transaction was committed, but a record is missing from it")
        if self._n_commits_sent > 1:
            raise BrokerError(f"{self._id}: {SENT_AGAIN}")

    def abort(self, messages: Iterable[Message]) -> None:
        self._stored(messages)
        self._within(DELIVERY_MS / 1000, self._producer.abort_transaction)

    def _stored(self, messages: Iterable[Message]) -> list[Any]:
        """The futures of the records, all of which are stored in a transaction that is open."""
        futures: list[Any] = []
        try:
            self._send_all(messages, futures)
            self._wait_until_stored(futures)
        except BrokerError as error:
            raise self._telling_most(error, futures) from error
        return futures

    def _count_commits(self) -> None:
        """Count each commit request that the client queues, also if it is queued again."""
        manager = self._producer._transaction_manager
        enqueue = manager._enqueue_request

        def counting(request: Any) -> None:
            self._n_commits_sent += isinstance(request, EndTxnHandler)
            enqueue(request)

        manager._enqueue_request = counting

    def _send_all(self, messages: Iterable[Message], futures: list[Any]) -> None:
        with self._errors():
            self._producer.begin_transaction()
        for message in messages:  # errors raised by the iterable itself are not translated
            with self._errors():
                futures.append(send(self._producer, message))

    def _wait_until_stored(self, futures: Sequence[Any]) -> None:
        until = time.monotonic() + DELIVERY_MS / 1000
        with self._errors(), suppress(UnknownError):  # raised by flush when it split a batch that was too large
            self._producer.flush(timeout=DELIVERY_MS / 1000)
        for future in futures:
            with suppress(KafkaError):
                future.get(timeout=max(0.0, until - time.monotonic()))
        if not all(future.succeeded() for future in futures):
            raise BrokerError(f"{self._id}: a record was not stored within {DELIVERY_MS / 1000:g} s")

    def _telling_most(self, error: BrokerError, futures: Sequence[Any]) -> BrokerError:
        """The most specific reason for a failed transaction: one rejected record fails all others."""
        failed = [self._translate(f.exception) for f in futures if f.failed()]
        telling = [e for e in (error, *failed) if isinstance(e, FencedError | RejectedError)]
        return next(iter((*telling, *failed, error)))

    def close(self) -> None:
        """Close the producer within a second; an open transaction is aborted by the next owner."""
        wait([in_background(lambda: close_producer(self._producer, timeout_s=1.0))], timeout=2)

    def _within(self, deadline_s: float, call: Any) -> None:
        """Run `call` in its own thread with a deadline, because the client's commit can block forever."""
        outcome = in_background(call)
        with self._errors():
            try:
                outcome.result(timeout=deadline_s)
            except TimeoutError as error:
                raise BrokerError(f"{self._id}: {call.__name__} gave no answer within {deadline_s:g} s") from error

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not is_from_client(error):
                raise
            raise self._translate(error) from error

    def _translate(self, error: BaseException) -> BrokerError:
        # Calls after a failed request raise a generic error with the original one as an argument.
        error = next((cause for cause in error.args if isinstance(cause, KafkaError)), error)
        if isinstance(error, ProducerFencedError | InvalidProducerEpochError):
            return FencedError(f"{self._id}: another producer has taken over ({type(error).__name__})")
        if isinstance(error, KafkaError) and "EndTxn" in str(error) and "UnknownError" in str(error):
            # The coordinator answers this while another producer of the id is being initialised.
            return FencedError(f"{self._id}: the commit failed, another producer may be taking over ({error})")
        if isinstance(error, TransactionalIdAuthorizationFailedError):
            return RejectedError(f"{self._id}: not allowed; grant Write and Describe on this TransactionalId")
        return broker_error(self._id, error)
