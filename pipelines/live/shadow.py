"""A challenger in shadow: it scores the events that are published, to a topic of its own, and holds up nothing."""

import logging
import threading
import time
from collections import deque
from contextlib import suppress

from pipelines.contracts.block import Block
from pipelines.contracts.stream import Stream
from pipelines.errors import BrokerError, RejectedError
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message, Writer
from pipelines.live.health import Seldom
from pipelines.live.score_records import judged, packed
from pipelines.model import Model

log = logging.getLogger(__name__)

MAX_WAITING = 20_000  # rows; about 40 MB
STORED_WITHIN_S = 10.0
TRY_FOR_S = 30.0  # to store the scores of one block
WAIT_S = 0.5


class Shadow:
    """Scores blocks with the challenger in a thread of its own, and publishes packed scores to `<stream>.shadow`.

    Lanes offer each block once it is published. `offer` never waits and never raises: what the challenger has no time
    for is dropped and counted. Scores go out at least once, outside of the lanes' transactions. Events for which the
    model fails, or whose scores cannot be stored for `TRY_FOR_S`, are counted as failed.
    """

    def __init__(self, connection: Connection, stream: Stream) -> None:
        self._connection, self._stream = connection, stream
        self._model: Model | None = None
        self._waiting: deque[Block] = deque()
        self._n_waiting = 0  # rows that wait or are being scored
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._writer: Writer | None = None
        self._dropped, self._broken = Seldom(log), Seldom(log)
        self.n_scored = self.n_dropped = self.n_failed = 0

    @property
    def digest(self) -> str | None:
        """The challenger's digest; None without one."""
        return None if self._model is None else self._model.digest

    def use(self, model: Model | None) -> None:
        """Score what is offered from now on with another challenger, or with none."""
        with self._changed:
            self._model = model
            if model is None:
                self._waiting.clear()
            elif self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
                self._thread.start()

    def offer(self, rows: Block) -> None:
        """Let the challenger score these published events, if it has time."""
        if self._model is None:
            return
        with self._changed:
            if self._n_waiting + len(rows) > MAX_WAITING:
                self.n_dropped += len(rows)
            else:
                self._waiting.append(rows)
                self._n_waiting += len(rows)
                self._changed.notify()
                return
        self._dropped.warning("the challenger is too slow: %d events so far were not scored in shadow", self.n_dropped)

    def stop(self, *, within_s: float = 1.0) -> None:
        """Score what waits for at most so long; the rest is counted as dropped."""
        until = time.monotonic() + within_s
        while self._n_waiting and time.monotonic() < until:
            time.sleep(0.01)
        with self._changed:
            self._stopping = True
            self.n_dropped += self._n_waiting
            self._changed.notify()
        if self._n_waiting:
            log.warning("%d events were not scored in shadow before the end", self._n_waiting)

    def _run(self) -> None:
        while (rows := self._next()) is not None:
            model = self._model
            try:
                if model is not None:
                    self._score(rows, model)
            except Exception as error:  # a challenger may fail in any way
                self.n_failed += len(rows)
                words = error if isinstance(error, BrokerError) else type(error).__name__
                self._broken.warning("%d events so far could not be scored in shadow: %s", self.n_failed, words)
            with self._changed:
                self._n_waiting = sum(map(len, self._waiting))
        self._close()

    def _next(self) -> Block | None:
        with self._changed:
            while not self._waiting and not self._stopping:
                self._changed.wait()
            return None if self._stopping else self._waiting.popleft()

    def _score(self, rows: Block, model: Model) -> None:
        scored = rows.take(rows.is_scored)
        if not len(scored):
            return
        found = model.score(scored.numeric, scored.category_hashes)
        _, lines = judged(scored, found, self._stream, model)
        self._store(packed(lines, scored, self._stream, kind="shadow"))
        self.n_scored += len(scored)

    def _store(self, messages: list[Message]) -> None:
        until = time.monotonic() + TRY_FOR_S
        while True:
            try:
                self._writer = self._writer or self._connection.writer()
                for message in messages:
                    self._writer.send(message)
                self._writer.flush(timeout_s=STORED_WITHIN_S)
                return
            except BrokerError as error:
                self._close()
                if isinstance(error, RejectedError) or time.monotonic() > until or self._stopping:
                    raise
                time.sleep(WAIT_S)

    def _close(self) -> None:
        if self._writer is not None:
            with suppress(BrokerError):
                self._writer.close()
            self._writer = None
