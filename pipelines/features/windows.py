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
from pipelines.features.copying import WindowsCopy
from pipelines.features.entities import EntityRows
from pipelines.features.layout import FoldInput
from pipelines.features.pieces import Pieces, joined
from pipelines.features.plan import FeaturePlan

__all__ = ["FeaturePlan", "FoldInput", "Windows"]

_FARTHEST_MS = 2**53  # keeps pane arithmetic far from overflow
_ROWS = 1 << 16  # copied at a time


class Windows:
    """The state of every entity.

    An entity takes `FeaturePlan.row_bytes`, and what it has of panes and counters: at most `FeaturePlan.block_bytes`.
    Of a dormant entity, idle for longer than `idle_ms`, only the lifetime facts are kept; it is forgotten after
    `lifetime_ms`. A dormant entity that returns still has its all-time features.

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
        self._columns = [EntityRows(layout) for layout in plan.layouts]
        self._copies: list[WindowsCopy] = []  # that are not whole yet

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
            self._copies = [copy for copy in self._copies if not copy.is_whole]
            for copy in self._copies:
                copy.before_change(batch.entities)
            for number, column in enumerate(self._columns):
                column.fold(number, batch, out)
            self.clock_ms = int(batch.clock_ms[-1])
        return out

    def sweep(self, clock_ms: int) -> int:
        """Drop the windows of idle entities, as of a time but at most as of the newest folded item.

        Nothing is dropped while a copy is being made.

        No feature changes, because these windows would be reset at the next event of their entity. Lifetime facts are
        kept with the dormant entities until `FeaturePlan.lifetime_ms`.

        Returns:
            Number of entities whose windows were dropped.
        """
        if self.clock_ms is None or not all(copy.is_whole for copy in self._copies):
            return 0
        return sum(column.sweep(min(clock_ms, self.clock_ms)) for column in self._columns)

    @property
    def n_entities(self) -> tuple[int, ...]:
        """Per entity column: number of entities with windows."""
        return tuple(column.awake for column in self._columns)

    @property
    def n_dormant(self) -> tuple[int, ...]:
        """Per entity column: number of dormant entities (lifetime facts only), as of the last sweep."""
        return tuple(column.used - column.awake for column in self._columns)

    @property
    def nbytes(self) -> int:
        """Memory in use in bytes."""
        return sum(column.nbytes for column in self._columns)

    @property
    def bytes_by_entity(self) -> dict[str, int]:
        """Per entity column: memory in use in bytes."""
        return {name: column.nbytes for name, column in zip(self.plan.entities, self._columns, strict=True)}

    @property
    def bytes_by_table(self) -> dict[str, int]:
        """Memory in use in bytes, per entity column and table."""
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

    @property
    def changed_share(self) -> float:
        """Share of the entities that changed since the last whole copy began."""
        used = sum(column.used for column in self._columns)
        return sum(int(column.touched[: column.used].sum()) for column in self._columns) / max(used, 1)

    def copy(self, *, changes: bool = False) -> WindowsCopy:
        """Begin a copy of the state as it is now, to be made in steps; or of what changed since the last whole one.

        It depends only on the items folded, not on their division into batches or the times of sweeps, but for the
        order of entities: of idle ones it has only the lifetime facts, and unused words are zero.
        """
        digest = np.frombuffer(bytes.fromhex(self.plan.digest), np.uint8)
        clock = np.array([] if self.clock_ms is None else [self.clock_ms], np.int64)
        copy = WindowsCopy(self._columns, self.clock_ms, [("digest", digest), ("clock_ms", clock)], changes=changes)
        self._copies.append(copy)
        return copy

    def abandon(self, copy: WindowsCopy) -> None:
        """Give a copy up before it is whole."""
        self._copies = [other for other in self._copies if other is not copy]

    def snapshot(self) -> dict[str, Pieces]:
        """A whole copy."""
        copy = self.copy()
        while not copy.is_whole:
            copy.step(_ROWS)
        return joined(copy.ready)

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
            column.restore({name: arrays[f"{number}.{name}"] for name in EntityRows.SAVED})
        return windows

    def apply(self, arrays: Mapping[str, Pieces]) -> None:
        """Bring a restored state to the moment of a later copy, which has what changed since."""
        clock = arrays["clock_ms"].whole()
        self.clock_ms = int(clock[0]) if len(clock) else None
        for number, column in enumerate(self._columns):
            column.apply({name: arrays[f"{number}.{name}"] for name in EntityRows.SAVED})

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
