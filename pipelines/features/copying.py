"""A copy of the windows as they are at one moment, made in steps while events are folded.

Whoever is about to change rows says so first, and those that are not in the copy yet are copied at once. So the copy is
that of the moment at which it began, and no step takes longer than the rows that it was asked for.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.features.entities import EntityRows

Part = tuple[str, NDArray[Any]]


class WindowsCopy:
    """The copy: named parts of arrays, to be taken from `ready` in their order.

    Args:
        columns: the entity columns. They may not be swept before the copy is whole.
        clock_ms: the moment, None if nothing was folded yet.
        parts: what is copied already.
        changes: copy only the rows that changed since the last whole copy began.
    """

    def __init__(
        self, columns: Sequence[EntityRows], clock_ms: int | None, parts: Iterable[Part], *, changes: bool
    ) -> None:
        self.ready: deque[Part] = deque(parts)
        self._clock_ms = clock_ms
        self._columns = columns
        self._waiting = [column.touched[: column.used].copy() for column in columns]
        if not changes:
            self._waiting = [np.ones(column.used, bool) for column in columns]
            for column in columns:
                column.touched[:] = False
        self._done = [0 for _ in columns]
        for number, column in enumerate(columns):
            self._take(number, np.empty(0, np.int64))  # an array of its own, also where nothing follows
            self.ready.extend((f"{number}.{name}", array) for name, array in column.counted().items())

    @property
    def is_whole(self) -> bool:
        return all(done == len(waiting) for done, waiting in zip(self._done, self._waiting, strict=True))

    def before_change(self, keys: NDArray[np.uint64]) -> None:
        """Copy the rows that are about to change; `keys` (n, entity columns)."""
        for number, (column, waiting, done) in enumerate(zip(self._columns, self._waiting, self._done, strict=True)):
            if done < len(waiting):
                slots = np.empty(len(keys), np.int64)
                n = column.find_waiting(np.ascontiguousarray(keys[:, number]), waiting, slots)
                if n:
                    self._take(number, slots[:n])

    def step(self, n_rows: int) -> None:
        """Copy some more rows."""
        for number, (waiting, done) in enumerate(zip(self._waiting, self._done, strict=True)):
            if done < len(waiting):
                slots = done + np.flatnonzero(waiting[done : done + n_rows])
                self._done[number] = min(done + n_rows, len(waiting))
                if len(slots):
                    waiting[slots] = False
                    self._take(number, slots)
                return

    def _take(self, number: int, slots: NDArray[np.int64]) -> None:
        for name, array in self._columns[number].packed(slots, self._clock_ms or 0).items():
            self.ready.append((f"{number}.{name}", array))
