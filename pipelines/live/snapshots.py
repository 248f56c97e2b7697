"""The schedule of snapshots: after catching up, then at intervals; written in the background."""

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Executor, Future

from pipelines.contracts.messages import Progress
from pipelines.features.snapshot import Snapshot, SnapshotStore
from pipelines.live.health import Seldom
from pipelines.live.replica import Replica, is_ahead
from pipelines.order import Frontier

log = logging.getLogger(__name__)

FIRST_SNAPSHOT_S = 5.0  # while catching up: 5 s, 10 s, 20 s ..., so that frequent restarts still make progress
MAX_UNTOLD = 5_000  # places that are not in a progress record yet; about 300 kB


class SnapshotSchedule:
    """Takes snapshots of a replica's state. A slow disk does not block the loop; on a full disk snapshots are skipped.

    Args:
        aside: executor that writes them, one at a time.
        every_s: time between two snapshots after the replica has caught up, s.
    """

    def __init__(self, store: SnapshotStore, replica: Replica, aside: Executor, *, every_s: float) -> None:
        self.writing: Future[None] | None = None
        self._store, self._replica, self._aside = store, replica, aside
        self._every_s = every_s
        self._wait_s = min(FIRST_SNAPSHOT_S, every_s)
        self._due_s = time.monotonic() + self._wait_s
        self._newest: Frontier | None = None
        self._failed = Seldom(log)
        self._written_s: float | None = None

    @property
    def age_s(self) -> float | None:
        """Time since the newest snapshot was written, s; None if there is none of this process."""
        return None if self._written_s is None else time.monotonic() - self._written_s

    def caught_up(self) -> None:
        """Take a snapshot now, and then at the usual interval."""
        self._due_s = time.monotonic()
        self._wait_s = self._every_s

    def take_if_due(self, progress: Mapping[int, Progress]) -> None:
        """Take a snapshot if one is due."""
        now_s = time.monotonic()
        if now_s >= self._due_s:
            self._wait_s = min(2 * self._wait_s, self._every_s)
            self._due_s = now_s + self._wait_s
            self.take(progress)

    def take(self, progress: Mapping[int, Progress]) -> None:
        """Copy the state and write it in the background, unless the last snapshot is still being written."""
        if self.writing is not None and not self.writing.done():
            return
        if self._newest is not None and is_ahead(self._newest, progress):
            return  # one at most may be ahead of the progress, or stalled lanes would displace all usable ones
        if self._replica.n_untold(progress) > MAX_UNTOLD:
            return  # a restart would have to record all of them in one progress record
        snapshot = self._replica.snapshot(progress)
        self._newest = snapshot.frontier
        self.writing = self._aside.submit(self._write, snapshot)

    def _write(self, snapshot: Snapshot) -> None:
        try:
            self._store.write(snapshot)
        except Exception as error:
            self._replica.counters.n_snapshots_failed += 1
            self._failed.warning("a snapshot was not written: %s; scoring continues, but a restart takes longer", error)
        else:
            self._written_s = time.monotonic()
            self._replica.counters.n_snapshots += 1
