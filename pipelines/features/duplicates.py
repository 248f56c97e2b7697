"""Detects duplicate events: remembers event ids, and the offset of the first event with each id. See `id_log`."""

# mypy: disable-error-code="no-untyped-def"
# The compiled functions are typed by numba, from their first call.

import numpy as np
from numpy.typing import NDArray

from pipelines.features.compiling import compiled
from pipelines.features.id_log import MULTIPLIER, IdLog, append, newest, place_of, row_of


class Duplicates(IdLog):
    """Ids of the events seen, with the offset of the first event of each id.

    An id is looked up within its partition. The limits of number and time apply to all partitions together.

    Example:
        >>> from pipelines.features.id_log import hash_ids
        >>> memory, ids = Duplicates(memory_ms=100, most=1000), hash_ids(["a", "b", "a"], b"")
        >>> memory.first_offsets(ids, np.zeros(3, np.int32), np.array([5, 6, 7]), np.array([5, 6, 7])).tolist()
        [-1, -1, 5]
    """

    def first_offsets(
        self,
        ids: NDArray[np.uint64],
        partition: NDArray[np.int32],
        offset: NDArray[np.int64],
        clock_ms: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Offset of the original of each event; -1 if its id is new. New ids are added.

        Args:
            ids: hashes from `hash_ids`, shape (n, 2); the other arrays (n,), in the one order.
        """
        ids = ids.copy()
        ids[:, 0] ^= (partition + 1).astype(np.uint64) * MULTIPLIER
        originals = np.full(len(ids), -1, np.int64)
        self._enter(_admit, ids, (clock_ms, offset), originals)
        return originals


@compiled
def _admit(start, ids, clock_ms, offset, found, originals, table, entries, first, used, memory_ms, most):
    """Process events from `start` until the segment is full. Returns (next event, entries used)."""
    for i in range(start, ids.shape[0]):
        low, high = ids[i, 0], ids[i, 1]
        place = place_of(table, entries, low, high)
        row = row_of(table, table[place])
        original = newest(row, i, found, entries, first, clock_ms[i], first + used, memory_ms, most)
        if original >= 0:
            originals[i] = original
            continue
        if used == entries.shape[0]:
            return i, used
        append(table, place, entries, used, low, high, clock_ms[i], offset[i])
        used += 1
    return ids.shape[0], used
