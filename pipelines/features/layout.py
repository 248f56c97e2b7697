"""The memory of the fold: what it reads, and where each fact of an entity lies.

Each entity has a *row* of 64-bit words: its header, then its facts. The lifetime facts are kept longer than the
windows; of a dormant entity only they are kept. What many entities have little of, panes and the counters of tallies,
lies in the entity's *block*, see `blocks`: the tallies' counters, the panes of each window, those of each label window.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Words of the header, which @compiled functions contain. The windows began with the event before which the entity was
# new or dormant.
KEY, CLOCK, NEWEST, EVENTS, BLOCK, SINCE = range(6)  # id; last event; newest event time; how many; see above; below
HEADER_WORDS = 6
DORMANT = -(2**62)  # instead of the newest event time since the windows began, which the masks of panes refer to


def _record(*names: str) -> np.dtype[np.void]:
    return np.dtype([(name, np.int64) for name in names])


# Offsets of facts are in words from the start of the row, those of a tally's count in half words; offsets of
# accumulators in words from the start of the pane, those of `count` and `above` in half words. An unused accumulator
# has offset -1. Ranges exclude their last. Bit `ring - 1` of a mask is the newest pane, and so on down.
WINDOW = _record(
    "mask", "pane_ms", "panes", "ring", "words", "first_output", "last_output",
    "first_number", "last_number", "first_distinct", "last_distinct",
)  # fmt: skip
NUMBER = _record(  # of values as they are (habit -1), or cut at the limit of a habit
    "column", "habit", "count", "above", "sum", "square", "low", "high", "first_output", "last_output"
)
DISTINCT_COUNT = _record("column", "at", "output")
LABEL_WINDOW = _record("mask", "mask_words", "pane_ms", "panes", "ring", "first_output", "last_output")
LIFETIME = _record("base", "column", "first_output", "last_output")
HABIT = _record("base", "column", "first_output", "last_output")
TALLY = _record("mask", "count", "column", "output")  # column -1: by hour of the day
HISTORY = _record("base", "first_output", "last_output")
RING = _record("base", "most", "words")  # of the last events: [time, kept numbers] each, at the number of the event
KEPT = _record("column", "at")  # a number that is kept in it; from the start of an event
LAST = _record("stat", "back", "at", "column")  # a feature of one of them; back = 1 is the newest
OUTPUT = _record("stat", "column")


class FoldInput(NamedTuple):
    """Events and labels, mixed, in the one order.

    Shapes: all have n rows; `entities` (n, n_entities), `numbers` (n, n_numbers), `hashed` (n, n_hashed).
    """

    is_event: NDArray[np.bool_]
    clock_ms: NDArray[np.int64]  # effective time: arrival, for a label arrival + lag; never decreases
    time_ms: NDArray[np.int64]  # event time; for a label, the time of its event
    entities: NDArray[np.uint64]  # hash of the id, 0 = missing
    numbers: NDArray[np.float64]  # NaN = missing; not read for labels
    hashed: NDArray[np.uint64]  # values counted by `distinct` and `share`, 0 = missing; not read for labels
    delta: NDArray[np.int8]  # labels: +1 fraud reported, -1 withdrawn, 0 no change
    legit: NDArray[np.int8]  # labels: +1 reported as legitimate, -1 withdrawn, 0 no change

    def slice(self, start: int, stop: int) -> "FoldInput":
        """Views of the items from `start` to `stop`."""
        return FoldInput._make(column[start:stop] for column in self)


class Layout(NamedTuple):
    """Positions of all facts of one entity column."""

    stride: int  # words of a row
    block_words: int  # of a block with everything that it may hold
    spare_words: int  # free words that one item may need at most
    idle_ms: int  # the windows of an entity are reset after this time without an event
    lifetime_ms: int  # the lifetime facts too; at least idle_ms, equal to it without all-time features
    lifetime_words: int  # of the header and the lifetime facts, at the row's start
    maturity_ms: int
    counts_labelled: bool  # label windows count the events with a label, not all that are old enough
    windows: NDArray[np.void]
    numbers: NDArray[np.void]
    distincts: NDArray[np.void]
    label_windows: NDArray[np.void]
    lifetimes: NDArray[np.void]
    habits: NDArray[np.void]
    factors: NDArray[np.float64]  # of the habits
    tallies: NDArray[np.void]
    histories: NDArray[np.void]  # one or none
    rings: NDArray[np.void]  # one or none
    kept: NDArray[np.void]
    lasts: NDArray[np.void]
    outputs: NDArray[np.void]
    estimates: NDArray[np.float64]  # distinct values by number of zero bits


class Memory(NamedTuple):
    """Words viewed as five types."""

    words: NDArray[np.uint64]
    floats: NDArray[np.float64]
    ints: NDArray[np.int64]
    counts: NDArray[np.uint32]
    shorts: NDArray[np.uint16]

    @classmethod
    def of(cls, words: NDArray[np.uint64]) -> "Memory":
        """All views of `words`."""
        return cls(words, words.view(np.float64), words.view(np.int64), words.view(np.uint32), words.view(np.uint16))


class Cells(NamedTuple):
    """The blocks of one entity column."""

    words: NDArray[np.uint64]
    floats: NDArray[np.float64]
    counts: NDArray[np.uint32]
    shorts: NDArray[np.uint16]
    heap: NDArray[np.int64]  # see `blocks`
    sizes: NDArray[np.int64]


class WindowCounters(NamedTuple):
    """Per window: number of events and labels that could not be added."""

    late: NDArray[np.int64]
    label_late: NDArray[np.int64]
    labels_outside: NDArray[np.int64]
