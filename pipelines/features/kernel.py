"""The compiled fold: updates the state of one entity column, one item at a time. See `layout`, `facts` and `panes`."""

# mypy: disable-error-code="no-untyped-def"
# The compiled functions are typed by numba, from their first call.

import numpy as np

from pipelines.features.blocks import GRANULE, TOP, cut, shrink, start_of, used_of
from pipelines.features.compiling import compiled, prefetch
from pipelines.features.facts import habits, label_history, last_events, learn, lifetimes, tallies, tally_words
from pipelines.features.index import insert, likely_slot, place_of, slot_at
from pipelines.features.layout import BLOCK, CLOCK, DORMANT, KEY, NEWEST, SINCE
from pipelines.features.panes import label_window, pane_words, report, window

ROWS, AWAKE = range(2)  # in `held`: rows in use, those of entities that are not dormant
AHEAD, SOON = 6, 3  # how many items ahead a row and a block are prefetched
AHEAD_WORDS = 1024  # of each, at most

_int = np.int64
_ZERO = np.uint64(0)


@compiled
def _fetch(i, column, batch, table, memory, cells, layout):
    """Prefetch the row of the item `AHEAD`, and the block of the one `SOON`."""
    n_items = batch.is_event.shape[0]
    if i + AHEAD < n_items and batch.entities[i + AHEAD, column] != _ZERO:
        there = likely_slot(table, batch.entities[i + AHEAD, column]) * layout.stride
        if there >= 0:
            for word in range(there, there + min(layout.stride, AHEAD_WORDS), 8):
                prefetch(memory.words, word)
    if i + SOON < n_items and batch.entities[i + SOON, column] != _ZERO:
        at = likely_slot(table, batch.entities[i + SOON, column]) * layout.stride
        if at >= 0:
            start = start_of(at, memory)
            for word in range(start, start + min(used_of(at, memory), AHEAD_WORDS), 8):
                prefetch(cells.words, word)


@compiled
def _begin(time_ms, at, is_known, memory, layout):
    """Reset the windows of a row, or all of it unless its lifetime facts are still valid."""
    first = at + layout.lifetime_words
    if is_known:
        cut(at, tally_words(at, memory, layout), memory)
    else:
        cut(at, 0, memory)
        for word in range(at, first):
            if word != at + KEY and word != at + BLOCK:
                memory.words[word] = _ZERO
        memory.ints[at + NEWEST] = time_ms
    memory.words[first : at + layout.stride] = _ZERO
    memory.ints[at + SINCE] = time_ms


@compiled
def fold(start, row, column, batch, table, held, touched, memory, cells, layout, counters, out):
    """Fold items from `start` on for one entity column; `row` is the row of `out` for the next event.

    `touched` notes the rows that change.

    Stops early if no row or too few words for blocks may be free. Returns (next item, next row).
    """
    ints = memory.ints
    n_rows = memory.words.shape[0] // layout.stride
    for i in range(start, batch.is_event.shape[0]):
        _fetch(i, column, batch, table, memory, cells, layout)
        event = batch.is_event[i]
        key = batch.entities[i, column]
        if key == _ZERO:
            row += event
            continue
        if held[ROWS] == n_rows or cells.heap[TOP] * GRANULE + layout.spare_words > cells.words.shape[0]:
            return i, row
        place = place_of(table, key, memory.words, layout.stride)
        slot = slot_at(table, place)
        at = slot * layout.stride
        known = slot >= 0 and batch.clock_ms[i] - ints[at + CLOCK] <= layout.idle_ms
        remembered = slot >= 0 and batch.clock_ms[i] - ints[at + CLOCK] <= layout.lifetime_ms
        if not event:
            if batch.delta[i] != 0 or batch.legit[i] != 0:
                section = tally_words(at, memory, layout) + pane_words(at, memory, layout) if known else _int(0)
                report(i, at, section, known, batch, memory, cells, layout, counters)
            if remembered:
                learn(i, at, batch, memory, layout)
                touched[slot] = True
            continue
        if not known:
            if slot < 0:
                slot = held[ROWS]
                held[ROWS] += 1
                at = slot * layout.stride
                memory.words[at + KEY] = key
                memory.words[at + BLOCK] = _ZERO
                ints[at + SINCE] = DORMANT
                insert(table, place, key, slot)
            if ints[at + SINCE] == DORMANT:
                held[AWAKE] += 1
            _begin(batch.time_ms[i], at, remembered, memory, layout)
        touched[slot] = True
        last_events(i, at, row, batch, memory, layout, out)
        lifetimes(i, at, row, batch, memory, layout, out)
        section = tally_words(at, memory, layout)
        for w in range(layout.windows.shape[0]):
            section = window(i, at, section, row, w, batch, memory, cells, layout, counters, out)
        for w in range(layout.label_windows.shape[0]):
            section = label_window(i, at, section, row, w, batch, memory, cells, layout, counters, out)
        ints[at + SINCE] = max(ints[at + SINCE], batch.time_ms[i])
        habits(i, at, row, batch, memory, layout, out)
        tallies(i, at, row, batch, memory, cells, layout, out)
        label_history(i, at, row, batch, memory, layout, out)
        shrink(at, memory, cells)
        row += 1
    return batch.is_event.shape[0], row
