"""Blocks of 64-bit words, one for each entity: they hold only the panes and counters that an entity has.

A block lies anywhere in one array, in one of the sizes of `sizes_up_to`; freed blocks of a size form a list, in which
the first word of a block names the next. The row of an entity refers to its block: first granule (lower half of the
word), words used (24 bits) and class of its size (8 bits). Blocks begin at whole granules; granule 0 is not used.

What a block holds is described by *masks* in the row: one bit for each pane that it may have, set if it has it; cells
are in the order of the bits. So a cell's position is the number of set bits below its own.
"""

# mypy: disable-error-code="no-untyped-def"
# The compiled functions are typed by numba, from their first call.

import numpy as np
from numpy.typing import NDArray

from pipelines.features.compiling import compiled, move, set_bits
from pipelines.features.layout import BLOCK

GRANULE = 4  # words
MOST_GRANULES = 2**32 - 1
# The heap: the first granule of all, the first that was never used, words in freed blocks, the bound below which blocks
# are being moved away; then for each class its first free block, or 0.
BASE, TOP, FREE, BOUND, LISTS = range(5)
_ZERO, _ONE, _ALL = np.uint64(0), np.uint64(1), np.uint64(0xFFFFFFFFFFFFFFFF)
_int = np.int64


def sizes_up_to(words: int) -> NDArray[np.int64]:
    """Sizes of blocks in words, by class: nothing, multiples of a granule, then four sizes for each doubling.

    >>> sizes_up_to(50).tolist()
    [0, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56]
    """
    sizes, step = [0], GRANULE
    while sizes[-1] < words:
        sizes.append(sizes[-1] + step)
        if sizes[-1] == 8 * step:
            step *= 2
    return np.array(sizes, np.int64)


@compiled
def start_of(at, memory):
    """First word of the block of the row at `at`."""
    return _int(memory.counts[2 * (at + BLOCK)]) * GRANULE


@compiled
def used_of(at, memory):
    """Number of used words in the block of the row at `at`."""
    return _int(memory.counts[2 * (at + BLOCK) + 1] >> np.uint32(8))


@compiled
def _class_of(at, memory):
    return _int(memory.counts[2 * (at + BLOCK) + 1] & np.uint32(255))


@compiled
def refer(at, granule, used, size, memory):
    memory.counts[2 * (at + BLOCK)] = np.uint32(granule)
    memory.counts[2 * (at + BLOCK) + 1] = np.uint32((used << 8) | size)


@compiled
def take(size, cells):
    """A block of a class; returns its first granule."""
    granule = cells.heap[LISTS + size]
    if granule:
        cells.heap[LISTS + size] = _int(cells.words[granule * GRANULE])
        cells.heap[FREE] -= cells.sizes[size]
    else:
        granule = cells.heap[TOP]
        cells.heap[TOP] += cells.sizes[size] // GRANULE
    return granule


@compiled
def refit(at, size, memory, cells):
    """Move the block of a row to one of class `size`, 0 for none."""
    start, used, before = start_of(at, memory), used_of(at, memory), _class_of(at, memory)
    granule = take(size, cells) if size else _int(0)
    if used:
        move(cells.words, granule * GRANULE, start, used)
    if before and start >= cells.heap[BOUND] * GRANULE:
        cells.words[start] = np.uint64(cells.heap[LISTS + before])
        cells.heap[LISTS + before] = start // GRANULE
        cells.heap[FREE] += cells.sizes[before]
    refer(at, granule, used, size, memory)


@compiled
def replace(at, first, dropped, kept, added, memory, cells):
    """Edit the block of a row: of the words from `first` on, drop some, and add zeros after the next `kept` words.

    Returns the first word of the block, which may have moved.
    """
    used = used_of(at, memory)
    size = _class_of(at, memory)
    if used - dropped + added > cells.sizes[size]:
        while used - dropped + added > cells.sizes[size]:
            size += 1
        refit(at, size, memory, cells)
    start = start_of(at, memory)
    here = start + first
    if dropped and kept:
        move(cells.words, here, here + dropped, kept)
    rest = used - first - dropped - kept
    if dropped != added and rest:
        move(cells.words, here + kept + added, here + kept + dropped, rest)
    for word in range(here + kept, here + kept + added):
        cells.words[word] = _ZERO
    refer(at, start // GRANULE, used - dropped + added, size, memory)
    return start


@compiled
def cut(at, used, memory):
    """Keep the first `used` words of the block of a row."""
    memory.counts[2 * (at + BLOCK) + 1] = np.uint32((used << 8) | _class_of(at, memory))


@compiled
def shrink(at, memory, cells):
    """Move a block that is less than half full to a smaller one."""
    used, size = used_of(at, memory), _class_of(at, memory)
    if 2 * used <= cells.sizes[size] and size:
        while size and cells.sizes[size - 1] >= used:
            size -= 1
        if size != _class_of(at, memory):
            refit(at, size, memory, cells)


@compiled
def move_up(at, memory, cells):
    """Move the block of a row above the bound, so that in the end no block is below."""
    if _class_of(at, memory) and start_of(at, memory) < cells.heap[BOUND] * GRANULE:
        refit(at, _class_of(at, memory), memory, cells)


@compiled
def set_below(words, mask, bit):
    """Number of set bits below `bit` in a mask of several words."""
    n = _int(0)
    for word in range(mask, mask + (bit >> 6)):
        n += set_bits(words[word])
    if bit & 63:
        n += set_bits(words[mask + (bit >> 6)] & (_ALL >> np.uint64(64 - (bit & 63))))
    return n


@compiled
def is_set(words, mask, bit):
    """Whether a bit of a mask of several words is set."""
    return (words[mask + (bit >> 6)] >> np.uint64(bit & 63)) & _ONE != _ZERO


@compiled
def set_bit(words, mask, bit):
    """Set a bit of a mask of several words."""
    words[mask + (bit >> 6)] |= _ONE << np.uint64(bit & 63)


@compiled
def shift_down(words, mask, n_words, by):
    """Move all bits of a mask down; returns how many set bits fell out."""
    n = _int(0)
    for word in range(n_words):
        n += set_bits(words[mask + word])
    whole, part = by >> 6, by & 63
    for word in range(n_words):
        low, high = _ZERO, _ZERO
        if word + whole < n_words:
            low = words[mask + word + whole]
        if word + whole + 1 < n_words:
            high = words[mask + word + whole + 1]
        words[mask + word] = low >> np.uint64(part) | (high << np.uint64(64 - part) if part else _ZERO)
        n -= set_bits(words[mask + word])
    return n
