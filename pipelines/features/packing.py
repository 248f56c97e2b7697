"""The rows and blocks of one entity column as a snapshot has them, and the sweep of idle entities."""

# mypy: disable-error-code="no-untyped-def"
# The compiled functions are typed by numba, from their first call.

import numpy as np

from pipelines.features.blocks import GRANULE, cut, move_up, refer, replace, shrink, start_of, take, used_of
from pipelines.features.compiling import compiled, move
from pipelines.features.facts import tally_words
from pipelines.features.index import insert, place_of, slot_at
from pipelines.features.kernel import AWAKE, ROWS
from pipelines.features.layout import BLOCK, CLOCK, DORMANT, KEY, SINCE

GONE = -1
_int = np.int64
_ZERO = np.uint64(0)


@compiled
def _is_idle(at, clock_ms, memory, layout):
    """Whether the windows of a row have ended; only lifetime facts are left."""
    return clock_ms - memory.ints[at + CLOCK] > layout.idle_ms


@compiled
def _fall_asleep(at, memory, cells, layout):
    """Drop the windows of a row."""
    cut(at, tally_words(at, memory, layout), memory)
    shrink(at, memory, cells)
    memory.words[at + layout.lifetime_words : at + layout.stride] = _ZERO
    memory.ints[at + SINCE] = DORMANT


@compiled
def sweep(clock_ms, held, touched, memory, cells, layout):
    """Drop the windows of idle entities, and rows older than the lifetime; returns how many rows were removed."""
    before, slot = held[ROWS], _int(0)
    while slot < held[ROWS]:
        at = slot * layout.stride
        if not _is_idle(at, clock_ms, memory, layout):
            slot += 1
            continue
        if memory.ints[at + SINCE] != DORMANT:
            held[AWAKE] -= 1
            _fall_asleep(at, memory, cells, layout)
        if clock_ms - memory.ints[at + CLOCK] <= layout.lifetime_ms:
            slot += 1
            continue
        cut(at, 0, memory)
        shrink(at, memory, cells)
        held[ROWS] -= 1
        if slot != held[ROWS]:
            move(memory.words, at, held[ROWS] * layout.stride, layout.stride)
            move_up(at, memory, cells)
            touched[slot] = touched[held[ROWS]]
    return before - held[ROWS]


@compiled
def move_some_up(first, last, memory, cells, layout):
    """Move the blocks of the rows from `first` to `last` above the bound."""
    for slot in range(first, last):
        move_up(slot * layout.stride, memory, cells)


@compiled
def find_waiting(keys, table, words, stride, waiting, slots):
    """Write the slots of those `keys` that are waiting, which they then are no longer; returns how many."""
    n = 0
    for i in range(keys.shape[0]):
        if keys[i] == _ZERO:
            continue
        slot = slot_at(table, place_of(table, keys[i], words, stride))
        if 0 <= slot < waiting.shape[0] and waiting[slot]:
            waiting[slot] = False
            slots[n] = slot
            n += 1
    return n


@compiled
def measure(slots, clock_ms, memory, layout, lengths):
    """Words of the block that a snapshot has of each row; `GONE` for a row that it leaves out."""
    for n in range(slots.shape[0]):
        at = slots[n] * layout.stride
        if not _is_idle(at, clock_ms, memory, layout):
            lengths[n] = used_of(at, memory)
        elif clock_ms - memory.ints[at + CLOCK] <= layout.lifetime_ms:
            lengths[n] = tally_words(at, memory, layout)
        else:
            lengths[n] = GONE


@compiled
def pack(slots, clock_ms, memory, cells, layout, lengths, rows, blocks):
    """Copy rows and blocks as they are in a snapshot, without what idle entities no longer need.

    The word that refers to a row's block has only the number of its words.
    """
    to, done = _int(0), _int(0)
    for n in range(slots.shape[0]):
        if lengths[n] == GONE:
            continue
        at = slots[n] * layout.stride
        kept = layout.lifetime_words if _is_idle(at, clock_ms, memory, layout) else layout.stride
        for word in range(kept):
            rows[to + word] = memory.words[at + word]
        for word in range(kept, layout.stride):
            rows[to + word] = _ZERO
        if kept != layout.stride:
            rows[to + SINCE] = np.uint64(_int(DORMANT))
        rows[to + BLOCK] = np.uint64(lengths[n])
        start = start_of(at, memory)
        for word in range(lengths[n]):
            blocks[done + word] = cells.words[start + word]
        to += layout.stride
        done += lengths[n]


@compiled
def unpack(first, last, blocks, memory, cells, layout, held):
    """Give each row from `first` to `last` a block again, with the words that `pack` left of it."""
    done = _int(0)
    for slot in range(first, last):
        at = slot * layout.stride
        used = _int(memory.words[at + BLOCK])
        size = _int(0)
        while cells.sizes[size] < used:
            size += 1
        granule = take(size, cells) if size else _int(0)
        refer(at, granule, used, size, memory)
        for word in range(used):
            cells.words[granule * GRANULE + word] = blocks[done + word]
        done += used
        held[AWAKE] += memory.ints[at + SINCE] != DORMANT
        held[ROWS] += 1


@compiled
def merge(rows, blocks, table, held, memory, cells, layout):
    """Replace rows by those that `pack` wrote later, and add those that are new."""
    done = _int(0)
    for first in range(0, rows.shape[0], layout.stride):
        key = rows[first + KEY]
        place = place_of(table, key, memory.words, layout.stride)
        slot = slot_at(table, place)
        if slot < 0:
            slot = held[ROWS]
            held[ROWS] += 1
            memory.words[slot * layout.stride + KEY] = key
            memory.words[slot * layout.stride + BLOCK] = _ZERO
            memory.ints[slot * layout.stride + SINCE] = DORMANT
            insert(table, place, key, slot)
        at = slot * layout.stride
        held[AWAKE] -= memory.ints[at + SINCE] != DORMANT
        block, used = memory.words[at + BLOCK], _int(rows[first + BLOCK])
        for word in range(layout.stride):
            memory.words[at + word] = rows[first + word]
        memory.words[at + BLOCK] = block
        held[AWAKE] += memory.ints[at + SINCE] != DORMANT
        cut(at, 0, memory)
        start = replace(at, 0, 0, 0, used, memory, cells)
        for word in range(used):
            cells.words[start + word] = blocks[done + word]
        done += used
