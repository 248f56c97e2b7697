"""Remembers which events are reported, and as what; the latest report of an event is valid. See `id_log`.

The rule is that of `pipelines.lake.labels`. Where only frauds are reported, an event without a report is legitimate.
Where legitimate events are reported too, it is unknown.
"""

# mypy: disable-error-code="no-untyped-def"
# The compiled functions are typed by numba, from their first call.

import numpy as np
from numpy.typing import NDArray

from pipelines.features.compiling import compiled
from pipelines.features.id_log import SMALLEST, IdLog, append, newest, place_of, row_of


class Reports(IdLog):
    """The latest report of each event. The value of an entry is 2 * event time + label.

    Args:
        both: whether legitimate events are reported too, not only frauds.
    """

    def __init__(self, memory_ms: int, most: int, *, both: bool = False, smallest: int = SMALLEST) -> None:
        super().__init__(memory_ms, most, smallest=smallest)
        self.both = both

    def changes(
        self,
        ids: NDArray[np.uint64],
        clock_ms: NDArray[np.int64],
        time_ms: NDArray[np.int64],
        label: NDArray[np.int8],
    ) -> NDArray[np.int8]:
        """Change of the number of known frauds and of known legitimate events by each report, shape (n, 2).

        1 reported, -1 withdrawn, 0 no change: the report is repeated, too old, or takes back what was not reported.

        Args:
            ids: hashes from `hash_ids`, shape (n, 2); the other arrays (n,), in the one order.
        """
        changes = np.zeros((len(ids), 2), np.int8)
        self._enter(_report, ids, (clock_ms, time_ms, label, self.both), changes)
        return changes


@compiled
def _report(start, ids, clock_ms, time_ms, label, both, found, changes, table, entries, first, used, memory_ms, most):
    """Process labels from `start` until the segment is full. Returns (next label, entries used)."""
    for i in range(start, ids.shape[0]):
        if clock_ms[i] - time_ms[i] > memory_ms:
            continue
        low, high = ids[i, 0], ids[i, 1]
        place = place_of(table, entries, low, high)
        row = row_of(table, table[place])
        known = newest(row, i, found, entries, first, clock_ms[i], first + used, memory_ms, most)
        is_known = known >= 0 and clock_ms[i] - known // 2 <= memory_ms
        was_fraud = is_known and known % 2 == 1
        was_legit = not was_fraud and (is_known or not both)
        is_fraud = label[i] == 1
        if was_fraud if is_fraud else was_legit:
            continue
        if used == entries.shape[0]:
            return i, used
        append(table, place, entries, used, low, high, clock_ms[i], 2 * time_ms[i] + label[i])
        used += 1
        changes[i, 0] = int(is_fraud) - int(was_fraud)
        if both:
            changes[i, 1] = int(not is_fraud) - int(was_legit)
    return ids.shape[0], used
