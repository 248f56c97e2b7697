"""What a demo prints while it runs: each step before it begins, its outcome, and the time since the start."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console

from flows import progress
from flows.screen import plain


@dataclass
class Step:
    """One step; the code of the step sets `outcome`, a sentence."""

    report: progress.Report
    outcome: str = "Done."


class Steps:
    """Prints steps to a console."""

    def __init__(self, console: Console) -> None:
        self._console, self._began_s = console, time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._began_s

    @contextmanager
    def step(self, title: str, doing: str) -> Iterator[Step]:
        """Announce a step, show that it goes on, and print its outcome and duration."""
        self._line(f"[bold]{title}[/bold]: {plain(doing)}")
        began_s = time.monotonic()
        with progress.shown(title.lower()) as report:
            step = Step(report)
            yield step
        self._line(f"  {plain(step.outcome)} [dim]({time.monotonic() - began_s:.0f} s)[/dim]")

    def note(self, words: str) -> None:
        """Print a line within a step."""
        self._line(f"  {plain(words)}")

    def _line(self, markup: str) -> None:
        self._console.print(f"[cyan]{self.seconds:5.0f} s[/cyan]  {markup}", soft_wrap=True, highlight=False)
