"""Progress of long tasks: a bar on a terminal, otherwise a line every ten seconds, and a Prefect artifact."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol
from uuid import UUID

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Report = Callable[[float, str], None]
LINE_EVERY_S = 10.0
_PAGE_EVERY_S = 3.0


@contextmanager
def shown(title: str) -> Iterator[Report]:
    """Show the progress of a task. Yields a function `report(share, words)`, share in [0, 1].

    The display is updated even if nothing is reported. A nested display replaces the outer one until it ends.
    """
    began_s = _displays[0].began_s if _displays else time.monotonic()
    display: _Display = _Bar(title, began_s) if sys.stderr.isatty() else _Lines(title, began_s)
    page = _Page(title)

    def report(share: float, words: str) -> None:
        display.update(share, words)
        page.update(share)

    if _displays:
        _displays[-1].pause()
    _displays.append(display)
    display.resume()
    try:
        yield report
    finally:
        display.pause()
        _displays.remove(display)
        if _displays:
            _displays[-1].resume()
    page.finish()


class _Display(Protocol):
    """A progress display, initially paused. `began_s` is the start time of the outermost task."""

    began_s: float

    def update(self, share: float, words: str) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


_displays: list[_Display] = []  # active displays, the innermost last


class _Bar:
    """A bar on the terminal. It pulses until a share is reported."""

    def __init__(self, title: str, began_s: float) -> None:
        self.began_s = began_s
        columns = (TextColumn(f"  {title}"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("", total=None)

    def update(self, share: float, words: str) -> None:
        self._bar.update(self._task, total=1.0, completed=share, description=words)

    def pause(self) -> None:
        self._bar.stop()

    def resume(self) -> None:
        self._bar.start()


class _Lines:
    """A line on stderr every ten seconds, printed by a thread."""

    def __init__(self, title: str, began_s: float) -> None:
        self._title, self.began_s = title, began_s
        self._share, self._words = 0.0, ""
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def update(self, share: float, words: str) -> None:
        self._share, self._words = share, words

    def pause(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def resume(self) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._stopped,), name="progress", daemon=True)
        self._thread.start()

    def _run(self, stopped: threading.Event) -> None:
        while not stopped.wait(LINE_EVERY_S):
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        spent = f"{time.monotonic() - self.began_s:.0f} s"
        if not self._words and not self._share:
            return f"  {self._title}: still working after {spent}"
        if self._share >= 1.0:  # work after the last report has no share
            return f"  {self._title}: finishing, after {spent}"
        details = f" ({self._words})" if self._words else ""
        return f"  {self._title}: {self._share:.0%} done after {spent}{details}"


class _Page:
    """The progress artifact of the current flow run, if there is one."""

    def __init__(self, title: str) -> None:
        self._id: UUID | None = None
        self._sent_s = time.monotonic()
        if _in_flow_run():
            from prefect.artifacts import create_progress_artifact

            made = create_progress_artifact(progress=0.0, description=title)
            assert isinstance(made, UUID)  # the call is synchronous outside a coroutine
            self._id = made

    def update(self, share: float) -> None:
        if self._id is not None and time.monotonic() - self._sent_s > _PAGE_EVERY_S:
            self._sent_s = time.monotonic()
            self._send(share)

    def finish(self) -> None:
        if self._id is not None:
            self._send(1.0)

    def _send(self, share: float) -> None:
        from prefect.artifacts import update_progress_artifact

        assert self._id is not None
        update_progress_artifact(artifact_id=self._id, progress=100 * share)


def _in_flow_run() -> bool:
    # Importing Prefect here would load its settings before the demo has started its server.
    if "prefect" not in sys.modules:
        return False
    from prefect.context import FlowRunContext

    return FlowRunContext.get() is not None
