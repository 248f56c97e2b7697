"""Windows of panes: features of the panes that an entity has, then the event in its own pane.

A pane has 32-bit counts (all events, then for each number its values and those above the limit), then the other
accumulators. The pane of a label window is one word: events (lower half) and frauds.

The events of a label window are all that are old enough to have their labels. Where legitimate events are reported too,
they are those with a label, of any age, and without one a rate is missing.
"""

# mypy: disable-error-code="no-untyped-def"
# The compiled functions are typed by numba, from their first call.

import math

import numpy as np

from pipelines.features.blocks import is_set, replace, set_below, set_bit, shift_down, start_of
from pipelines.features.compiling import compiled, set_bits
from pipelines.features.facts import limit_of
from pipelines.features.layout import SINCE
from pipelines.features.stats import (
    ABOVE,
    FRAUD_COUNT,
    LABELLED_COUNT,
    SMOOTHED_FRAUD_RATE,
    finite,
    measured,
    statistic,
)

DISTINCT_BITS = 256
PRIOR_FRAUDS, PRIOR_EVENTS = 0.1, 10.0  # of the smoothed fraud rate

_int = np.int64
_ZERO, _ONE, _ALL = np.uint64(0), np.uint64(1), np.uint64(0xFFFFFFFFFFFFFFFF)


@compiled
def window(i, at, section, row, w, batch, memory, cells, layout, counters, out):
    """Compute the features of one window, whose panes begin at word `section` of the block; add the event to its pane.

    Returns the first word of the next section.
    """
    window = layout.windows[w]
    live = memory.words[at + window.mask]
    pane = batch.time_ms[i] // window.pane_ms
    newest = memory.ints[at + SINCE] // window.pane_ms
    dropped = _int(0)
    if pane > newest:
        kept = live >> np.uint64(pane - newest) if pane - newest < window.ring else _ZERO
        dropped = set_bits(live) - set_bits(kept)
        live = kept
        newest = pane
    oldest = newest - window.ring + 1
    first = start_of(at, memory) + section
    end = first
    if pane >= oldest:
        covered = live & (_ALL >> np.uint64(63 - (pane - oldest)))
        below = _ZERO
        if pane - window.panes > oldest:
            below = live & ~(_ALL << np.uint64(pane - window.panes - oldest))
        first += (dropped + set_bits(below)) * window.words
        end = first + set_bits(covered & ~below) * window.words
    _counted(row, first, end, window, cells, layout, out)
    for f in range(window.first_number, window.last_number):
        _valued(i, row, first, end, window, layout.numbers[f], batch, cells, layout, out)
    for f in range(window.first_distinct, window.last_distinct):
        _distinct(row, first, end, window, layout.distincts[f], cells, layout, out)
    if pane < oldest:
        counters.late[w] += 1
        return section + set_bits(live) * window.words
    bit = _ONE << np.uint64(pane - oldest)
    place = set_bits(live & (bit - _ONE)) * window.words
    start = start_of(at, memory)
    if live & bit == _ZERO:
        start = replace(at, section, dropped * window.words, place, window.words, memory, cells)
        live |= bit
        memory.words[at + window.mask] = live
    _enter(i, at, start + section + place, window, batch, memory, cells, layout)
    return section + set_bits(live) * window.words


@compiled
def _counted(row, first, end, window, cells, layout, out):
    """Number of events in the covered panes."""
    if window.first_output == window.last_output:
        return
    n = _int(0)
    for cell in range(first, end, window.words):
        n += _int(cells.counts[2 * cell])
    for o in range(window.first_output, window.last_output):
        out[row, layout.outputs[o].column] = float(n)


@compiled
def _valued(i, row, first, end, window, number, batch, cells, layout, out):
    """The statistics of one number over the covered panes."""
    floats, counts = cells.floats, cells.counts
    n = _int(0)
    total = 0.0
    square = 0.0
    low = np.inf
    high = -np.inf
    above = _int(0)
    for cell in range(first, end, window.words):
        filled = _int(counts[2 * cell + number.count])
        if filled > 0:
            n += filled
            if number.sum >= 0:
                total += floats[cell + number.sum]
            if number.square >= 0:
                square += floats[cell + number.square]
            if number.low >= 0:
                low = min(low, floats[cell + number.low])
            if number.high >= 0:
                high = max(high, floats[cell + number.high])
            if number.above >= 0:
                above += _int(counts[2 * cell + number.above])
    value = measured(batch.numbers[i, number.column])
    for o in range(number.first_output, number.last_output):
        output = layout.outputs[o]
        if output.stat == ABOVE:
            out[row, output.column] = float(above)
        else:
            out[row, output.column] = finite(statistic(output.stat, value, n, total, square, low, high))


@compiled
def _distinct(row, first, end, window, distinct, cells, layout, out):
    """Estimated number of different values in the covered panes."""
    words = cells.words
    bits_0, bits_1, bits_2, bits_3 = _ZERO, _ZERO, _ZERO, _ZERO
    for cell in range(first + distinct.at, end + distinct.at, window.words):
        bits_0 |= words[cell]
        bits_1 |= words[cell + 1]
        bits_2 |= words[cell + 2]
        bits_3 |= words[cell + 3]
    taken: int = set_bits(bits_0) + set_bits(bits_1) + set_bits(bits_2) + set_bits(bits_3)
    out[row, distinct.output] = layout.estimates[DISTINCT_BITS - taken]


@compiled
def _enter(i, at, cell, window, batch, memory, cells, layout):
    """Add the event to the pane at `cell`."""
    words, floats, counts = cells.words, cells.floats, cells.counts
    counts[2 * cell] += np.uint32(1)
    for f in range(window.first_number, window.last_number):
        number = layout.numbers[f]
        value = measured(batch.numbers[i, number.column])
        if math.isnan(value):
            continue
        if number.habit >= 0:
            limit = limit_of(at + layout.habits[number.habit].base, layout.factors[number.habit], memory)
            if number.above >= 0 and value > limit:
                counts[2 * cell + number.above] += np.uint32(1)
            value = min(value, limit)
        first = counts[2 * cell + number.count] == 0
        counts[2 * cell + number.count] += np.uint32(1)
        if number.sum >= 0:
            floats[cell + number.sum] += value
        if number.square >= 0:
            floats[cell + number.square] += value * value
        if number.low >= 0 and (first or value < floats[cell + number.low]):
            floats[cell + number.low] = value
        if number.high >= 0 and (first or value > floats[cell + number.high]):
            floats[cell + number.high] = value
    for f in range(window.first_distinct, window.last_distinct):
        seen = batch.hashed[i, layout.distincts[f].column]
        if seen != _ZERO:
            word = cell + layout.distincts[f].at + _int((seen >> np.uint64(6)) & np.uint64(3))
            words[word] |= _ONE << (seen & np.uint64(63))


@compiled
def label_window(i, at, section, row, w, batch, memory, cells, layout, counters, out):
    """Compute the frauds among the events that count, then add the event to its pane, unless its label will.

    Returns the first word of the next section.
    """
    window = layout.label_windows[w]
    words, mask = memory.words, at + window.mask
    pane = batch.time_ms[i] // window.pane_ms
    newest = memory.ints[at + SINCE] // window.pane_ms
    dropped = _int(0)
    if pane > newest:
        dropped = shift_down(words, mask, window.mask_words, min(pane - newest, window.ring))
        newest = pane
    oldest = newest - window.ring + 1
    until = (batch.time_ms[i] - layout.maturity_ms) // window.pane_ms
    first = max(until - window.panes, oldest)
    if layout.counts_labelled:
        until = pane + 1
    start = start_of(at, memory)
    both = _ZERO  # a word is a pane's events (lower half) and frauds
    if first < until:
        before = start + section + dropped
        for cell in range(
            before + set_below(words, mask, first - oldest), before + set_below(words, mask, until - oldest)
        ):
            both += cells.words[cell]
    n = _int(both & np.uint64(0xFFFFFFFF))
    frauds = _int(both >> np.uint64(32))
    for o in range(window.first_output, window.last_output):
        output = layout.outputs[o]
        if output.stat == FRAUD_COUNT:
            result = float(frauds)
        elif output.stat == LABELLED_COUNT:
            result = float(n)
        elif output.stat == SMOOTHED_FRAUD_RATE:
            result = (frauds + PRIOR_FRAUDS) / (n + PRIOR_EVENTS)
        elif n > 0:
            result = frauds / n
        else:
            result = np.nan if layout.counts_labelled else 0.0
        out[row, output.column] = result
    if layout.counts_labelled or pane < oldest:
        if dropped:
            replace(at, section, dropped, 0, 0, memory, cells)
        counters.label_late[w] += not layout.counts_labelled
    else:
        place = set_below(words, mask, pane - oldest)
        if not is_set(words, mask, pane - oldest):
            start = replace(at, section, dropped, place, 1, memory, cells)
            set_bit(words, mask, pane - oldest)
        cells.counts[2 * (start + section + place)] += np.uint32(1)
    return section + set_below(words, mask, window.ring)


@compiled
def pane_words(at, memory, layout):
    """Words of the panes of all event windows in the block of the row at `at`."""
    words = _int(0)
    for w in range(layout.windows.shape[0]):
        words += set_bits(memory.words[at + layout.windows[w].mask]) * layout.windows[w].words
    return words


@compiled
def report(i, at, section, known, batch, memory, cells, layout, counters):
    """Apply a label to the pane of its event, if the pane is still kept.

    The panes of the first label window begin at word `section` of the block.
    """
    words, n = memory.words, _int(batch.delta[i]) + _int(batch.legit[i])
    for w in range(layout.label_windows.shape[0]):
        window = layout.label_windows[w]
        pane = batch.time_ms[i] // window.pane_ms
        if known:
            newest = memory.ints[at + SINCE] // window.pane_ms
        if not known or pane > newest or pane <= newest - window.ring:
            counters.labels_outside[w] += 1
        else:
            mask, bit = at + window.mask, pane - (newest - window.ring + 1)
            place = set_below(words, mask, bit)
            start = start_of(at, memory)
            is_kept = is_set(words, mask, bit)
            if not is_kept and (batch.delta[i] > 0 or (layout.counts_labelled and n > 0)):
                start = replace(at, section, 0, place, 1, memory, cells)
                set_bit(words, mask, bit)
                is_kept = True
            if is_kept:
                cell = 2 * (start + section + place)
                if layout.counts_labelled:
                    _change(cell, n, cells)
                _change(cell + 1, batch.delta[i], cells)
        if known:
            section += set_below(words, at + window.mask, window.ring)


@compiled
def _change(at, change, cells):
    """Change a count, to no less than 0."""
    cells.counts[at] = np.uint32(max(_int(cells.counts[at]) + change, 0))
