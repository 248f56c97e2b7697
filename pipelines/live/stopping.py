"""How a scorer ends: at SIGTERM, within a few seconds, whatever hangs."""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable

log = logging.getLogger(__name__)

FINISH_S = 1.5  # for publishing the rest of an outbox
LEAVE_S = 0.7  # then for the end of the current transaction
STOP_S = 4.0  # for all of it, with a last snapshot
PROCESS_S = 4.6  # from the signal to the end of the process
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def stop_signal(*, within_s: float = PROCESS_S) -> threading.Event:
    """An event that SIGTERM or Ctrl-C sets. If the process has not ended `within_s` later, it is ended with code 0.

    A thread of its own notices the signal, so it also comes through while the main thread waits in a C library. Ending
    the process at any moment is safe: nothing counts as published that is not committed, and a snapshot gets its name
    only when it is complete. Call it in the main thread.
    """
    asked = threading.Event()
    near, far = socket.socketpair()
    far.setblocking(False)
    for signum in SIGNALS:
        signal.signal(signum, lambda *_: None)
    signal.set_wakeup_fd(far.fileno(), warn_on_full_buffer=False)

    def wait() -> None:
        with near, far:  # far is kept open for the signals
            while not set(near.recv(64)) & {*SIGNALS}:
                pass
            asked.set()
            time.sleep(within_s)
            log.warning("the scorer has not ended within %g s and is ended now; nothing is lost", within_s)
            os._exit(0)

    threading.Thread(target=wait, name="signals", daemon=True).start()
    return asked


def all_within(until_s: float, calls: Iterable[Callable[[], object]]) -> None:
    """Run calls in threads of their own, and wait for them until a time of the monotonic clock."""
    threads = [threading.Thread(target=call, name="stopping", daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(until_s - time.monotonic(), 0.0))
