"""Remembers which events are reported, and as what. See `id_log`.

The report of the strongest source is valid, among equals the latest: `pipelines.lake.labels` has the same rule for
tables. Where only frauds are reported, an event without a report is legitimate.
Where legitimate events are reported too, it is unknown.
"""

# mypy: disable-error-code="no-untyped-def"
# The compiled functions are typed by numba, from their first call.

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.contracts.stream import Labels
from pipelines.features.compiling import compiled
from pipelines.features.id_log import SMALLEST, IdLog, append, newest, place_of, row_of

_STRENGTH_AT = 48  # place of its bits in the value of an entry; twice the year 2200 in ms has 44 bits
_BELOW_STRENGTH = (1 << _STRENGTH_AT) - 1


def strengths_of(labels: Labels | None, sources: Sequence[str]) -> NDArray[np.int64]:
    """Rank of the source of each label, shape (n,): see `Labels.strengths`."""
    ranks = labels.strengths if labels else {}
    if not ranks:
        return np.zeros(len(sources), np.int64)
    return np.fromiter((ranks.get(source, 0) for source in sources), np.int64, len(sources))


class Reports(IdLog):
    """The valid report of each event. The value of an entry is 2 * event time + label, and above it the source's rank.

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
        strength: NDArray[np.int64],
    ) -> NDArray[np.int8]:
        """Change of the number of known frauds and of known legitimate events by each report, shape (n, 2).

        1 reported, -1 withdrawn, 0 no change: the report is repeated, too old, weaker than an earlier one, or takes
        back what was not reported.

        Args:
            ids: hashes from `hash_ids`, shape (n, 2); the other arrays (n,), in the one order.
        """
        changes = np.zeros((len(ids), 2), np.int8)
        self._enter(_report, ids, (clock_ms, time_ms, label, strength, self.both), changes)
        return changes


@compiled
def _report(
    start, ids, clock_ms, time_ms, label, strength, both, found, changes, table, entries, first, used, memory_ms, most
):
    """Process labels from `start` until the segment is full. Returns (next label, entries used)."""
    for i in range(start, ids.shape[0]):
        if clock_ms[i] - time_ms[i] > memory_ms:
            continue
        low, high = ids[i, 0], ids[i, 1]
        place = place_of(table, entries, low, high)
        row = row_of(table, table[place])
        known = newest(row, i, found, entries, first, clock_ms[i], first + used, memory_ms, most)
        told = known & _BELOW_STRENGTH
        is_known = known >= 0 and clock_ms[i] - told // 2 <= memory_ms
        rank = known >> _STRENGTH_AT if is_known else 0
        was_fraud = is_known and told % 2 == 1
        was_legit = not was_fraud and (is_known or not both)
        is_fraud = label[i] == 1
        is_same = was_fraud if is_fraud else was_legit
        if strength[i] < rank or (is_same and strength[i] == rank):
            continue
        if used == entries.shape[0]:
            return i, used
        append(
            table,
            place,
            entries,
            used,
            low,
            high,
            clock_ms[i],
            strength[i] << _STRENGTH_AT | (2 * time_ms[i] + label[i]),
        )
        used += 1
        changes[i, 0] = int(is_fraud) - int(was_fraud)
        if both:
            changes[i, 1] = int(not is_fraud) - int(was_legit)
    return ids.shape[0], used
