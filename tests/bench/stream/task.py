"""What a system is asked to do in its own process, and what it found. Imported by every system: few imports here."""

from __future__ import annotations

import gc
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from tests.bench.stream.profiling import Profile

TRANSACTION = 1_000  # events


class Task(msgspec.Struct, frozen=True):
    """One run.

    Args:
        topics: the beginning of the names of its topics.
        folder: what `prepared` made for its stream.
        state: an empty folder for its state.
        ends: end offset of each partition of the events.
        live: whether it runs until SIGTERM, with transactions as small as the events come, instead of up to `ends`.
        every: number of events after which the CPU time is noted.
        profile: file for the profile of its threads; "" = no profile.
        partitions: those that it publishes; None = all.
    """

    system: str
    client: str
    form: str
    stream: str
    topics: str
    bootstrap: str
    folder: str
    state: str
    ends: list[int]
    live: bool = False
    every: int = 0
    profile: str = ""
    partitions: list[int] | None = None

    @property
    def n_events(self) -> int:
        """Number of events to score."""
        return sum(self.ends if self.partitions is None else [self.ends[p] for p in self.partitions])

    @property
    def events_topic(self) -> str:
        """Topic of the events."""
        return f"{self.topics}.events"

    @property
    def scores_topic(self) -> str:
        """Topic of the scores."""
        return f"{self.topics}.scores"

    @property
    def progress_topic(self) -> str:
        """Topic of the progress records."""
        return f"{self.topics}.progress"


class Found(msgspec.Struct):
    """CPU time of all threads and wall time from just before the loop to the end of the last commit, s.

    `noted`: (events, CPU seconds) from the start, at every step of `Task.every`. `more`: figures of this system only.
    """

    events: int
    cpu_s: float
    wall_s: float
    noted: list[tuple[int, float]] = []
    more: dict[str, float] = {}


class Meter:
    """Measures one run. Call `start` just before the loop, then `passed` after every commit."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._stopping = threading.Event()
        self._profile: Profile | None = None
        self._next = task.every or task.n_events
        self.found = Found(0, 0.0, 0.0)
        self.more: dict[str, float] = {}
        signal.signal(signal.SIGTERM, lambda *_: self._stopping.set())

    def start(self) -> None:
        """Exclude loaded objects from garbage collection, as Unmask's service does; say so; start the clocks."""
        gc.collect()
        gc.freeze()
        print("ready", flush=True)
        if self._task.profile:
            from tests.bench.stream.profiling import Profile

            self._profile = Profile()
            self._profile.time_stages()
            self._profile.start()
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def passed(self, n_events: int) -> bool:
        """Note that so many events are out; returns whether the run is over."""
        found = self.found
        if n_events != found.events and (n_events >= self._next or n_events >= self._task.n_events):
            found.cpu_s, found.wall_s = time.process_time() - self._cpu_s, time.perf_counter() - self._wall_s
            found.events = n_events
            found.noted.append((n_events, found.cpu_s))
            self._next += self._task.every or self._task.n_events
        over = self._stopping.is_set() if self._task.live else n_events >= self._task.n_events
        if over and self._profile is not None:
            self._profile.stop(Path(self._task.profile), n_events)
            self._profile = None
        return over
