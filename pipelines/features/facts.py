"""The lifetime facts of an entity: what is kept of its whole past.

A *habit* is the all-time mean of a number in which no single value weighs more than `factor` times the mean before it:
[values and values above the limit, mean]. The limit of a value is factor * mean of the earlier ones; the first `FEW`
values, and those of an entity whose mean is not positive, have none. A value above its limit counts as `above` and
enters `wmean` and `wratio`, here and in the windows, as the limit.

A *tally* counts the entity's earlier events by value, with 16-bit counters in the block: by hash of a category or an
entity in `SHARE_CELLS` cells, or by hour of the day. Before a counter would overflow, all counters of the tally are
halved. A mask says which cells have a counter.

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

import numpy as np

from pipelines.features.blocks import replace, start_of
from pipelines.features.compiling import compiled, set_bits
from pipelines.features.layout import CLOCK, EVENTS, NEWEST
from pipelines.features.stats import (
    ABOVE,
    COUNT,
    FRAUD_RUN,
    FRAUD_RUN_AGE,
    LAST_AGE,
    LAST_HOUR,
    MEAN,
    RATIO,
    SINCE_FRAUD,
    SINCE_LAST,
    SINCE_LEGIT,
    finite,
    measured,
    spread,
)

FEW = 3  # values of an entity before it has a habit
SHARE_CELLS, HOURS, HOUR_MS = 64, 24, 3_600_000
FRAUDS, LEGITS = 8, 4  # times in a label history
HISTORY_WORDS = 4 + FRAUDS + LEGITS
NEVER = -(2**62)
FULL = 65_535  # the largest counter of a tally

_int = np.int64
_ZERO, _ONE = np.uint64(0), np.uint64(1)


@compiled
def last_events(i, at, row, batch, memory, layout, out):
    """The features of the last events, then the ring with this one. The header does not count it yet."""
    floats, ints = memory.floats, memory.ints
    events = ints[at + EVENTS]
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
            floats[event + kept.at] = measured(batch.numbers[i, kept.column])


@compiled
def lifetimes(i, at, row, batch, memory, layout, out):
    """All-time features: count, time since the last event, mean and deviation (Welford 1962)."""
    floats, ints = memory.floats, memory.ints
    time_ms = batch.time_ms[i]
    events = ints[at + EVENTS]
    for p in range(layout.lifetimes.shape[0]):
        life = layout.lifetimes[p]
        base = at + life.base
        value = np.nan
        n = events
        mean = 0.0
        moment = 0.0
        if life.column >= 0:
            value = measured(batch.numbers[i, life.column])
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
                    result = max(time_ms - ints[at + NEWEST], 0) / 1000.0
                elif output.stat == MEAN:
                    result = mean
                elif output.stat == RATIO:
                    result = value / mean
                else:
                    result = spread(output.stat, value, n, mean, moment / n)
            out[row, output.column] = finite(result)
        if life.column >= 0 and not math.isnan(value):
            step = value - mean
            mean += step / (n + 1)
            ints[base] = n + 1
            floats[base + 1] = mean
            floats[base + 2] = moment + step * (value - mean)
    ints[at + CLOCK] = batch.clock_ms[i]
    ints[at + NEWEST] = max(ints[at + NEWEST], time_ms)
    ints[at + EVENTS] = events + 1


@compiled
def limit_of(base, factor, memory):
    """What a value counts as at most, for the habit at `base`; infinite if there is no habit yet."""
    mean = memory.floats[base + 1]
    return factor * mean if memory.counts[2 * base] >= FEW and mean > 0.0 else np.inf


@compiled
def habits(i, at, row, batch, memory, layout, out):
    """The features of the habits, then the habits with this event; the windows have read them before."""
    floats, counts = memory.floats, memory.counts
    for h in range(layout.habits.shape[0]):
        habit = layout.habits[h]
        base = at + habit.base
        value = measured(batch.numbers[i, habit.column])
        n = _int(counts[2 * base])
        mean = floats[base + 1]
        for o in range(habit.first_output, habit.last_output):
            output = layout.outputs[o]
            result = np.nan
            if output.stat == ABOVE:
                result = float(counts[2 * base + 1])
            elif n > 0:
                result = mean if output.stat == MEAN else value / mean
            out[row, output.column] = finite(result)
        if not math.isnan(value):
            limit = limit_of(base, layout.factors[h], memory)
            counts[2 * base] = np.uint32(n + 1)
            counts[2 * base + 1] += np.uint32(value > limit)
            floats[base + 1] = mean + (min(value, limit) - mean) / (n + 1)


@compiled
def tally_words(at, memory, layout):
    """Words of all tallies in the block of the row at `at`."""
    words = _int(0)
    for t in range(layout.tallies.shape[0]):
        words += (set_bits(memory.words[at + layout.tallies[t].mask]) + 3) >> 2
    return words


@compiled
def _counter(shorts, first, bits, cell):
    """A counter of a tally; 0 if the tally does not have it."""
    bit = _ONE << np.uint64(cell)
    return _int(shorts[first + set_bits(bits & (bit - _ONE))]) if bits & bit else _int(0)


@compiled
def tallies(i, at, row, batch, memory, cells, layout, out):
    """The shares of this event's value and hour among the earlier ones, then the tallies with this event."""
    section = _int(0)
    for t in range(layout.tallies.shape[0]):
        tally = layout.tallies[t]
        bits = memory.words[at + tally.mask]
        n_counters = set_bits(bits)
        n = _int(memory.counts[2 * at + tally.count])
        first = 4 * (start_of(at, memory) + section)
        if tally.column < 0:
            cell = (batch.time_ms[i] // HOUR_MS) % HOURS
            near = _counter(cells.shorts, first, bits, cell)
            near += _counter(cells.shorts, first, bits, (cell + 1) % HOURS)
            near += _counter(cells.shorts, first, bits, (cell + HOURS - 1) % HOURS)
            out[row, tally.output] = (near + 1) / (n + 8)
        else:
            seen = batch.hashed[i, tally.column]
            if seen == _ZERO:
                section += (n_counters + 3) >> 2
                continue
            cell = _int(seen & np.uint64(SHARE_CELLS - 1))
            out[row, tally.output] = (_counter(cells.shorts, first, bits, cell) + 0.5) / (n + 1)
        bit = _ONE << np.uint64(cell)
        place = set_bits(bits & (bit - _ONE))
        if not bits & bit:
            if n_counters & 3 == 0:
                first = 4 * (replace(at, section + (n_counters >> 2), 0, 0, 1, memory, cells) + section)
            for c in range(n_counters, place, -1):
                cells.shorts[first + c] = cells.shorts[first + c - 1]
            cells.shorts[first + place] = np.uint16(0)
            memory.words[at + tally.mask] = bits | bit
            n_counters += 1
        if cells.shorts[first + place] == FULL:
            n = _int(0)
            for c in range(first, first + n_counters):
                cells.shorts[c] >>= np.uint16(1)
                n += _int(cells.shorts[c])
        cells.shorts[first + place] += np.uint16(1)
        memory.counts[2 * at + tally.count] = np.uint32(n + 1)
        section += (n_counters + 3) >> 2


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
def learn(i, at, batch, memory, layout):
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
def label_history(i, at, row, batch, memory, layout, out):
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
