"""Remembers which events are reported as fraud; the latest report of an event is valid. See `id_log`."""

# mypy: disable-error-code="no-untyped-def"
# The compiled functions are typed by numba, from their first call.

import numpy as np
from numpy.typing import NDArray

from pipelines.features.id_log import IdLog, append, newest, place_of, row_of
from pipelines.features.kernel import compiled


class Reports(IdLog):
    """The latest report of each event. The value of an entry is 2 * event time + label."""

    def changes(
        self,
        ids: NDArray[np.uint64],
        clock_ms: NDArray[np.int64],
        time_ms: NDArray[np.int64],
        label: NDArray[np.int8],
    ) -> NDArray[np.int8]:
        """Change of the number of frauds by each report: +1 reported, -1 withdrawn, 0 if repeated or too old.

        Args:
            ids: hashes from `hash_ids`, shape (n, 2); the other arrays (n,), in the one order.
        """
        changes = np.zeros(len(ids), np.int8)
        self._enter(_report, ids, (clock_ms, time_ms, label), changes)
        return changes


@compiled
def _report(start, ids, clock_ms, time_ms, label, found, changes, table, entries, first, used, memory_ms, most):
    """Process labels from `start` until the segment is full. Returns (next label, entries used)."""
    for i in range(start, ids.shape[0]):
        if clock_ms[i] - time_ms[i] > memory_ms:
            continue
        low, high = ids[i, 0], ids[i, 1]
        place = place_of(table, entries, low, high)
        row = row_of(table, table[place])
        known = newest(row, i, found, entries, first, clock_ms[i], first + used, memory_ms, most)
        is_reported = known >= 0 and known % 2 == 1 and clock_ms[i] - known // 2 <= memory_ms
        if is_reported == (label[i] == 1):
            continue
        if used == entries.shape[0]:
            return i, used
        append(table, place, entries, used, low, high, clock_ms[i], 2 * time_ms[i] + label[i])
        used += 1
        changes[i] = 1 if label[i] == 1 else -1
    return ids.shape[0], used
