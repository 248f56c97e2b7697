"""A log of hashed event ids, bounded in time and number: the base of `duplicates` and `reports`.

Each log is a sequence of entries (id, clock, value) in the one order. An entry is valid while it is not older than the
memory's duration and at most `most` entries follow it. This depends only on the sequence, not on how it is divided into
batches or when snapshots are taken. An entry takes 40 bytes, including its share of the hash tables. The log is stored
in segments of about one eighth of the valid entries; a segment without valid entries is dropped. Entries are never
changed, so a snapshot does not copy them, and no hash table grows.

Ids are 128-bit keyed hashes. The key is random for each state, so nobody can construct a collision. The probability of
an accidental collision among n ids is about n^2 / 2^129: 1.5e-25 for ten million.
"""

# mypy: disable-error-code="no-untyped-def"
# The compiled functions are typed by numba, from their first call.

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.features.compiling import compiled
from pipelines.features.pieces import Pieces

ID_KEY_BYTES = 16
SMALLEST, _LARGEST = 1 << 12, 1 << 24  # entries in a segment
_ZERO, _ONE, _LOW_HALF = np.uint64(0), np.uint64(1), np.uint64(0xFFFFFFFF)
_int = np.int64


_SEGMENTS = 8  # minimum number of full-size segments that hold the valid entries


_NEVER = -(2**62)


MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def hash_ids(ids: Iterable[str], key: bytes) -> NDArray[np.uint64]:
    """128-bit BLAKE2b of event ids under a key of up to 64 bytes, shape (n, 2).

    >>> hash_ids(["a", "b", "a"], b"secret")[:, 0].tolist().count(hash_ids(["a"], b"secret")[0, 0])
    2
    """
    start = hashlib.blake2b(digest_size=16, key=key)
    digests = []
    for text in ids:
        one = start.copy()
        one.update(text.encode())
        digests.append(one.digest())
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)


class _Segment:
    """A part of the log with its hash table. A table cell has row + 1 in its lower `held` bits, bits of the id above.

    Shapes: `entries` (capacity, 4): id, id, clock, value; `table` (2 * capacity,), capacity a power of two.
    """

    def __init__(self, first: int, capacity: int) -> None:
        self.first, self.used = first, 0
        self.entries = np.empty((capacity, 4), np.uint64)
        self.table = np.zeros(2 * capacity, np.uint32)

    @property
    def end(self) -> int:
        return self.first + self.used

    @property
    def clock_ms(self) -> NDArray[np.int64]:
        return self.entries[: self.used, 2].view(np.int64)

    @property
    def nbytes(self) -> int:
        return self.entries.nbytes + self.table.nbytes


class IdLog:
    """A log of ids, bounded in time and number. The newest entry of an id is the valid one.

    Args:
        memory_ms: how long an entry is valid, in ms of the clock.
        most: maximum number of valid entries.
        smallest: number of entries in the first segments, a power of two.
    """

    def __init__(self, memory_ms: int, most: int, *, smallest: int = SMALLEST) -> None:
        self.memory_ms, self.most = memory_ms, most
        self.n_evicted = 0  # entries dropped before their time because there were too many
        self._smallest = smallest
        self._segments = [_Segment(0, smallest)]

    @property
    def nbytes(self) -> int:
        """Allocated memory in bytes."""
        return sum(segment.nbytes for segment in self._segments)

    def n_held(self, clock_ms: int) -> int:
        """Number of entries that are valid at a time."""
        return self._segments[-1].end - self._oldest(clock_ms)

    def span(self, clock_ms: int) -> tuple[int, int]:
        """Number of the oldest entry that is valid at a time, and that of the next new one."""
        return self._oldest(clock_ms), self._segments[-1].end

    def snapshot(self, clock_ms: int, *, since: int = 0) -> Pieces:
        """Entries from a number on that are valid at a time, oldest first, shape (n, 4). They are not copied."""
        oldest = max(self._oldest(clock_ms), since)
        parts = [s.entries[max(oldest - s.first, 0) : s.used] for s in self._segments if s.end > oldest]
        return Pieces.of(*parts or [np.empty((0, 4), np.uint64)])

    def restore(self, entries: Pieces) -> None:
        """Load the entries of a snapshot into an empty log."""
        n, done = entries.shape[0], 0
        while done < n:
            segment = _Segment(done, self._capacity(n))
            segment.used = min(n - done, len(segment.entries))
            entries.into(segment.entries[: segment.used], done)
            _index(segment.table, segment.entries, segment.used)
            self._segments.append(segment)
            done = segment.end
        if n:
            del self._segments[0]

    def _oldest(self, clock_ms: int) -> int:
        """Number of the oldest valid entry."""
        from_ms, most = clock_ms - self.memory_ms, self._segments[-1].end - self.most
        for segment in self._segments:
            if segment.used and segment.clock_ms[-1] >= from_ms:
                return max(segment.first + int(np.searchsorted(segment.clock_ms, from_ms)), most)
        return self._segments[-1].end

    def _enter(
        self, step: Callable[..., tuple[int, int]], ids: NDArray[np.uint64], columns: tuple[Any, ...], out: Any
    ) -> None:
        """Call a compiled `step` that adds ids and writes `out`, again for each new segment when one is full."""
        segment, found, done = self._segments[-1], self._look_up(ids), 0
        before = segment.end
        while True:
            done, segment.used = step(
                done, ids, *columns, found, out, segment.table, segment.entries,
                segment.first, segment.used, self.memory_ms, self.most,
            )  # fmt: skip
            if done == len(ids):
                break
            segment = self._grow(ids, found)
        self._added(before)

    def _look_up(self, ids: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Number, clock and value of the newest entry of each id in all segments but the last, shape (n, 3)."""
        found = np.full((len(ids), 3), _NEVER, np.int64)
        for segment in self._segments[:-1]:
            _find(segment.table, segment.entries, segment.first, ids, found)
        return found

    def _grow(self, ids: NDArray[np.uint64], found: NDArray[np.int64]) -> _Segment:
        """Add a segment, and update `found` with the entries of `ids` in the segment before it."""
        full = self._segments[-1]
        _find(full.table, full.entries, full.first, ids, found)
        held = min(full.end - self._segments[0].first, self.most)
        self._segments.append(_Segment(full.end, self._capacity(held)))
        return self._segments[-1]

    def _added(self, n_before: int) -> None:
        """Count the entries dropped early since number `n_before`, and drop segments without valid entries."""
        last = self._segments[-1]
        first, pushed = max(n_before - self.most, self._segments[0].first), last.end - self.most
        if first < pushed:
            age_ms = self._clocks(first + self.most, pushed + self.most) - self._clocks(first, pushed)
            self.n_evicted += int(np.count_nonzero(age_ms <= self.memory_ms))
        if last.used:
            from_ms = int(last.clock_ms[-1]) - self.memory_ms
            gone = [s for s in self._segments[:-1] if s.end <= pushed or s.clock_ms[-1] < from_ms]
            self._segments = self._segments[len(gone) :]

    def _clocks(self, first: int, end: int) -> NDArray[np.int64]:
        """Clocks of the entries with these numbers."""
        return np.concatenate(
            [
                s.clock_ms[max(first - s.first, 0) : max(end - s.first, 0)]
                for s in self._segments
                if s.first < end and s.end > first
            ]
        )

    def _capacity(self, held: int) -> int:
        """Size of a new segment if this many entries are valid."""
        return min(max(self._smallest, 1 << (held // _SEGMENTS).bit_length()), _LARGEST)


@compiled
def place_of(table, entries, low, high):
    """Position of an id in the table, or the free position where it would be inserted."""
    size = np.uint64(table.shape[0])
    last = size - _ONE
    mark = (high * size) & _LOW_HALF
    place = low & last
    while True:
        held = np.uint64(table[place])
        if held == _ZERO:
            return place
        if held ^ mark <= last:
            row = _int(held & last) - 1
            if entries[row, 0] == low and entries[row, 1] == high:
                return place
        place = (place + _ONE) & last


@compiled
def row_of(table, held):
    """Row of the entry in a table cell; -1 if the cell is free."""
    return _int(np.uint64(held) & np.uint64(table.shape[0] - 1)) - 1


@compiled
def _set(table, place, high, row):
    table[place] = np.uint32(((high * np.uint64(table.shape[0])) & _LOW_HALF) | np.uint64(row + 1))


@compiled
def _index(table, entries, used):
    """Fill an empty table; of several entries with the same id, the last one is found."""
    for row in range(used):
        place = place_of(table, entries, entries[row, 0], entries[row, 1])
        _set(table, place, entries[row, 1], row)


@compiled
def _find(table, entries, first, ids, found):
    """Write the newest entries of `ids` in a segment to `found`."""
    for i in range(ids.shape[0]):
        row = row_of(table, table[place_of(table, entries, ids[i, 0], ids[i, 1])])
        if row >= 0:
            found[i, 0] = first + row
            found[i, 1] = _int(entries[row, 2])
            found[i, 2] = _int(entries[row, 3])


@compiled
def newest(row, i, found, entries, first, clock_ms, end, memory_ms, most):
    """Value of the newest entry of an id; -1 if none is valid. `row` is its row in the last segment."""
    number, at_ms, value = found[i, 0], found[i, 1], found[i, 2]
    if row >= 0:
        number, at_ms, value = first + row, _int(entries[row, 2]), _int(entries[row, 3])
    return value if number >= end - most and clock_ms - at_ms <= memory_ms else -1


@compiled
def append(table, place, entries, used, low, high, clock_ms, value):
    entries[used, 0] = low
    entries[used, 1] = high
    entries[used, 2] = np.uint64(clock_ms)
    entries[used, 3] = np.uint64(value)
    _set(table, place, high, used)
