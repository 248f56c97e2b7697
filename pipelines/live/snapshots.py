"""The schedule of snapshots: after catching up, then at intervals; copied in steps, written in the background."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from contextlib import suppress

from pipelines.contracts.messages import Progress
from pipelines.features.copying import Part
from pipelines.features.draft import Draft
from pipelines.features.snapshot import SnapshotStore
from pipelines.features.state import Base, StateCopy
from pipelines.live.health import Seldom
from pipelines.live.replica import Replica, is_ahead
from pipelines.order import Frontier

log = logging.getLogger(__name__)

FIRST_SNAPSHOT_S = 5.0  # while catching up: 5 s, 10 s, 20 s ..., so that frequent restarts still make progress
MAX_UNTOLD = 5_000  # places that are not in a progress record yet; about 300 kB
STEP_S = 0.002  # the loop copies for about this long in each turn
MOST_CHANGED = 0.3  # share of the entities; with more, a snapshot is whole again
ROWS, MAX_JOBS = 512, 8  # copied at a time; parts waiting for the disk, each up to a few MB


class SnapshotSchedule:
    """Takes snapshots of a replica's state. A slow disk does not block the loop; on a full disk snapshots are skipped.

    The first one is whole; later ones have what changed since, while that is little.

    Args:
        aside: executor that writes them, a single thread.
        every_s: time between two snapshots after the replica has caught up, s.
        owner: who takes them, and since which generation of the group; stored in them, for people. It decides nothing:
            a snapshot is a function of the log, whoever wrote it.
    """

    def __init__(
        self,
        store: SnapshotStore,
        replica: Replica,
        aside: Executor,
        *,
        every_s: float,
        owner: Callable[[], Mapping[str, str | int]],
    ) -> None:
        self._store, self._replica, self._aside, self._owner = store, replica, aside, owner
        self._every_s = every_s
        self._wait_s = min(FIRST_SNAPSHOT_S, every_s)
        self._due_s = time.monotonic() + self._wait_s
        self._newest: Frontier | None = None
        self._failed = Seldom(log)
        self._written_s: float | None = None
        self._writing: Writing | None = None
        self._base: tuple[Base, str] | None = None  # the last whole one, and its file

    @property
    def age_s(self) -> float | None:
        """Time since the newest snapshot was written, s; None if there is none of this process."""
        return None if self._written_s is None else time.monotonic() - self._written_s

    @property
    def is_writing(self) -> bool:
        """Whether a snapshot has begun and is not known to be over."""
        return self._writing is not None

    def caught_up(self) -> None:
        """Take a snapshot now, and then at the usual interval."""
        self._due_s = time.monotonic()
        self._wait_s = self._every_s

    def take_if_due(self, progress: Mapping[int, Progress]) -> None:
        """Begin a snapshot if one is due, unless the last one is still being written."""
        now_s = time.monotonic()
        if now_s >= self._due_s:
            self._wait_s = min(2 * self._wait_s, self._every_s)
            self._due_s = now_s + self._wait_s
            if self._writing is None:
                self._begin(progress)

    def go_on(self) -> None:
        """Copy some more of the state for the snapshot that has begun, and follow its writing."""
        if self._writing is not None and self._writing.is_over(step_s=STEP_S):
            self._base = self._writing.base
            self._writing = None

    def take(self, progress: Mapping[int, Progress], *, until_s: float = math.inf) -> None:
        """Take a snapshot of the state as it is now, at the end: copy all of it. It may not be written yet.

        It is given up if it is not copied by `until_s`, a time of the monotonic clock.
        """
        self.abandon()
        self._begin(progress)
        if self._writing is not None:
            self._writing.is_over(step_s=until_s - time.monotonic())
            if not self._writing.is_given:
                self.abandon()

    def abandon(self) -> None:
        """Give up the snapshot that has begun."""
        if self._writing is not None:
            self._writing.abandon()
            self._writing = self._base = None

    def _begin(self, progress: Mapping[int, Progress]) -> None:
        if self._newest is not None and is_ahead(self._newest, progress):
            return  # one at most may be ahead of the progress, or stalled lanes would displace all usable ones
        if self._replica.n_untold(progress) > MAX_UNTOLD:
            return  # a restart would have to record all of them in one progress record
        state = self._replica.state
        if self._base is not None and (
            state.windows.changed_share > MOST_CHANGED
            or self._base[1] == self._store.file_of(state.frontier)  # nothing was folded since
        ):
            self._base = None
        copy = self._replica.copy(progress, self._base[0] if self._base else None)
        copy.meta["owner"] = dict(self._owner())
        self._newest = copy.frontier
        self._writing = Writing(self._store, copy, self._base, self._aside, dict(progress), self._note)

    def _note(self, failure: Exception | None) -> None:
        """Called aside at the end of each snapshot."""
        if failure is not None:
            self._replica.counters.n_snapshots_failed += 1
            what = "a snapshot was not written: %s; scoring continues, but a restart takes longer"
            self._failed.warning(what, failure)
        else:
            self._written_s = time.monotonic()
            self._replica.counters.n_snapshots += 1


class Writing:
    """A snapshot on its way to the disk: the loop copies, the thread aside writes.

    Args:
        base: the whole snapshot, and its file, of which `copy` has the changes; None if it is whole itself.
        note: called aside at the end, with the failure if there is one.
    """

    def __init__(
        self,
        store: SnapshotStore,
        copy: StateCopy,
        base: tuple[Base, str] | None,
        aside: Executor,
        progress: Mapping[int, Progress],
        note: Callable[[Exception | None], None],
    ) -> None:
        self._store, self._copy, self._aside, self._progress, self._note = store, copy, aside, progress, note
        self._base = base
        self.base: tuple[Base, str] | None = None  # of the next one; set aside, once this one was written
        self._draft: Draft | None = None
        self._is_over = False  # set aside
        self.is_given = False  # everything was handed over to be written
        self._jobs: deque[Future[None]] = deque()
        self._submit(self._open)

    def is_over(self, *, step_s: float) -> bool:
        """Copy for some time and hand it over; returns whether the snapshot was written or has failed."""
        while self._jobs and self._jobs[0].done():
            self._jobs.popleft()
        if self._is_over:
            self._copy.abandon()
        elif not self.is_given and (len(self._jobs) < MAX_JOBS or step_s > STEP_S):
            until_s = time.perf_counter() + step_s
            while not self._copy.is_whole and time.perf_counter() < until_s:
                self._copy.step(ROWS)
            parts = list(self._copy.parts())
            self._submit(lambda: self._add(parts))
            if self._copy.is_whole:
                self.is_given = True
                self._submit(self._finish)
        return self._is_over

    def abandon(self) -> None:
        """Give it up, unless everything was handed over."""
        if not self.is_given:
            self._copy.abandon()
            self._submit(self._fail)

    def _submit(self, job: Callable[[], None]) -> None:
        self._jobs.append(self._aside.submit(self._run, job))

    def _run(self, job: Callable[[], None]) -> None:
        if self._is_over:
            return
        try:
            job()
        except Exception as error:
            self._fail()
            self._note(error)

    def _open(self) -> None:
        if self._base is not None:
            base, file = self._base
            self._copy.meta["base"]["file"] = file
            if not self._store.has(file, base.id):
                raise FileNotFoundError(f"{file}, of which it has the changes, is gone; the next one is whole")
        self._draft = self._store.draft(self._copy.frontier)

    def _add(self, parts: list[Part]) -> None:
        assert self._draft is not None
        for name, part in parts:
            self._draft.add(name, part)

    def _finish(self) -> None:
        assert self._draft is not None
        file = self._store.file_of(self._copy.frontier)
        self._draft.finish(self._copy.meta)
        try:
            self._store.finished(file)
            self.base = self._base or (self._copy.as_base, file)
            self._is_over = True
            self._note(None)
        finally:
            with suppress(OSError):  # what cannot be deleted now is deleted after the next one
                self._store.tidy(lambda frontier: not is_ahead(frontier, self._progress))

    def _fail(self) -> None:
        self._is_over = True
        if self._draft is not None:
            self._draft.abandon()
