"""Progress of long work: a bar on a terminal, a line now and then elsewhere, an artifact on the Prefect page."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Report = Callable[[float, str], None]
_PAGE_EVERY_S = 3.0
_LINE_EVERY = 0.25


@contextmanager
def shown(title: str) -> Iterator[Report]:
    """A function `report(share, words)`, share in [0, 1], that shows how far `title` has come."""
    page = _Page(title)
    if sys.stderr.isatty():
        columns = (
            TextColumn(f"  {title}"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=1.0)

            def report(share: float, words: str) -> None:
                bar.update(task, completed=share, description=words)
                page.update(share)

            yield report
    else:
        told = [0.0]

        def report_line(share: float, words: str) -> None:
            if share - told[0] >= _LINE_EVERY:
                told[0] = share
                print(f"  {title}: {share:4.0%} {words}", file=sys.stderr, flush=True)
            page.update(share)

        yield report_line
    page.finish()


class _Page:
    """The progress artifact of the flow run that this is called in; nothing outside of one."""

    def __init__(self, title: str) -> None:
        from prefect.context import FlowRunContext

        self._id: UUID | None = None
        self._told_s = time.monotonic()
        if FlowRunContext.get() is not None:
            from prefect.artifacts import create_progress_artifact

            made = create_progress_artifact(progress=0.0, description=title)
            assert isinstance(made, UUID)  # the call is synchronous outside of a coroutine
            self._id = made

    def update(self, share: float) -> None:
        if self._id is not None and time.monotonic() - self._told_s > _PAGE_EVERY_S:
            self._told_s = time.monotonic()
            self._send(share)

    def finish(self) -> None:
        if self._id is not None:
            self._send(1.0)

    def _send(self, share: float) -> None:
        from prefect.artifacts import update_progress_artifact

        assert self._id is not None
        update_progress_artifact(artifact_id=self._id, progress=100 * share)
