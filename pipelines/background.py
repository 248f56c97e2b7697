"""Calls that may hang, in threads that nobody has to wait for."""

import _thread
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_background(call: Callable[[], T]) -> Future[T]:
    """Run a call in a thread of its own, which ends with the process at the latest.

    `threading.Thread` is not used: its `start` waits for ever if the new thread has no memory for its first steps
    (python/cpython#140746). Here the future has no result then, and a deadline for it counts.

    Raises:
        RuntimeError: the system starts no thread.

    >>> in_background(lambda: 6 * 7).result(timeout=10)
    42
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    _thread.start_new_thread(run, ())
    return outcome
