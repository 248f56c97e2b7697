"""Window features: one compiled definition for replay and live.

Cost and memory per entity are bounded. An event's features depend only on the records before it in the one order, bit
for bit: not on the division into batches, nor on when the state was saved, restored or swept.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import RestoreError
from pipelines.features import kernel
from pipelines.features.layout import Dormant, FoldInput, Layout, Memory, WindowCounters
from pipelines.features.pieces import Pieces
from pipelines.features.plan import FeaturePlan

__all__ = ["FeaturePlan", "FoldInput", "Windows"]

_FARTHEST_MS = 2**53  # keeps pane arithmetic far from overflow
_FIRST_SLOTS = 64


class Windows:
    """The state of every entity.

    Memory is bounded by `FeaturePlan.bytes_per_entity` for each entity active within `idle_ms`, plus
    `FeaturePlan.bytes_per_dormant` for each one active within `lifetime_ms`. A dormant entity that returns still has
    its all-time features.

    Example:
        >>> from pipelines.contracts.stream import Feature
        >>> features = [Feature("c.count.1h", "count", "c", None, 3_600_000)]
        >>> windows = Windows(FeaturePlan.of(features, entities=["c"], numbers=[], hashed=[], maturity_ms=None))
        >>> two = FoldInput(
        ...     is_event=np.array([True, True]),
        ...     clock_ms=np.array([0, 1]),
        ...     time_ms=np.array([0, 1]),
        ...     entities=np.array([[7], [7]], np.uint64),
        ...     numbers=np.empty((2, 0)),
        ...     hashed=np.empty((2, 0), np.uint64),
        ...     delta=np.zeros(2, np.int8),
        ...     legit=np.zeros(2, np.int8),
        ... )
        >>> windows.fold(two).tolist()
        [[0.0], [1.0]]
    """

    def __init__(self, plan: FeaturePlan) -> None:
        self.plan = plan
        self.clock_ms: int | None = None  # of the newest folded item
        self._columns = [_EntityRows(layout) for layout in plan.layouts]

    def fold(self, batch: FoldInput) -> NDArray[np.float64]:
        """Update the state with a batch.

        Args:
            batch: items in the one order.

        Returns:
            Shape (n_events, n_features): the features of each event before it is added. Missing is one NaN.

        Raises:
            ValueError: the batch does not fit the plan, or its clock decreases.
        """
        batch = self._checked(batch)
        out = np.full((int(np.count_nonzero(batch.is_event)), len(self.plan.names)), np.nan)
        if len(batch.is_event):
            for number, column in enumerate(self._columns):
                column.fold(number, batch, out)
            self.clock_ms = int(batch.clock_ms[-1])
        return out

    def sweep(self, clock_ms: int) -> int:
        """Drop the windows of idle entities, as of a time but at most as of the newest folded item.

        No feature changes, because these windows would be reset at the next event of their entity. Lifetime facts are
        kept with the dormant entities until `FeaturePlan.lifetime_ms`.

        Returns:
            Number of entities whose windows were dropped.
        """
        if self.clock_ms is None:
            return 0
        return sum(column.sweep(min(clock_ms, self.clock_ms)) for column in self._columns)

    @property
    def n_entities(self) -> tuple[int, ...]:
        """Per entity column: number of entities with windows."""
        return tuple(column.used for column in self._columns)

    @property
    def n_dormant(self) -> tuple[int, ...]:
        """Per entity column: number of dormant entities (lifetime facts only), as of the last sweep."""
        return tuple(len(column.dormant.keys) for column in self._columns)

    @property
    def nbytes(self) -> int:
        """Allocated memory in bytes."""
        return sum(column.nbytes for column in self._columns)

    @property
    def bytes_by_entity(self) -> dict[str, int]:
        """Per entity column: allocated memory in bytes."""
        return {name: column.nbytes for name, column in zip(self.plan.entities, self._columns, strict=True)}

    @property
    def bytes_by_table(self) -> dict[str, int]:
        """Allocated memory in bytes, per entity column and table."""
        return {
            f"{name}.{table}": size
            for name, column in zip(self.plan.entities, self._columns, strict=True)
            for table, size in column.sizes.items()
        }

    @property
    def late_dropped(self) -> dict[str, int]:
        """Per entity and window: events that were too late to be added. They have features."""
        return {
            **self._counted(self.plan.window_names, [column.counters.late for column in self._columns]),
            **self._counted(self.plan.label_window_names, [column.counters.label_late for column in self._columns]),
        }

    @property
    def labels_outside(self) -> dict[str, int]:
        """Per entity and label window: labels without a pane (unknown entity, too old, too new)."""
        return self._counted(self.plan.label_window_names, [column.counters.labels_outside for column in self._columns])

    def snapshot(self) -> dict[str, Pieces]:
        """A copy of the state, as plain arrays.

        The copy depends only on the items folded, not on their division into batches or the times of sweeps: of idle
        entities it has only the lifetime facts, entities are sorted by key, and unused words are zero.
        """
        arrays: dict[str, NDArray[Any]] = {
            "digest": np.frombuffer(bytes.fromhex(self.plan.digest), np.uint8),
            "clock_ms": np.array([] if self.clock_ms is None else [self.clock_ms], np.int64),
        }
        for number, column in enumerate(self._columns):
            for name, array in column.snapshot(self.clock_ms).items():
                arrays[f"{number}.{name}"] = array
        return {name: Pieces.of(array) for name, array in arrays.items()}

    @classmethod
    def restore(cls, plan: FeaturePlan, arrays: Mapping[str, Pieces]) -> Self:
        """Restore the state from a snapshot; later results are bit-equal to those without a restart.

        Raises:
            RestoreError: the snapshot was taken under another definition of the features.
        """
        digest = arrays["digest"].tobytes().hex()
        if digest != plan.digest:
            raise RestoreError(
                f"the snapshot has feature definition {digest[:12]}; it must be {plan.digest[:12]}; "
                "rebuild the state from the input, or restore the stream file that the snapshot was taken with"
            )
        windows = cls(plan)
        clock = arrays["clock_ms"].whole()
        windows.clock_ms = int(clock[0]) if len(clock) else None
        for number, column in enumerate(windows._columns):
            column.restore({name: arrays[f"{number}.{name}"] for name in _EntityRows.SAVED})
        return windows

    def _counted(self, names: Sequence[Sequence[str]], counts: Sequence[NDArray[np.int64]]) -> dict[str, int]:
        """WindowCounters by name."""
        return dict(zip(chain(*names), (int(count) for count in chain(*counts)), strict=True))

    def _checked(self, batch: FoldInput) -> FoldInput:
        n = len(batch.is_event)
        plan = self.plan
        shapes = (
            (n,),
            (n,),
            (n,),
            (n, len(plan.entities)),
            (n, len(plan.numbers)),
            (n, len(plan.hashed)),
            (n,),
            (n,),
        )
        types = (np.bool_, np.int64, np.int64, np.uint64, np.float64, np.uint64, np.int8, np.int8)
        columns: tuple[NDArray[Any], ...] = tuple(batch)
        for name, column, shape, kind in zip(FoldInput._fields, columns, shapes, types, strict=True):
            if column.shape != shape or column.dtype != kind:
                raise ValueError(
                    f"{name} is {column.dtype} {column.shape}; it must be {np.dtype(kind)} {shape}; "
                    "build the batch from the columns of the plan"
                )
        clock = batch.clock_ms
        if n and (np.any(clock[1:] < clock[:-1]) or (self.clock_ms is not None and clock[0] < self.clock_ms)):
            raise ValueError(
                f"clock_ms decreases after {self.clock_ms}; it must not; "
                "fold items in the order of their effective time"
            )
        if n and (abs(int(batch.time_ms.min())) > _FARTHEST_MS or abs(int(batch.time_ms.max())) > _FARTHEST_MS):
            raise ValueError("time_ms is more than 2^53 ms away from 1970; let the contract refuse such events")
        return FoldInput._make(np.ascontiguousarray(column) for column in columns)


class _EntityRows:
    """The state of one entity column: rows of words, a hash table from key to row, and the dormant entities."""

    SAVED = ("keys", "words", "dormant_keys", "dormant_words", *WindowCounters._fields)

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        n, n_label = len(layout.windows), len(layout.label_windows)
        self.counters = WindowCounters(*(np.zeros(size, np.int64) for size in (n, n_label, n_label)))
        self.used = 0
        self.dormant = Dormant(np.empty(0, np.uint64), np.empty((0, layout.lifetime_words), np.uint64))
        self._hold(np.empty(0, np.uint64), np.empty((0, layout.stride), np.uint64), _FIRST_SLOTS)

    @property
    def rows(self) -> NDArray[np.uint64]:
        """Shape (used, stride): the row of each slot."""
        return self.memory.words.reshape(-1, self.layout.stride)[: self.used]

    @property
    def sizes(self) -> dict[str, int]:
        """Allocated memory in bytes, per table."""
        return {
            "rows": self.memory.words.nbytes,
            "keys": self.keys.nbytes,
            "index": self.table.nbytes,
            "dormant": sum(array.nbytes for array in self.dormant),
        }

    @property
    def nbytes(self) -> int:
        return sum(self.sizes.values())

    def fold(self, number: int, batch: FoldInput, out: NDArray[np.float64]) -> None:
        if not any(map(len, (self.layout.outputs, self.layout.distincts, self.layout.tallies, self.layout.lasts))):
            return  # no feature is about this entity
        if len(self.dormant.keys):
            takes = batch.is_event | bool(len(self.layout.histories))  # labels too, where they are lifetime facts
            self._wake(batch.entities[takes, number])
        done = row = 0
        while True:
            done, row, self.used = kernel.fold(
                done,
                row,
                number,
                batch,
                self.table,
                self.keys,
                self.used,
                self.memory,
                self.layout,
                self.counters,
                out,
            )
            if done == len(batch.is_event):
                return
            self._hold(self.keys, self.rows, 2 * len(self.keys))

    def sweep(self, clock_ms: int) -> int:
        idle_ms = self._idle_ms(clock_ms)
        awake = np.flatnonzero(idle_ms <= self.layout.idle_ms)
        dropped = self.used - len(awake)
        forgotten = np.any(clock_ms - self.dormant.words[:, 0].view(np.int64) > self.layout.lifetime_ms)
        if dropped or forgotten:
            self.dormant = self._asleep(clock_ms)
        if dropped:
            keys, rows = self.keys[awake], self.rows[awake]
            self.used = len(awake)
            self._hold(keys, rows, _slots(self.used))
        return dropped

    def snapshot(self, clock_ms: int | None) -> dict[str, NDArray[Any]]:
        awake, dormant = np.empty(0, np.int64), self.dormant
        if clock_ms is not None:
            awake = np.flatnonzero(self._idle_ms(clock_ms) <= self.layout.idle_ms)
            dormant = self._asleep(clock_ms)
        awake = awake[np.argsort(self.keys[awake])]
        words = self.rows[awake].reshape(-1)
        kernel.clear_dead_panes(words, self.layout.stride, self.layout.windows)
        saved = (self.keys[awake], words, *dormant, *(c.copy() for c in self.counters))
        return dict(zip(self.SAVED, saved, strict=True))

    def restore(self, arrays: Mapping[str, Pieces]) -> None:
        self.used = 0
        keys, words = arrays["keys"].whole(), arrays["words"]
        self._hold(keys, self.rows, _slots(len(keys)))
        words.into(self.memory.words[: words.shape[0]])
        self.used = len(keys)
        self.keys[: self.used] = keys
        kernel.index(self.table, keys, 0)
        self.dormant = Dormant(arrays["dormant_keys"].whole(), arrays["dormant_words"].whole())
        self.counters = WindowCounters(*(arrays[name].whole() for name in WindowCounters._fields))

    def _wake(self, keys: NDArray[np.uint64]) -> None:
        """Give rows with their lifetime facts to those of `keys` that are dormant, before they change."""
        absent = np.empty(len(keys), bool)
        kernel.find_absent(self.table, keys, absent)
        wanted = np.unique(keys[absent])
        places = np.minimum(np.searchsorted(self.dormant.keys, wanted), len(self.dormant.keys) - 1)
        places = places[self.dormant.keys[places] == wanted]
        if not len(places):
            return
        first, used = self.used, self.used + len(places)
        if used > len(self.keys):
            self._hold(self.keys, self.rows, _slots(used))
        self.used = used
        self.keys[first : self.used] = self.dormant.keys[places]
        self.rows[first:, : self.layout.lifetime_words] = self.dormant.words[places]
        kernel.index(self.table, self.keys[: self.used], first)

    def _idle_ms(self, clock_ms: int) -> NDArray[np.int64]:
        """Time since the last event of each entity."""
        return clock_ms - self.rows[:, 0].view(np.int64)

    def _asleep(self, clock_ms: int) -> Dormant:
        """Lifetime facts of the entities that are idle at a time."""
        layout, idle_ms = self.layout, self._idle_ms(clock_ms)
        falling = np.flatnonzero((idle_ms > layout.idle_ms) & (idle_ms <= layout.lifetime_ms))
        kept = clock_ms - self.dormant.words[:, 0].view(np.int64) <= layout.lifetime_ms
        if len(kept):
            kept &= ~np.isin(self.dormant.keys, self.keys[: self.used], kind="sort")  # its row is newer
        keys = np.concatenate([self.dormant.keys[kept], self.keys[falling]])
        order = np.argsort(keys, kind="stable")
        words = np.concatenate([self.dormant.words[kept], self.rows[falling, : layout.lifetime_words]])
        return Dormant(keys[order], words[order])

    def _hold(self, keys: NDArray[np.uint64], rows: NDArray[np.uint64], slots: int) -> None:
        """Allocate rows for `slots` entities, of which the first `used` are in use."""
        words = np.zeros(slots * self.layout.stride, np.uint64)
        words.reshape(-1, self.layout.stride)[: self.used] = rows
        self.memory = Memory.of(words)
        self.keys = np.zeros(slots, np.uint64)
        self.keys[: self.used] = keys[: self.used]
        self.table = np.zeros((2 * slots, 2), np.uint64)
        kernel.index(self.table, self.keys[: self.used], 0)


def _slots(used: int) -> int:
    """Capacity for about twice `used` entities."""
    return max(_FIRST_SLOTS, 1 << used.bit_length())
