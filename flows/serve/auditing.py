"""The continuous audit as a service: reports on stdout until SIGTERM or Ctrl-C."""

import signal
import sys
import threading
import time
from typing import Any, Literal

import msgspec

from flows.screen import json_line
from flows.settings import Settings
from pipelines.contracts.messages import rfc3339
from pipelines.contracts.stream import Stream
from pipelines.operate.books import Problem
from pipelines.operate.watch import Watch, Watched

MOST_PLACES = 20  # printed for each kind of problem between two reports


def follow_audit(
    settings: Settings, stream: Stream, *, every_s: float, start: Literal["earliest", "latest"], as_json: bool
) -> bool:
    """Follow until a signal, and report every `every_s` seconds; returns whether no problem was found."""
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    printed = dict[str, int]()

    def say(words: str, said: dict[str, Any]) -> None:
        at = rfc3339(round(time.time() * 1000))
        line = json_line(msgspec.json.encode({"at": at} | said).decode()) if as_json else f"{at}  {words}"
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def problem(found: Problem) -> None:
        printed[found.kind] = printed.get(found.kind, 0) + 1
        if printed[found.kind] <= MOST_PLACES:
            words = f"{found.kind.replace('_', ' ')}: partition {found.partition}, offset {found.offset}"
            say(words, {"problem": found.kind, "partition": found.partition, "offset": found.offset})

    def report(watched: Watched) -> None:
        printed.clear()
        say(watched.words(), {"holds": watched.holds} | msgspec.to_builtins(watched))

    watch = Watch(settings.connection(), stream, kept=settings.audit_file(stream), start=start)
    last = watch.run(stop.is_set, every_s=every_s, on_report=report, on_problem=problem)
    report(last)
    return last.holds
