"""The compiled fold: updates the state of one entity column, stored in flat words, one item at a time.

Each entity has one *row* of 64-bit words: clock of the last event, newest event time, number of events, then one
section for each all-time number, habit, tally, label history, ring of last events, window and label window. The words
to the end of the ring are the lifetime facts. They are kept longer than the windows; of a dormant entity only they are
kept. The section of a window is [newest pane, live panes, ring of panes]. Bit `ring - 1` of *live panes* is the newest
pane, the bit below it the pane before. The words of a dead pane are never read, so they need not be cleared when time
advances. A pane has 32-bit counts (all events, then for each number its values and those above the limit), then the
other accumulators. The section of a label window is [newest pane, ring of (events, frauds)]. Half and quarter words are
in little-endian order.

The events of a label window are all that are old enough to have their labels. Where legitimate events are reported too,
they are those with a label, of any age, and without one a rate is missing.

A *habit* is the all-time mean of a number in which no single value weighs more than `factor` times the mean before it:
[values, mean, values above the limit]. The limit of a value is factor * mean of the earlier ones; the first `FEW`
values, and those of an entity whose mean is not positive, have none. A value above its limit counts as `above` and
enters `wmean` and `wratio`, here and in the windows, as the limit.

A *tally* counts the entity's earlier events by value, [events, 16-bit counters]: by hash of a category or an entity in
`SHARE_CELLS` cells, or by hour of the day. Before a counter would overflow, all counters of the tally are halved.

A *label history* has the event times of the newest known frauds and the newest known legitimate events, newest first:
[frauds, legitimate, older, first older, `FRAUDS` times, `LEGITS` times]. A label that takes effect adds its time, a
label taken back removes it; what was pushed off the end of a list does not return. The *run* of frauds is those after
the newest known legitimate event: those in the list, and the number `older` of those pushed off it, of which the first
was at `first older`. These are given up when a legitimate event at or after that time becomes known, as it is not kept
how many of them came after it. So a run of any length is exact unless a label arrives later than `FRAUDS` of frauds of
later events, or `LEGITS` of legitimate events are taken back in a row.

The *last events* are a ring, [time, numbers] of each, in the order of arrival: event n is at n modulo its length.
"""

# mypy: disable-error-code="no-untyped-def"
# The compiled functions are typed by numba, from their first call.

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

HEADER_WORDS = 3
DISTINCT_BITS = 256
LIMIT = 1e100  # larger numbers count as missing, so that sums of squares stay finite
ROUNDING = 1e-12  # a variance below this share of the mean square is a rounding error and counts as zero
FEW = 3  # values of an entity before it has a habit
SHARE_CELLS, HOURS, HOUR_MS = 64, 24, 3_600_000
FRAUDS, LEGITS = 8, 4  # times in a label history
HISTORY_WORDS = 4 + FRAUDS + LEGITS
NEVER = -(2**62)
PRIOR_FRAUDS, PRIOR_EVENTS = 0.1, 10.0  # of the smoothed fraud rate
FULL = 65_535  # the largest counter of a tally
AHEAD = 4  # how many items ahead a row is prefetched; 2 to 8 are equally fast
AHEAD_WORDS = 1024  # of the row, at most

COUNT, SINCE_LAST, SUM, MEAN, STD, MIN, MAX, RATIO, ZSCORE, ABOVE = range(10)
FRAUD_RATE, FRAUD_COUNT, LABELLED_COUNT, SMOOTHED_FRAUD_RATE = range(10, 14)
SINCE_FRAUD, SINCE_LEGIT, FRAUD_RUN, FRAUD_RUN_AGE = range(14, 18)
LAST_AGE, LAST_HOUR, LAST_VALUE = range(18, 21)


_int = np.int64
_intrinsic: Any = intrinsic  # its stubs count the typing context as an argument
_ZERO, _ONE, _ALL = np.uint64(0), np.uint64(1), np.uint64(0xFFFFFFFFFFFFFFFF)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call, and cache the machine code on disk if a folder is writable."""
    # Without reference counting ("_nrt"), which no function here needs: with it the code takes three times as long.
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False, "forceinline": True}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # a read-only install without NUMBA_CACHE_DIR
        return numba.njit(**options)(function)


@_intrinsic
def _lowest_bit(_context, word):  # index of the lowest set bit
    def generate(context, builder, _signature, arguments):
        return builder.cttz(arguments[0], context.get_constant(types.boolean, False))

    return types.int64(types.uint64), generate


@_intrinsic
def _set_bits(_context, word):  # how many bits are set
    def generate(_compiler, builder, _signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


@_intrinsic
def prefetch(_context, words, at):  # prefetch words[at]
    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.gep(array.data, [arguments[1]])
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        hint = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, number, number, number]), "llvm.prefetch.p0"
        )
        builder.call(hint, [builder.bitcast(address, byte), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(words, types.int64), generate


@compiled
def _place(table, key):
    """Position of `key` in the table, or the free position where it would be inserted."""
    last = np.uint64(table.shape[0] - 1)
    place = ((key * _MULTIPLIER) >> np.uint64(20)) & last
    while table[place, 1] != _ZERO and table[place, 0] != key:
        place = (place + _ONE) & last
    return place


@compiled
def index(table, keys, first):
    """Insert the slots of the new `keys` from `first` on into the table (slot + 1; 0 is a free cell)."""
    for slot in range(first, keys.shape[0]):
        place = _place(table, keys[slot])
        table[place, 0] = keys[slot]
        table[place, 1] = np.uint64(slot + 1)


@compiled
def find_absent(table, keys, absent):
    """Find which of `keys` are not in the table."""
    for i in range(keys.shape[0]):
        absent[i] = table[_place(table, keys[i]), 1] == _ZERO


@compiled
def clear_dead_panes(words, stride, windows):
    """Clear words that are never read again, so that equal states have equal bytes."""
    for start in range(0, words.shape[0], stride):
        for w in range(windows.shape[0]):
            window = windows[w]
            at = start + window.base
            oldest = _int(words[at]) - window.ring + 1
            for bit in range(window.ring):
                if (words[at + 1] >> np.uint64(bit)) & _ONE == _ZERO:
                    pane = at + 2 + ((oldest + bit) % window.ring) * window.words
                    words[pane : pane + window.words] = _ZERO


@compiled
def _measured(value):
    """Normalise a value: -0.0 becomes 0.0; NaN, infinite and absurdly large values count as missing."""
    return value + 0.0 if abs(value) <= LIMIT else np.nan


@compiled
def _finite(value):
    return value if math.isfinite(value) else np.nan


@compiled
def _statistic(stat, value, n, total, square, low, high):
    """One statistic of `n` values; `square` is the sum of squares."""
    if stat == SUM:
        return total
    if n == 0:
        return np.nan
    if stat == MIN:
        return low
    if stat == MAX:
        return high
    mean = total / n
    if stat == MEAN:
        return mean
    if stat == RATIO:
        return value / mean
    mean_square = square / n
    variance = mean_square - mean * mean
    if variance <= ROUNDING * mean_square:
        variance = 0.0
    return _spread(stat, value, n, mean, variance)


@compiled
def _spread(stat, value, n, mean, variance):
    if n < 2:
        return np.nan
    deviation = math.sqrt(variance)
    return deviation if stat == STD else (value - mean) / deviation if deviation > 0.0 else np.nan


@compiled
def _next(left, turn, ring):
    """Position in the ring of the oldest pane in `left`."""
    where = turn + _lowest_bit(left)
    return where if where < ring else where - ring


@compiled
def _begin(time_ms, at, first, memory, layout):
    """Reset the row from word `first` on: the whole row, or what follows lifetime facts that are still valid."""
    memory.words[first : at + layout.stride] = _ZERO
    if first == at:
        memory.ints[at + 1] = time_ms
    for w in range(layout.windows.shape[0]):
        memory.ints[at + layout.windows[w].base] = time_ms // layout.windows[w].pane_ms
    for w in range(layout.label_windows.shape[0]):
        memory.ints[at + layout.label_windows[w].base] = time_ms // layout.label_windows[w].pane_ms


@compiled
def _report(i, at, known, batch, memory, layout, counters):
    """Apply a label to the pane of its event, if the pane is still kept."""
    if batch.delta[i] == 0 and batch.legit[i] == 0:
        return
    for w in range(layout.label_windows.shape[0]):
        window = layout.label_windows[w]
        pane = batch.time_ms[i] // window.pane_ms
        base = at + window.base
        if not known or pane > memory.ints[base] or pane <= memory.ints[base] - window.ring:
            counters.labels_outside[w] += 1
            continue
        events = 2 * (base + 1 + pane % window.ring)
        if layout.counts_labelled:
            _change(events, batch.delta[i] + batch.legit[i], memory)
        _change(events + 1, batch.delta[i], memory)


@compiled
def _change(at, change, memory):
    """Change a count, to no less than 0."""
    memory.counts[at] = np.uint32(max(_int(memory.counts[at]) + change, 0))


@compiled
def _add_time(length, first, most, time_ms, ints):
    """Add a time to a list of the newest ones; returns the time that is pushed off its end, or `NEVER`."""
    n = ints[length]
    pushed = _int(NEVER)
    if n == most:
        pushed = ints[first + most - 1]
        if time_ms <= pushed:
            return time_ms
        n -= 1
    place = first + n
    while place > first and ints[place - 1] < time_ms:
        ints[place] = ints[place - 1]
        place -= 1
    ints[place] = time_ms
    ints[length] = n + 1
    return pushed


@compiled
def _remove_time(length, first, time_ms, ints):
    """Remove a time from a list; returns whether it was there."""
    last = first + ints[length] - 1
    for place in range(first, last + 1):
        if ints[place] == time_ms:
            for after in range(place, last):
                ints[after] = ints[after + 1]
            ints[last] = 0
            ints[length] -= 1
            return True
    return False


@compiled
def _learn(i, at, batch, memory, layout):
    """Apply a label to the label history."""
    ints, time_ms = memory.ints, batch.time_ms[i]
    for h in range(layout.histories.shape[0]):
        base = at + layout.histories[h].base
        frauds = base + 4
        legits = frauds + FRAUDS
        if batch.legit[i] < 0:
            _remove_time(base + 1, legits, time_ms, ints)
        elif batch.legit[i] > 0:
            _add_time(base + 1, legits, LEGITS, time_ms, ints)
        newest_legit = ints[legits] if ints[base + 1] > 0 else _int(NEVER)
        if batch.delta[i] < 0:
            if not _remove_time(base, frauds, time_ms, ints) and ints[base + 2] > 0 and time_ms >= ints[base + 3]:
                ints[base + 2] -= 1
        elif batch.delta[i] > 0:
            pushed = _add_time(base, frauds, FRAUDS, time_ms, ints)
            if pushed > newest_legit:
                ints[base + 3] = min(ints[base + 3], pushed) if ints[base + 2] > 0 else pushed
                ints[base + 2] += 1
        if newest_legit >= ints[base + 3]:
            ints[base + 2] = 0
        if ints[base + 2] == 0:
            ints[base + 3] = 0


@compiled
def _label_history(i, at, row, batch, memory, layout, out):
    """Times since the newest known fraud and legitimate event, length and age of the run of frauds."""
    ints, time_ms = memory.ints, batch.time_ms[i]
    for h in range(layout.histories.shape[0]):
        history = layout.histories[h]
        base = at + history.base
        frauds = base + 4
        legits = frauds + FRAUDS
        newest_legit = ints[legits] if ints[base + 1] > 0 else _int(NEVER)
        run = ints[base + 2]
        first = ints[base + 3]
        for place in range(frauds, frauds + ints[base]):
            if ints[place] > newest_legit:
                run += 1
                if ints[base + 2] == 0:
                    first = ints[place]
        for o in range(history.first_output, history.last_output):
            output = layout.outputs[o]
            result = np.nan
            if output.stat == FRAUD_RUN:
                result = float(run)
            elif output.stat == SINCE_FRAUD and ints[base] > 0:
                result = max(time_ms - ints[frauds], 0) / 1000.0
            elif output.stat == SINCE_LEGIT and ints[base + 1] > 0:
                result = max(time_ms - newest_legit, 0) / 1000.0
            elif output.stat == FRAUD_RUN_AGE and run > 0:
                result = max(time_ms - first, 0) / 1000.0
            out[row, output.column] = result


@compiled
def _lifetimes(i, at, row, batch, memory, layout, out):
    """All-time features: count, time since the last event, mean and deviation (Welford 1962)."""
    floats, ints = memory.floats, memory.ints
    time_ms = batch.time_ms[i]
    events = ints[at + 2]
    for p in range(layout.lifetimes.shape[0]):
        life = layout.lifetimes[p]
        base = at + life.base
        value = np.nan
        n = events
        mean = 0.0
        moment = 0.0
        if life.column >= 0:
            value = _measured(batch.numbers[i, life.column])
            n = ints[base]
            mean = floats[base + 1]
            moment = floats[base + 2]
        for o in range(life.first_output, life.last_output):
            output = layout.outputs[o]
            result = np.nan
            if output.stat == COUNT:
                result = float(n)
            elif n > 0:
                if output.stat == SINCE_LAST:
                    result = max(time_ms - ints[at + 1], 0) / 1000.0
                elif output.stat == MEAN:
                    result = mean
                elif output.stat == RATIO:
                    result = value / mean
                else:
                    result = _spread(output.stat, value, n, mean, moment / n)
            out[row, output.column] = _finite(result)
        if life.column >= 0 and not math.isnan(value):
            step = value - mean
            mean += step / (n + 1)
            ints[base] = n + 1
            floats[base + 1] = mean
            floats[base + 2] = moment + step * (value - mean)
    ints[at] = batch.clock_ms[i]
    ints[at + 1] = max(ints[at + 1], time_ms)
    ints[at + 2] = events + 1


@compiled
def _last_events(i, at, row, batch, memory, layout, out):
    """The features of the last events, then the ring with this one. The header does not count it yet."""
    floats, ints = memory.floats, memory.ints
    events = ints[at + 2]
    for r in range(layout.rings.shape[0]):
        ring = layout.rings[r]
        for f in range(layout.lasts.shape[0]):
            last = layout.lasts[f]
            if last.back <= events:
                event = at + ring.base + (events - last.back) % ring.most * ring.words
                if last.stat == LAST_AGE:
                    result = max(batch.time_ms[i] - ints[event], 0) / 1000.0
                elif last.stat == LAST_HOUR:
                    result = ints[event] % (HOURS * HOUR_MS) / HOUR_MS
                else:
                    result = floats[event + last.at]
                out[row, last.column] = result
        event = at + ring.base + events % ring.most * ring.words
        ints[event] = batch.time_ms[i]
        for k in range(layout.kept.shape[0]):
            kept = layout.kept[k]
            floats[event + kept.at] = _measured(batch.numbers[i, kept.column])


@compiled
def _limit(base, factor, memory):
    """What a value counts as at most, for the habit at `base`; infinite if there is no habit yet."""
    mean = memory.floats[base + 1]
    return factor * mean if memory.ints[base] >= FEW and mean > 0.0 else np.inf


@compiled
def _habits(i, at, row, batch, memory, layout, out):
    """The features of the habits, then the habits with this event; the windows have read them before."""
    floats, ints = memory.floats, memory.ints
    for h in range(layout.habits.shape[0]):
        habit = layout.habits[h]
        base = at + habit.base
        value = _measured(batch.numbers[i, habit.column])
        n = ints[base]
        mean = floats[base + 1]
        for o in range(habit.first_output, habit.last_output):
            output = layout.outputs[o]
            result = np.nan
            if output.stat == ABOVE:
                result = float(ints[base + 2])
            elif n > 0:
                result = mean if output.stat == MEAN else value / mean
            out[row, output.column] = _finite(result)
        if not math.isnan(value):
            limit = _limit(base, layout.factors[h], memory)
            ints[base + 2] += value > limit
            ints[base] = n + 1
            floats[base + 1] = mean + (min(value, limit) - mean) / (n + 1)


@compiled
def _tallies(i, at, row, batch, memory, layout, out):
    """The shares of this event's value and hour among the earlier ones, then the tallies with this event."""
    ints, shorts = memory.ints, memory.shorts
    for t in range(layout.tallies.shape[0]):
        tally = layout.tallies[t]
        base = at + tally.base
        n = ints[base]
        first = 4 * (base + 1)
        if tally.column < 0:
            cells = HOURS
            cell = (batch.time_ms[i] // HOUR_MS) % HOURS
            near = _int(shorts[first + cell])
            near += _int(shorts[first + (cell + 1) % HOURS]) + _int(shorts[first + (cell + HOURS - 1) % HOURS])
            out[row, tally.output] = (near + 1) / (n + 8)
        else:
            seen = batch.hashed[i, tally.column]
            if seen == _ZERO:
                continue
            cells = SHARE_CELLS
            cell = _int(seen & np.uint64(SHARE_CELLS - 1))
            out[row, tally.output] = (_int(shorts[first + cell]) + 0.5) / (n + 1)
        if shorts[first + cell] == FULL:
            n = _int(0)
            for c in range(first, first + cells):
                shorts[c] >>= np.uint16(1)
                n += _int(shorts[c])
        shorts[first + cell] += np.uint16(1)
        ints[base] = n + 1


@compiled
def _window(i, at, row, w, batch, memory, layout, counters, out):
    """Compute the features of one window, then add the event to its pane."""
    window = layout.windows[w]
    section = at + window.base
    pane = batch.time_ms[i] // window.pane_ms
    oldest = _move_on(section, pane, window, memory)
    turn = oldest % window.ring  # position of the oldest pane
    base = section + 2
    live = memory.words[section + 1]
    covered = _ZERO  # live panes of the window, the lowest bit is the oldest
    if pane >= oldest:
        covered = live & (_ALL >> np.uint64(63 - (pane - oldest)))
        if pane - window.panes > oldest:
            covered &= _ALL << np.uint64(pane - window.panes - oldest)
    _counted(row, base, turn, covered, window, memory, layout, out)
    for f in range(window.first_number, window.last_number):
        _valued(i, row, base, turn, covered, window, layout.numbers[f], batch, memory, layout, out)
    for f in range(window.first_distinct, window.last_distinct):
        _distinct(row, base, turn, covered, window, layout.distincts[f], memory, layout, out)
    if pane < oldest:
        counters.late[w] += 1
        return
    bit = _ONE << np.uint64(pane - oldest)
    cell = base + _next(bit, turn, window.ring) * window.words
    if live & bit == _ZERO:
        memory.words[cell : cell + window.words] = _ZERO
        memory.words[section + 1] = live | bit
    _enter(i, at, cell, window, batch, memory, layout)


@compiled
def _move_on(section, pane, window, memory):
    """Advance the ring to a newer pane; returns the oldest pane that it then has."""
    newest = memory.ints[section]
    if pane > newest:
        moved = pane - newest
        live = memory.words[section + 1]
        memory.words[section + 1] = live >> np.uint64(moved) if moved < window.ring else _ZERO
        memory.ints[section] = newest = pane
    return newest - window.ring + 1


@compiled
def _counted(row, base, turn, covered, window, memory, layout, out):
    """Number of events in the covered panes."""
    if window.first_output == window.last_output:
        return
    n = _int(0)
    left = covered
    while left:
        n += _int(memory.counts[2 * (base + _next(left, turn, window.ring) * window.words)])
        left &= left - _ONE
    for o in range(window.first_output, window.last_output):
        out[row, layout.outputs[o].column] = float(n)


@compiled
def _valued(i, row, base, turn, covered, window, number, batch, memory, layout, out):
    """The statistics of one number over the covered panes."""
    floats, counts = memory.floats, memory.counts
    n = _int(0)
    total = 0.0
    square = 0.0
    low = np.inf
    high = -np.inf
    above = _int(0)
    left = covered
    while left:
        cell = base + _next(left, turn, window.ring) * window.words
        left &= left - _ONE
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
    value = _measured(batch.numbers[i, number.column])
    for o in range(number.first_output, number.last_output):
        output = layout.outputs[o]
        if output.stat == ABOVE:
            out[row, output.column] = float(above)
        else:
            out[row, output.column] = _finite(_statistic(output.stat, value, n, total, square, low, high))


@compiled
def _distinct(row, base, turn, covered, window, distinct, memory, layout, out):
    """Estimated number of different values in the covered panes."""
    words = memory.words
    bits_0, bits_1, bits_2, bits_3 = _ZERO, _ZERO, _ZERO, _ZERO
    left = covered
    while left:
        cell = base + _next(left, turn, window.ring) * window.words + distinct.at
        left &= left - _ONE
        bits_0 |= words[cell]
        bits_1 |= words[cell + 1]
        bits_2 |= words[cell + 2]
        bits_3 |= words[cell + 3]
    taken: int = _set_bits(bits_0) + _set_bits(bits_1) + _set_bits(bits_2) + _set_bits(bits_3)
    out[row, distinct.output] = layout.estimates[DISTINCT_BITS - taken]


@compiled
def _enter(i, at, cell, window, batch, memory, layout):
    """Add the event to the pane at `cell`."""
    words, floats, counts = memory.words, memory.floats, memory.counts
    counts[2 * cell] += np.uint32(1)
    for f in range(window.first_number, window.last_number):
        number = layout.numbers[f]
        value = _measured(batch.numbers[i, number.column])
        if math.isnan(value):
            continue
        if number.habit >= 0:
            limit = _limit(at + layout.habits[number.habit].base, layout.factors[number.habit], memory)
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
def _label_window(i, at, row, w, batch, memory, layout, counters, out):
    """Compute the frauds among the events that count, then add the event to its pane, unless its label will."""
    words = memory.words
    window = layout.label_windows[w]
    ring = window.ring
    base = at + window.base + 1
    pane = batch.time_ms[i] // window.pane_ms
    newest = memory.ints[base - 1]
    if pane > newest:
        skipped = min(pane - newest, ring)
        where = (pane - skipped + 1) % ring
        for _ in range(skipped):
            words[base + where] = _ZERO
            where = where + 1 if where + 1 < ring else 0
        newest = pane
        memory.ints[base - 1] = newest
    until = (batch.time_ms[i] - layout.maturity_ms) // window.pane_ms
    first = max(until - window.panes, newest - ring + 1)
    if layout.counts_labelled:
        until = pane + 1
    both = _ZERO  # a word is a pane's events (low half) and frauds (high half)
    if first < until:
        where = first % ring
        straight = min(until - first, ring - where)
        for word in range(base + where, base + where + straight):
            both += words[word]
        for word in range(base, base + until - first - straight):
            both += words[word]
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
    if layout.counts_labelled:
        return
    if pane <= newest - ring:
        counters.label_late[w] += 1
    else:
        memory.counts[2 * (base + pane % ring)] += np.uint32(1)


@compiled
def fold(start, row, column, batch, table, keys, used, memory, layout, counters, out):
    """Fold items from `start` on for one entity column; `row` is the row of `out` for the next event.

    Stops early if no slot is free. Returns (next item, next row, slots used).
    """
    words, ints = memory.words, memory.ints
    n_items = batch.is_event.shape[0]
    for i in range(start, n_items):
        if i + AHEAD < n_items:
            soon = batch.entities[i + AHEAD, column]
            if soon != _ZERO:
                there = (_int(table[_place(table, soon), 1]) - 1) * layout.stride
                for word in range(there, there + min(layout.stride, AHEAD_WORDS), 8):
                    prefetch(words, word)

        event = batch.is_event[i]
        key = batch.entities[i, column]
        if key == _ZERO:
            row += event
            continue
        place = _place(table, key)
        slot = _int(table[place, 1]) - 1
        at = slot * layout.stride
        known = slot >= 0 and batch.clock_ms[i] - ints[at] <= layout.idle_ms
        if not event:
            _report(i, at, known, batch, memory, layout, counters)
            if slot >= 0 and batch.clock_ms[i] - ints[at] <= layout.lifetime_ms:
                _learn(i, at, batch, memory, layout)
            continue
        if not known:
            first = 0
            if slot < 0:
                if used == keys.shape[0]:
                    return i, row, used
                slot = used
                used += 1
                keys[slot] = key
                table[place, 0] = key
                table[place, 1] = np.uint64(used)
                at = slot * layout.stride
            elif batch.clock_ms[i] - ints[at] <= layout.lifetime_ms:
                first = layout.lifetime_words
            _begin(batch.time_ms[i], at, at + first, memory, layout)
        _last_events(i, at, row, batch, memory, layout, out)
        _lifetimes(i, at, row, batch, memory, layout, out)
        for w in range(layout.windows.shape[0]):
            _window(i, at, row, w, batch, memory, layout, counters, out)
        for w in range(layout.label_windows.shape[0]):
            _label_window(i, at, row, w, batch, memory, layout, counters, out)
        _habits(i, at, row, batch, memory, layout, out)
        _tallies(i, at, row, batch, memory, layout, out)
        _label_history(i, at, row, batch, memory, layout, out)
        row += 1
    return n_items, row, used
