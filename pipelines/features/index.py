"""The hash table from an entity's key to its row. A cell has slot + 1 in its lower bits, bits of the key above.

A lookup compares these bits, then the key in the row. The table has a power of two of cells, at least two for each row.
"""

# mypy: disable-error-code="no-untyped-def"
# The compiled functions are typed by numba, from their first call.

import numpy as np

from pipelines.features.compiling import compiled
from pipelines.features.layout import KEY

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_ZERO, _ONE, _HALF = np.uint64(0), np.uint64(1), np.uint64(32)
_int = np.int64


@compiled
def place_of(table, key, words, stride):
    """Position of `key` in the table, or the free position where it would be inserted."""
    last = np.uint64(table.shape[0] - 1)
    mixed = key * _MULTIPLIER
    place = (mixed >> np.uint64(20)) & last
    while True:
        held = np.uint64(table[place])
        if held == _ZERO:
            return place
        if held ^ (mixed >> _HALF) & ~last <= last and words[_int((held & last) - _ONE) * stride + KEY] == key:
            return place
        place = (place + _ONE) & last


@compiled
def likely_slot(table, key):
    """The slot that `key` has unless its bits deceive; -1 if it has none. Reads no row."""
    last = np.uint64(table.shape[0] - 1)
    mixed = key * _MULTIPLIER
    place = (mixed >> np.uint64(20)) & last
    while True:
        held = np.uint64(table[place])
        if held == _ZERO or held ^ (mixed >> _HALF) & ~last <= last:
            return _int(held & last) - 1
        place = (place + _ONE) & last


@compiled
def slot_at(table, place):
    """The slot at a position of the table; -1 if it is free."""
    return _int(np.uint64(table[place]) & np.uint64(table.shape[0] - 1)) - 1


@compiled
def insert(table, place, key, slot):
    """Insert a key at its free position."""
    last = np.uint64(table.shape[0] - 1)
    table[place] = np.uint32(((key * _MULTIPLIER) >> _HALF) & ~last | np.uint64(slot + 1))


@compiled
def fill(table, words, stride, used):
    """Insert all rows into an empty table."""
    for slot in range(used):
        key = words[slot * stride + KEY]
        insert(table, place_of(table, key, words, stride), key, slot)
