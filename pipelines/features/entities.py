"""The state of one entity column: rows, blocks, and the hash table from key to row."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipelines.features import kernel, packing
from pipelines.features.blocks import BASE, BOUND, FREE, GRANULE, LISTS, MOST_GRANULES, TOP, sizes_up_to
from pipelines.features.buffer import Buffer
from pipelines.features.index import fill
from pipelines.features.layout import BLOCK, Cells, FoldInput, Layout, Memory, WindowCounters
from pipelines.features.pieces import Pieces

_FIRST_SLOTS = 64
_CHUNK = 1 << 16  # rows restored at a time
_MOVED = 2_048  # blocks moved together after each batch; about a millisecond
_SMALL = 1 << 16  # free words that are not worth moving blocks


class EntityRows:
    """The rows of one entity column."""

    SAVED = ("rows", "blocks", *WindowCounters._fields)

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        n, n_label = len(layout.windows), len(layout.label_windows)
        self.counters = WindowCounters(*(np.zeros(size, np.int64) for size in (n, n_label, n_label)))
        self._sizes = sizes_up_to(layout.block_words)
        self._empty()

    def _empty(self) -> None:
        self._held = np.zeros(2, np.int64)
        self._heap = np.zeros(LISTS + len(self._sizes), np.int64)
        self._heap[[BASE, TOP, BOUND]] = 1
        self._rows, self._blocks = Buffer(0), Buffer(0)
        self._view()
        self._table = np.zeros(0, np.uint32)
        self.touched = np.zeros(0, np.bool_)  # rows that changed since the last whole copy began
        self._moved = 0  # rows whose blocks have been moved above the bound
        self._make_room(_FIRST_SLOTS, 0)

    @property
    def used(self) -> int:
        """Number of entities with a row."""
        return int(self._held[kernel.ROWS])

    @property
    def awake(self) -> int:
        """Number of entities with windows, as of the last sweep."""
        return int(self._held[kernel.AWAKE])

    @property
    def sizes(self) -> dict[str, int]:
        """Memory in use in bytes, per table; `free` is the part of the blocks that no entity uses."""
        in_use = self.memory.words[: self.used * self.layout.stride].reshape(-1, self.layout.stride)[:, BLOCK]
        n_words = int(self._sizes[(in_use >> np.uint64(32)) & np.uint64(255)].sum())
        return {
            "rows": 8 * self.used * self.layout.stride,
            "blocks": 8 * n_words,
            "free": 8 * (self._block_words - n_words),
            "index": self._table.nbytes,
        }

    @property
    def nbytes(self) -> int:
        """Memory in use in bytes."""
        return 8 * (self.used * self.layout.stride + self._block_words) + self._table.nbytes

    @property
    def _block_words(self) -> int:
        """Words of all blocks, in use or free."""
        return int(self._heap[TOP] - self._heap[BASE]) * GRANULE

    def fold(self, number: int, batch: FoldInput, out: NDArray[np.float64]) -> None:
        """Fold the items of a batch; `number` is this column's among the entity columns."""
        if not any(map(len, (self.layout.outputs, self.layout.distincts, self.layout.tallies, self.layout.lasts))):
            return  # no feature is about this entity
        done = row = 0
        while True:
            done, row = kernel.fold(
                done,
                row,
                number,
                batch,
                self._table,
                self._held,
                self.touched,
                self.memory,
                self.cells,
                self.layout,
                self.counters,
                out,
            )
            if done == len(batch.is_event):
                break
            is_full = self.used == len(self.memory.words) // self.layout.stride
            self._make_room(self.used * 3 // 2 if is_full else 0, int(self._heap[TOP]) * GRANULE * 3 // 2)

        self._close_gaps()

    def _close_gaps(self) -> None:
        """Where a quarter of the blocks is free, move some to the end of the words; then give back those before."""
        heap = self._heap
        if heap[BOUND] == heap[BASE]:
            if heap[FREE] < _SMALL or 4 * heap[FREE] < self._block_words:
                return
            if heap[TOP] > MOST_GRANULES // 2:  # after hundreds of rounds: from the beginning again
                copied = self.packed(np.arange(self.used), -(2**62)) | self.counted()
                arrays = {name: Pieces.of(array) for name, array in copied.items()}
                touched = self.touched[: self.used]
                self._empty()
                self.restore(arrays)
                self.touched[: self.used] = touched
                return
            heap[BOUND], heap[FREE], self._moved = heap[TOP], 0, 0
            heap[LISTS:] = 0
        first, self._moved = self._moved, min(self._moved + _MOVED, self.used)
        self._make_room(0, int(heap[TOP]) * GRANULE + _MOVED * int(self._sizes[-1]))
        packing.move_some_up(first, self._moved, self.memory, self.cells, self.layout)
        if self._moved == self.used:
            self._blocks.give_back(int(heap[BASE]) * GRANULE, int(heap[BOUND]) * GRANULE)
            heap[BASE] = heap[BOUND]

    def sweep(self, clock_ms: int) -> int:
        """Drop the windows of idle entities as of a time, and entities that are forgotten."""
        before = self.awake
        if packing.sweep(clock_ms, self._held, self.touched, self.memory, self.cells, self.layout):
            self._index()
        return before - self.awake

    def counted(self) -> dict[str, NDArray[np.int64]]:
        """A copy of the counters."""
        return {name: array.copy() for name, array in zip(WindowCounters._fields, self.counters, strict=True)}

    def packed(self, slots: NDArray[np.int64], clock_ms: int) -> dict[str, NDArray[np.uint64]]:
        """A copy of some rows and their blocks as of a time, flat."""
        lengths = np.empty(len(slots), np.int64)
        packing.measure(slots, clock_ms, self.memory, self.layout, lengths)
        kept = lengths != packing.GONE
        rows = np.empty(int(kept.sum()) * self.layout.stride, np.uint64)
        blocks = np.empty(int(lengths[kept].sum()), np.uint64)
        packing.pack(slots, clock_ms, self.memory, self.cells, self.layout, lengths, rows, blocks)
        return {"rows": rows, "blocks": blocks}

    def find_waiting(self, keys: NDArray[np.uint64], waiting: NDArray[np.bool_], slots: NDArray[np.int64]) -> int:
        """Write the slots of those `keys` that are waiting, which they then are no longer; returns how many."""
        found = packing.find_waiting(keys, self._table, self.memory.words, self.layout.stride, waiting, slots)
        return int(found)

    def restore(self, arrays: Mapping[str, Pieces]) -> None:
        """Load a copy into an empty column."""
        rows, blocks, stride = arrays["rows"], arrays["blocks"], self.layout.stride
        n = rows.shape[0] // stride
        self._make_room(n, 0)
        rows.into(self.memory.words[: n * stride])
        used = self.memory.words[: n * stride].reshape(-1, stride)[:, BLOCK].astype(np.int64)
        self._make_room(n, GRANULE + int(self._sizes[np.searchsorted(self._sizes, used)].sum()))
        at = 0
        for first in range(0, n, _CHUNK):
            part = np.empty(int(used[first : first + _CHUNK].sum()), np.uint64)
            blocks.into(part, at)
            packing.unpack(first, min(first + _CHUNK, n), part, self.memory, self.cells, self.layout, self._held)
            at += len(part)
        self._index()
        self.counters = WindowCounters(*(arrays[name].whole() for name in WindowCounters._fields))

    def apply(self, arrays: Mapping[str, Pieces]) -> None:
        """Replace rows by those of a later copy of what changed."""
        rows, blocks = arrays["rows"].whole(), arrays["blocks"].whole()
        used = rows.reshape(-1, self.layout.stride)[:, BLOCK].astype(np.int64)
        n_words = int(self._sizes[np.searchsorted(self._sizes, used)].sum())
        self._make_room(self.used + len(used), int(self._heap[TOP]) * GRANULE + n_words)
        packing.merge(rows, blocks, self._table, self._held, self.memory, self.cells, self.layout)
        self.counters = WindowCounters(*(arrays[name].whole() for name in WindowCounters._fields))

    def _make_room(self, n_rows: int, n_words: int) -> None:
        """Make room for rows and for words of blocks, and for what one item may need besides."""
        if n_words // GRANULE + self.layout.spare_words > MOST_GRANULES:
            raise MemoryError("the windows of one entity column are larger than 128 GiB; split the stream by key")
        del self.memory, self.cells  # no array may refer to the buffers while they grow
        self._rows.grow(n_rows * self.layout.stride + self.layout.stride * _FIRST_SLOTS)
        self._blocks.grow(n_words + 4 * self.layout.spare_words)
        self._view()
        more = len(self.memory.words) // self.layout.stride - len(self.touched)
        self.touched = np.append(self.touched, np.zeros(more, np.bool_)) if more else self.touched
        if 2 * len(self.memory.words) // self.layout.stride > len(self._table):
            self._index()

    def _view(self) -> None:
        stride = self.layout.stride
        self.memory = Memory.of(self._rows.words[: len(self._rows.words) // stride * stride])
        views = Memory.of(self._blocks.words)
        self.cells = Cells(views.words, views.floats, views.counts, views.shorts, self._heap, self._sizes)

    def _index(self) -> None:
        """Build the hash table."""
        n_rows = len(self.memory.words) // self.layout.stride
        self._table = np.zeros(1 << (2 * n_rows - 1).bit_length(), np.uint32)
        fill(self._table, self.memory.words, self.layout.stride, self.used)
