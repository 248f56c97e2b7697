"""The clock of a live stream: the marks that one replica writes, and that all replicas fold by."""

import logging
import threading
import time

from pipelines.contracts.stream import Stream
from pipelines.errors import BrokerError, RejectedError
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message, Writer
from pipelines.live.health import Seldom
from pipelines.live.marks import mark_bytes
from pipelines.order import Mark

log = logging.getLogger(__name__)

EVERY_S = 0.01  # least time between two marks
RETRY_S = 0.2


class ClockWriter:
    """Writes marks in its own thread, one after the other; a mark that cannot be written is dropped, for the next one.

    Which replica writes, and how often, is a matter of speed only: all replicas follow all marks in the topic.
    """

    def __init__(self, connection: Connection, stream: Stream, n_partitions: int, *, by: str) -> None:
        self._by = by
        self.failure: BaseException | None = None
        self._connection, self._topic, self._n_partitions = connection, stream.topic("clock"), n_partitions
        self._ready = threading.Condition()
        self._mark: Mark | None = None
        self._is_stopping = False
        self._failed = Seldom(log)
        self._thread = threading.Thread(target=self._run, name="clock", daemon=True)

    @property
    def is_free(self) -> bool:
        """Whether the last mark was written."""
        return self._mark is None

    def write(self, mark: Mark) -> None:
        """Write a mark; only if `is_free`."""
        with self._ready:
            self._mark = mark
            if not self._thread.is_alive():
                self._thread.start()
            self._ready.notify()

    def close(self) -> None:
        """End the thread."""
        with self._ready:
            self._is_stopping = True
            self._ready.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _run(self) -> None:
        writer: Writer | None = None
        try:
            while (mark := self._next()) is not None:
                try:
                    writer = writer or self._connection.writer(linger_ms=0)
                    value = mark_bytes(mark.below_ms, mark.ends, self._n_partitions, by=self._by)
                    writer.send(Message(self._topic, value, None, 0))
                    writer.flush(timeout_s=10.0)
                except RejectedError:
                    raise
                except BrokerError as error:
                    self._failed.warning("no mark could be written to %s: %s; trying again", self._topic, error)
                    if writer is not None:
                        writer.close()
                    writer = None
                    time.sleep(RETRY_S)
                self._mark = None
                time.sleep(EVERY_S)
        except BaseException as error:
            self.failure = error
        finally:
            if writer is not None:
                writer.close()

    def _next(self) -> Mark | None:
        with self._ready:
            while self._mark is None and not self._is_stopping:
                self._ready.wait()
            return None if self._is_stopping else self._mark
