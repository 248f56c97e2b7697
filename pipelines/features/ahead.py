"""Compiles the kernels before events wait for them."""

import logging
from functools import cache

import numpy as np

from pipelines.contracts.stream import HOUR_MS, Feature
from pipelines.features import packing
from pipelines.features.duplicates import Duplicates
from pipelines.features.entities import EntityRows
from pipelines.features.id_log import hash_ids
from pipelines.features.layout import FoldInput
from pipelines.features.pieces import Pieces
from pipelines.features.plan import FeaturePlan
from pipelines.features.reports import Reports

log = logging.getLogger(__name__)


@cache
def compile_ahead() -> None:
    """Compile every kernel, or load it from the cache on disk; they are the same for all streams.

    Each would otherwise be compiled at its first call, while a scorer runs: those of a snapshot, of making room, and of
    the first sweep a minute after the start.
    """
    log.info("loading the compiled kernels; the first start of a version compiles them, for up to half a minute")
    _compile_windows()
    ids, zeros = hash_ids(["a", "b", "c"], b"").copy(), np.zeros(3, np.int64)  # a read-only array has another type
    events, labels = Duplicates(1, 3, smallest=2), Reports(1, 3, smallest=2)  # the third needs another segment
    events.first_offsets(ids, np.zeros(3, np.int32), zeros, zeros)
    labels.changes(ids, zeros, zeros, np.ones(3, np.int8), zeros)
    Duplicates(1, 3, smallest=2).restore(events.snapshot(0))


def _compile_windows() -> None:
    feature = Feature("c.count.1h", "count", "c", None, HOUR_MS)
    plan = FeaturePlan.of([feature], entities=["c"], numbers=[], hashed=[], maturity_ms=None)
    key, slot = np.ones((1, 1), np.uint64), np.zeros(1, np.int64)
    zero, nothing, no_change = np.zeros(1, np.int64), np.empty((1, 0)), np.zeros(1, np.int8)
    event = FoldInput(np.ones(1, np.bool_), zero, zero, key, nothing, nothing.view(np.uint64), no_change, no_change)
    column, restored = EntityRows(plan.layouts[0]), EntityRows(plan.layouts[0])
    column.fold(0, event, np.empty((1, 1)))
    column.find_waiting(key[:, 0], np.ones(1, np.bool_), slot)
    column.sweep(0)
    copied = {name: Pieces.of(array) for name, array in (column.packed(slot, 0) | column.counted()).items()}
    restored.restore(copied)
    restored.apply(copied)
    packing.move_some_up(0, 0, column.memory, column.cells, column.layout)
