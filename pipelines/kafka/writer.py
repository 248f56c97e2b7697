"""Writers whose failures cannot be overlooked: an idempotent one, and guarded transactions."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

from kafka import KafkaProducer
from kafka.errors import (
    InvalidProducerEpochError,
    KafkaError,
    ProducerFencedError,
    TransactionalIdAuthorizationFailedError,
    UnknownError,
)

from pipelines.errors import BrokerError, FencedError, RejectedError
from pipelines.kafka.connection import (
    DELIVERY_MS,
    REQUEST_MS,
    TRANSACTION_MS,
    Connection,
    broker_error,
    client_errors,
    is_from_client,
    opened,
)
from pipelines.kafka.port import Message

MAX_REQUEST_BYTES = 1 << 20  # of one record as it is sent, key and headers included: the broker's default too


class Writer:
    """An idempotent producer whose failures cannot be overlooked: `flush` checks every record sent."""

    def __init__(self, connection: Connection, *, linger_ms: int = 5) -> None:
        self._producer = opened(
            connection,
            KafkaProducer,
            acks="all",
            linger_ms=linger_ms,
            batch_size=1 << 18,
            max_request_size=MAX_REQUEST_BYTES,
            request_timeout_ms=REQUEST_MS,
            delivery_timeout_ms=60_000,
        )
        self._futures: list[Any] = []

    def send(self, message: Message) -> None:
        with client_errors(f"a record for {message.topic} was not sent"):
            self._futures.append(_send(self._producer, message))

    def flush(self, *, timeout_s: float = 60.0) -> list[tuple[str, int, int]]:
        """Wait until everything sent is stored; returns (topic, partition, offset) of each record.

        Raises:
            RejectedError: the broker refuses a record for good.
            BrokerError: a record was not stored.
        """
        futures, self._futures = self._futures, []
        with client_errors("a record was not stored"):
            self._producer.flush(timeout=timeout_s)
            stored = [f.get(timeout=1) for f in futures]
        return [(m.topic, m.partition, m.offset) for m in stored]

    def close(self) -> None:
        with suppress(Exception):
            self._producer.close(timeout=5)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TransactionalWriter:
    """One transactional id. Opening it fences and aborts whoever used the id before.

    The guard (kafka-python's commit is silent about a record that expired): flush, check every record's future,
    commit within a deadline, check every future again. After any error the writer is done: open a new one.
    """

    def __init__(self, connection: Connection, transactional_id: str) -> None:
        self._id = transactional_id
        self._producer = opened(
            connection,
            KafkaProducer,
            transactional_id=transactional_id,
            acks="all",
            linger_ms=0,
            batch_size=1 << 18,
            max_request_size=MAX_REQUEST_BYTES,
            request_timeout_ms=REQUEST_MS,
            delivery_timeout_ms=DELIVERY_MS,
            transaction_timeout_ms=TRANSACTION_MS,
            max_block_ms=DELIVERY_MS,
            retry_backoff_ms=5,  # the coordinator answers CONCURRENT_TRANSACTIONS for a few ms after each commit
        )
        try:
            self._within(DELIVERY_MS / 1000, self._producer.init_transactions)
        except BaseException:
            self.close()
            raise

    def commit(self, messages: Iterable[Message], *, before_commit: Callable[[], None] | None = None) -> None:
        """Write all messages in one transaction, or none.

        Raises:
            FencedError: somebody else has opened the same id.
            RejectedError: the broker refuses one of the messages for good.
            BrokerError: the outcome is failure or unknown; read what is there before going on.
        """
        futures: list[Any] = []
        try:
            with self._errors():
                self._producer.begin_transaction()
            for message in messages:
                with self._errors():
                    futures.append(_send(self._producer, message))
            until = time.monotonic() + DELIVERY_MS / 1000
            with self._errors(), suppress(UnknownError):  # so flush says that it split a batch which was too large
                self._producer.flush(timeout=DELIVERY_MS / 1000)
            for future in futures:
                with suppress(KafkaError):
                    future.get(timeout=max(0.0, until - time.monotonic()))
            if not all(f.succeeded() for f in futures):
                raise BrokerError(f"{self._id}: a record was not stored within {DELIVERY_MS / 1000:g} s")
        except BrokerError as error:
            raise self._telling_most(error, futures) from error
        if before_commit is not None:
            before_commit()
        self._within(DELIVERY_MS / 1000, self._producer.commit_transaction)
        for future in futures:
            if not future.succeeded():
                raise BrokerError(f"{self._id}: the transaction was committed without a record")

    def _telling_most(self, error: BrokerError, futures: Sequence[Any]) -> BrokerError:
        """Why a transaction failed: one record that is refused for good takes the others with it."""
        failed = [self._translate(f.exception) for f in futures if f.failed()]
        telling = [e for e in (error, *failed) if isinstance(e, FencedError | RejectedError)]
        return next(iter((*telling, *failed, error)))

    def close(self) -> None:
        """Give the producer up within a second; an open transaction is left to the next owner."""
        closing = threading.Thread(target=self._close_quietly, daemon=True)
        closing.start()
        closing.join(timeout=2)

    def _close_quietly(self) -> None:
        with suppress(Exception):
            self._producer.close(timeout=1)

    def _within(self, deadline_s: float, call: Any) -> None:
        """Run `call` in a thread of its own: the client waits for ever in commit, we do not."""
        outcome: Future[None] = Future()

        def run() -> None:
            try:
                call()
                outcome.set_result(None)
            except BaseException as error:
                outcome.set_exception(error)

        threading.Thread(target=run, daemon=True, name=f"{self._id}-call").start()
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
        # What comes after a failed request says only that it failed, with its error as an argument.
        error = next((cause for cause in error.args if isinstance(cause, KafkaError)), error)
        if isinstance(error, ProducerFencedError | InvalidProducerEpochError):
            return FencedError(f"{self._id}: another producer has taken over ({type(error).__name__})")
        if isinstance(error, KafkaError) and "EndTxn" in str(error) and "UnknownError" in str(error):
            # So the coordinator answers while another producer of the id is being initialised.
            return FencedError(f"{self._id}: the commit failed, another producer may be taking over ({error})")
        if isinstance(error, TransactionalIdAuthorizationFailedError):
            return RejectedError(f"{self._id}: not allowed; grant Write and Describe on this TransactionalId")
        return broker_error(self._id, error)


def _send(producer: KafkaProducer, message: Message) -> Any:
    return producer.send(
        message.topic,
        value=message.value,
        key=message.key,
        headers=list(message.headers),
        partition=message.partition,
        timestamp_ms=message.timestamp_ms,
    )
