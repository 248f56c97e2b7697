"""Window features: one compiled definition for replay and live.

A window of width w is n panes of width w / n, by event time: an event sees the n whole panes before its own, and
what is already in its own (a "sawtooth": between w and w + w / n). Cost and memory per entity are bounded, and an
event's features depend only on what is before it in the one order, bit for bit.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipelines import kernel
from pipelines.errors import RestoreError, StreamFileError
from pipelines.kernel import Batch, Counters, Layout, Memory
from pipelines.stream import Feature

KERNEL_VERSION = 1  # raise it whenever the same items could give other features or another snapshot
_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_ALL_TIME_IDLE_MS = 400 * _DAY_MS
_FARTHEST_MS = 2**53  # keeps pane arithmetic far from overflow
_FIRST_SLOTS = 64
_ACCUMULATORS = {
    "sum": ("sum",),
    "mean": ("sum",),
    "std": ("sum", "square"),
    "min": ("low",),
    "max": ("high",),
    "ratio": ("sum",),
    "zscore": ("sum", "square"),
}
_LABEL_FED = ("fraud_rate", "fraud_count")
_STATS = {
    "count": kernel.COUNT,
    "distinct": kernel.DISTINCT,
    "since_last": kernel.SINCE_LAST,
    "sum": kernel.SUM,
    "mean": kernel.MEAN,
    "std": kernel.STD,
    "min": kernel.MIN,
    "max": kernel.MAX,
    "ratio": kernel.RATIO,
    "zscore": kernel.ZSCORE,
    "fraud_rate": kernel.FRAUD_RATE,
    "fraud_count": kernel.FRAUD_COUNT,
}


@dataclass(frozen=True)
class Panes:
    """How a window is cut: `count` panes of `width_ms`."""

    count: int
    width_ms: int

    @classmethod
    def of(cls, window_ms: int) -> Self:
        """Cut a window.

        Raises:
            StreamFileError: the panes would not be whole milliseconds wide.

        Example:
            >>> Panes.of(3_600_000)
            Panes(count=12, width_ms=300000)
        """
        count = 12 if window_ms <= _HOUR_MS else 24 if window_ms <= _DAY_MS else 28 if window_ms <= 7 * _DAY_MS else 30
        if window_ms <= 0 or window_ms % count:
            raise StreamFileError(
                f"a window of this size must be a whole multiple of {count} ms, however: {window_ms} ms; "
                f"take {max(1, round(window_ms / count)) * count} ms"
            )
        return cls(count, window_ms // count)


@dataclass(frozen=True)
class Plan:
    """The features of a stream, compiled to a memory layout.

    Example:
        >>> features = [Feature("customer.count.1h", "count", "customer", None, 3_600_000)]
        >>> plan = Plan.of(features, entities=["customer"], numbers=["amount"], hashed=[], maturity_ms=None)
        >>> plan.names, plan.bytes_per_entity, plan.idle_ms
        (('customer.count.1h',), (176,), (3900000,))
    """

    names: tuple[str, ...]
    entities: tuple[str, ...]
    numbers: tuple[str, ...]
    hashed: tuple[str, ...]
    digest: str
    layouts: tuple[Layout, ...]
    window_names: tuple[tuple[str, ...], ...]  # per entity: its windows, for the counters
    label_window_names: tuple[tuple[str, ...], ...]

    @classmethod
    def of(
        cls,
        features: Sequence[Feature],
        *,
        entities: Sequence[str],
        numbers: Sequence[str],
        hashed: Sequence[str],
        maturity_ms: int | None,
    ) -> Self:
        """Compile features.

        Args:
            features: entity features; their order is the order of the columns.
            entities: names of the columns of `Batch.entities`.
            numbers: names of the columns of `Batch.numbers`.
            hashed: names of the columns of `Batch.hashed`.
            maturity_ms: how long after its event a label counts; needed by fraud_rate and fraud_count.

        Raises:
            StreamFileError: a feature cannot be computed; says which, why and how to mend it.
        """
        for feature in features:
            _check(feature, entities, numbers, hashed, maturity_ms)
        definition = [
            KERNEL_VERSION,
            [[f.name, f.stat, f.entity, f.field, f.window_ms] for f in features],
            [list(entities), list(numbers), list(hashed)],
            maturity_ms,
        ]
        layouts = tuple(
            _lay_out(
                [(column, f) for column, f in enumerate(features) if f.entity == entity],
                {name: column for column, name in enumerate(numbers)},
                {name: column for column, name in enumerate(hashed)},
                maturity_ms or 0,
            )
            for entity in entities
        )
        return cls(
            names=tuple(f.name for f in features),
            entities=tuple(entities),
            numbers=tuple(numbers),
            hashed=tuple(hashed),
            digest=hashlib.sha256(json.dumps(definition).encode()).hexdigest(),
            layouts=layouts,
            window_names=tuple(tuple(_named(e, layout.windows)) for e, layout in zip(entities, layouts, strict=True)),
            label_window_names=tuple(
                tuple(f"{name}, labels" for name in _named(e, layout.label_windows))
                for e, layout in zip(entities, layouts, strict=True)
            ),
        )

    @property
    def idle_ms(self) -> tuple[int, ...]:
        """Per entity column: after how long without an event an entity is as new."""
        return tuple(layout.idle_ms for layout in self.layouts)

    @property
    def bytes_per_entity(self) -> tuple[int, ...]:
        """Per entity column: what one entity's row costs (its places in the hash table come on top)."""
        return tuple(8 * layout.stride for layout in self.layouts)


def _check(
    feature: Feature, entities: Sequence[str], numbers: Sequence[str], hashed: Sequence[str], maturity_ms: int | None
) -> None:
    def fail(required: str) -> None:
        raise StreamFileError(f"feature {feature.name!r}: {required}, however: {feature}")

    stat, all_time = feature.stat, feature.window_ms is None
    if stat not in _STATS:
        fail(f"stat must be one of {', '.join(_STATS)}")
    if feature.entity not in entities:
        fail(f"entity must be one of {', '.join(entities)}")
    if stat in _ACCUMULATORS and feature.field not in numbers:
        fail(f"field must be one of the numbers {', '.join(numbers)}")
    if stat == "distinct" and feature.field not in hashed:
        fail(f"field must be one of {', '.join(hashed)}")
    if stat not in _ACCUMULATORS and stat != "distinct" and feature.field is not None:
        fail(f"{stat} takes no field")
    if all_time and stat not in ("count", "since_last", "mean", "std", "ratio", "zscore"):
        fail(f"{stat} has no all-time form, give it a window")
    if stat == "since_last" and not all_time:
        fail("since_last takes no window")
    if stat in _LABEL_FED and maturity_ms is None:
        fail(f"{stat} needs a maturity")
    if feature.window_ms is not None:
        Panes.of(feature.window_ms)


def _lay_out(
    features: Sequence[tuple[int, Feature]],
    number_columns: Mapping[str, int],
    hashed_columns: Mapping[str, int],
    maturity_ms: int,
) -> Layout:
    tables: dict[str, list[tuple[int, ...]]] = {
        name: [] for name in ("windows", "numbers", "distincts", "label_windows", "lifetimes", "outputs")
    }
    outputs = tables["outputs"]
    words = kernel.HEADER_WORDS
    spans: list[int] = []

    def emit(wanted: Sequence[tuple[int, Feature]]) -> tuple[int, int]:
        first = len(outputs)
        outputs.extend((_STATS[f.stat], column) for column, f in wanted)
        return first, len(outputs)

    all_time = [(column, f) for column, f in features if f.window_ms is None]
    for field in sorted({f.field for _, f in all_time}, key=str):
        of_field = [(column, f) for column, f in all_time if f.field == field]
        tables["lifetimes"].append((words, -1 if field is None else number_columns[field], *emit(of_field)))
        words += 0 if field is None else 3

    windowed = [(column, f) for column, f in features if f.window_ms is not None and f.stat not in _LABEL_FED]
    widths = sorted({f.window_ms for _, f in windowed if f.window_ms is not None})
    for width in widths:
        panes = Panes.of(width)
        here = [(column, f) for column, f in windowed if f.window_ms == width]
        counted = emit([(column, f) for column, f in here if f.stat == "count"])
        fields = sorted({f.field for _, f in here if f.stat in _ACCUMULATORS and f.field is not None})
        pane_words = (1 + len(fields) + 1) // 2
        first_number = len(tables["numbers"])
        for place, field in enumerate(fields, start=1):
            of_field = [(column, f) for column, f in here if f.stat in _ACCUMULATORS and f.field == field]
            needed = {name for _, f in of_field for name in _ACCUMULATORS[f.stat]}
            at = {}
            for name in ("sum", "square", "low", "high"):
                at[name] = pane_words if name in needed else -1
                pane_words += name in needed
            tables["numbers"].append((number_columns[field], place, *at.values(), *emit(of_field)))
        first_distinct = len(tables["distincts"])
        for field in sorted({f.field for _, f in here if f.stat == "distinct" and f.field is not None}):
            for column, f in here:
                if f.stat == "distinct" and f.field == field:
                    tables["distincts"].append((hashed_columns[field], pane_words, column))
            pane_words += kernel.DISTINCT_BITS // 64
        ring = panes.count + 2
        tables["windows"].append(
            (words, panes.width_ms, panes.count, ring, pane_words, *counted)
            + (first_number, len(tables["numbers"]), first_distinct, len(tables["distincts"]))
        )
        words += 2 + ring * pane_words
        spans.append(width + panes.width_ms)

    label_fed = [(column, f) for column, f in features if f.window_ms is not None and f.stat in _LABEL_FED]
    label_widths = sorted({f.window_ms for _, f in label_fed if f.window_ms is not None})
    for width in label_widths:
        panes = Panes.of(width)
        ring = panes.count + -(-maturity_ms // panes.width_ms) + 2
        of_window = emit([(column, f) for column, f in label_fed if f.window_ms == width])
        tables["label_windows"].append((words, panes.width_ms, panes.count, ring, *of_window))
        words += 1 + ring
        spans.append(width + maturity_ms + 2 * panes.width_ms)

    types = (kernel.WINDOW, kernel.NUMBER, kernel.DISTINCT_COUNT, kernel.LABEL_WINDOW, kernel.LIFETIME, kernel.OUTPUT)
    compiled = [np.array(rows, dtype=kind) for rows, kind in zip(tables.values(), types, strict=True)]
    return Layout(words, max(spans, default=_ALL_TIME_IDLE_MS), maturity_ms, *compiled, _estimates())


def _estimates() -> NDArray[np.float64]:
    """Distinct values by number of zero bits: linear counting (Whang et al. 1990); a full map counts as one zero."""
    m = kernel.DISTINCT_BITS
    return np.array([m * math.log(m / max(zeros, 1)) for zeros in range(m + 1)])


def _named(entity: str, windows: NDArray[np.void]) -> list[str]:
    return [f"{entity}, {window['panes'] * window['pane_ms']} ms" for window in windows]


class Windows:
    """The state of every entity: bounded by `Plan.bytes_per_entity` and by how many are active within `idle_ms`.

    Example:
        >>> features = [Feature("c.count.1h", "count", "c", None, 3_600_000)]
        >>> windows = Windows(Plan.of(features, entities=["c"], numbers=[], hashed=[], maturity_ms=None))
        >>> two = Batch(
        ...     is_event=np.array([True, True]),
        ...     clock_ms=np.array([0, 1]),
        ...     time_ms=np.array([0, 1]),
        ...     entities=np.array([[7], [7]], np.uint64),
        ...     numbers=np.empty((2, 0)),
        ...     hashed=np.empty((2, 0), np.uint64),
        ...     delta=np.zeros(2, np.int8),
        ... )
        >>> windows.fold(two).tolist()
        [[0.0], [1.0]]
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.clock_ms: int | None = None  # of the newest folded item
        self._columns = [_Column(layout) for layout in plan.layouts]

    def fold(self, batch: Batch) -> NDArray[np.float64]:
        """Move the state forward over a batch.

        Args:
            batch: items in the one order.

        Returns:
            Shape (n_events, n_features): the features of each event before it is added. Missing is one NaN.

        Raises:
            ValueError: the batch does not fit the plan, or its clock runs backwards.
        """
        batch = self._checked(batch)
        out = np.full((int(np.count_nonzero(batch.is_event)), len(self.plan.names)), np.nan)
        if len(batch.is_event):
            for number, column in enumerate(self._columns):
                column.fold(number, batch, out)
            self.clock_ms = int(batch.clock_ms[-1])
        return out

    def sweep(self, clock_ms: int) -> int:
        """Drop the entities that are idle as of `clock_ms`, or of the newest folded item where that is older.

        What is dropped would be reset at its next event anyway: no feature ever changes by it.

        Returns:
            How many entities were dropped.
        """
        if self.clock_ms is None:
            return 0
        return sum(column.sweep(min(clock_ms, self.clock_ms)) for column in self._columns)

    @property
    def n_entities(self) -> tuple[int, ...]:
        """Per entity column: how many entities are held."""
        return tuple(column.used for column in self._columns)

    @property
    def nbytes(self) -> int:
        """Bytes of memory set aside."""
        return sum(column.nbytes for column in self._columns)

    @property
    def late_dropped(self) -> dict[str, int]:
        """Per entity and window: events whose pane was gone; they had their features, but were not added."""
        return {
            **self._counted(self.plan.window_names, [column.counters.late for column in self._columns]),
            **self._counted(self.plan.label_window_names, [column.counters.label_late for column in self._columns]),
        }

    @property
    def labels_outside(self) -> dict[str, int]:
        """Per entity and label window: reports whose pane was not held (unknown or idle entity, too old, too new)."""
        return self._counted(self.plan.label_window_names, [column.counters.labels_outside for column in self._columns])

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """A copy of the state, as plain arrays.

        It depends only on what was folded: idle entities are left out, the rest stand by key, and what cannot be
        read again is zero, so the cut into batches and the moments of sweeps do not show in it.
        """
        arrays: dict[str, NDArray[Any]] = {
            "digest": np.frombuffer(bytes.fromhex(self.plan.digest), np.uint8),
            "clock_ms": np.array([] if self.clock_ms is None else [self.clock_ms], np.int64),
        }
        for number, column in enumerate(self._columns):
            for name, array in column.snapshot(self.clock_ms).items():
                arrays[f"{number}.{name}"] = array
        return arrays

    @classmethod
    def restore(cls, plan: Plan, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The state a snapshot was taken of: what is folded from here on is bit-equal to never having stopped.

        Raises:
            RestoreError: the snapshot was taken under another definition of the features.
        """
        digest = arrays["digest"].tobytes().hex()
        if digest != plan.digest:
            raise RestoreError(
                f"the snapshot must be of feature definition {plan.digest[:12]}, however: {digest[:12]}; "
                "rebuild the state from the input, or go back to the stream file it was taken with"
            )
        windows = cls(plan)
        clock = arrays["clock_ms"]
        windows.clock_ms = int(clock[0]) if len(clock) else None
        for number, column in enumerate(windows._columns):
            column.restore({name: arrays[f"{number}.{name}"] for name in _Column.SAVED})
        return windows

    def _counted(self, names: Sequence[Sequence[str]], counts: Sequence[NDArray[np.int64]]) -> dict[str, int]:
        """Counters by name."""
        return dict(zip(chain(*names), (int(count) for count in chain(*counts)), strict=True))

    def _checked(self, batch: Batch) -> Batch:
        n = len(batch.is_event)
        plan = self.plan
        shapes = ((n,), (n,), (n,), (n, len(plan.entities)), (n, len(plan.numbers)), (n, len(plan.hashed)), (n,))
        types = (np.bool_, np.int64, np.int64, np.uint64, np.float64, np.uint64, np.int8)
        for name, column, shape, kind in zip(Batch._fields, batch, shapes, types, strict=True):
            if column.shape != shape or column.dtype != kind:
                raise ValueError(
                    f"{name} must be {np.dtype(kind)} {shape}, however: {column.dtype} {column.shape}; "
                    "build the batch with the plan's own columns"
                )
        clock = batch.clock_ms
        if n and (np.any(clock[1:] < clock[:-1]) or (self.clock_ms is not None and clock[0] < self.clock_ms)):
            raise ValueError(
                f"clock_ms must not run backwards, however: it does after {self.clock_ms}; "
                "fold items in the one order, with their effective time"
            )
        if n and (abs(int(batch.time_ms.min())) > _FARTHEST_MS or abs(int(batch.time_ms.max())) > _FARTHEST_MS):
            raise ValueError("time_ms must be within 2^53 ms of 1970; let the contract refuse such events")
        return Batch(*(np.ascontiguousarray(column) for column in batch))


class _Column:
    """The state of one entity column: rows of words, and a hash table from key to row."""

    SAVED = ("keys", "words", *Counters._fields)

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        n, n_label = len(layout.windows), len(layout.label_windows)
        self.counters = Counters(*(np.zeros(size, np.int64) for size in (n, n_label, n_label)))
        self.used = 0
        self._hold(np.empty(0, np.uint64), np.empty((0, layout.stride), np.uint64), _FIRST_SLOTS)

    @property
    def rows(self) -> NDArray[np.uint64]:
        """Shape (used, stride): the row of each slot."""
        return self.memory.words.reshape(-1, self.layout.stride)[: self.used]

    @property
    def nbytes(self) -> int:
        return self.memory.words.nbytes + self.keys.nbytes + self.table.nbytes

    def fold(self, number: int, batch: Batch, out: NDArray[np.float64]) -> None:
        if not len(self.layout.outputs) and not len(self.layout.distincts):
            return  # no feature is about this entity
        done = row = 0
        while True:
            done, row, self.used = kernel.fold(
                done, row, number, batch, self.table, self.keys, self.used, self.memory, self.layout, self.counters, out
            )
            if done == len(batch.is_event):
                return
            self._hold(self.keys, self.rows, 2 * len(self.keys))

    def sweep(self, clock_ms: int) -> int:
        awake = self._awake(clock_ms)
        dropped = self.used - len(awake)
        if dropped:
            keys, rows = self.keys[awake], self.rows[awake]
            self.used = len(awake)
            self._hold(keys, rows, _slots(self.used))
        return dropped

    def snapshot(self, clock_ms: int | None) -> dict[str, NDArray[Any]]:
        awake = np.empty(0, np.int64) if clock_ms is None else self._awake(clock_ms)
        awake = awake[np.argsort(self.keys[awake])]
        words = self.rows[awake].reshape(-1)
        kernel.clear_dead_panes(words, self.layout.stride, self.layout.windows)
        return dict(zip(self.SAVED, (self.keys[awake], words, *(c.copy() for c in self.counters)), strict=True))

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.used = len(arrays["keys"])
        self._hold(arrays["keys"], arrays["words"].reshape(-1, self.layout.stride), _slots(self.used))
        self.counters = Counters(*(arrays[name].copy() for name in Counters._fields))

    def _awake(self, clock_ms: int) -> NDArray[np.int64]:
        """Slots whose entity is not idle."""
        return np.flatnonzero(clock_ms - self.rows[:, 0].view(np.int64) <= self.layout.idle_ms)

    def _hold(self, keys: NDArray[np.uint64], rows: NDArray[np.uint64], slots: int) -> None:
        """Make room for `slots` entities, of which the first `used` are given."""
        words = np.zeros(slots * self.layout.stride, np.uint64)
        words.reshape(-1, self.layout.stride)[: self.used] = rows
        self.memory = Memory.of(words)
        self.keys = np.zeros(slots, np.uint64)
        self.keys[: self.used] = keys[: self.used]
        self.table = np.zeros((2 * slots, 2), np.uint64)
        kernel.index(self.table, self.keys[: self.used])


def _slots(used: int) -> int:
    """Room for `used` entities and as many again, roughly."""
    return max(_FIRST_SLOTS, 1 << used.bit_length())
