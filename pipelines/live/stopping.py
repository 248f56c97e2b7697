"""How a scorer ends: at SIGTERM or by an error, within a few seconds, whatever hangs."""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait

from pipelines.background import in_background

log = logging.getLogger(__name__)

FINISH_S = 1.5  # for publishing the rest of an outbox
LEAVE_S = 0.7  # then for the end of the current transaction
STOP_S = 4.0  # for all of it, with a last snapshot
PROCESS_S = 4.6  # from the signal to the end of the process
SIGNALS = (signal.SIGTERM, signal.SIGINT)
_FAILED = 0  # beside the numbers of signals


class StopSignal:
    """Is set by SIGTERM, Ctrl-C or a failure. If the process has not ended `within_s` later, it is ended.

    A thread of its own notices the signal, so it also comes through while the main thread waits in a C library. Ending
    the process at any moment is safe: nothing counts as published that is not committed, and a snapshot gets its name
    only when it is complete. The exit code is 0 after a signal, 1 after a failure. Make it in the main thread.
    """

    def __init__(self, *, within_s: float = PROCESS_S) -> None:
        self._asked, self._within_s = threading.Event(), within_s
        self._near, self._far = socket.socketpair()
        self._far.setblocking(False)
        for signum in SIGNALS:
            signal.signal(signum, lambda *_: None)
        signal.set_wakeup_fd(self._far.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._wait, name="signals", daemon=True).start()

    def is_set(self) -> bool:
        return self._asked.is_set()

    def failed(self) -> None:
        """Say that an error ends the process."""
        self._far.send(bytes([_FAILED]))

    def _wait(self) -> None:
        while not (told := {*self._near.recv(64)} & {*SIGNALS, _FAILED}):
            pass
        self._asked.set()
        time.sleep(self._within_s)
        log.warning("the scorer has not ended within %g s and is ended now; nothing is lost", self._within_s)
        os._exit(1 if _FAILED in told else 0)


def all_within(until_s: float, calls: Iterable[Callable[[], object]]) -> None:
    """Run calls beside each other, and wait for them until a time of the monotonic clock."""
    begun = list[Future[object]]()
    for call in calls:
        try:
            begun.append(in_background(call))
        except (MemoryError, RuntimeError) as error:
            log.error("while stopping: %s", error or type(error).__name__)
    for done in wait(begun, timeout=max(until_s - time.monotonic(), 0.0)).done:
        if failure := done.exception():
            log.error("while stopping: %s", type(failure).__name__, exc_info=failure)
