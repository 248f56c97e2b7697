"""Drift without labels: which fields of the newest events are unlike those that the model was trained on.

The reference is cut into blocks of the same time as the newest events, so that what differs from day to day is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from models.cells import CellCoding
from models.errors import ModelError
from models.evaluation import stability_index
from models.net.batches import surprises_of
from models.net.expectation import Expectation
from models.table import Table

BLOCKS, MIN_BLOCKS = 14, 7  # a week at least, with blocks of a day: weekends differ
MIN_EVENTS, MIN_IN_BLOCK = 500, 200  # of the newest events, and of a block to be compared with
MAX_READ = 4_000  # events of a block that are read, evenly
N_BINS, MAX_VALUES = 10, 20
TIMES = 3.0  # a figure must be so many times as far off as that of any block but one, which may be odd itself
MIN_STABILITY, MIN_NATS = 0.1, 0.05  # and at least so far: less is no reason to do anything
CLIP = 0.995  # quantile at which surprises are cut, so that few odd events do not decide
SCORE = "score"


class TooFewEventsError(ModelError):
    """There are too few events to tell a drift from chance."""


@dataclass(frozen=True)
class Moved:
    """One field, or the score, now and in the reference.

    Args:
        name: the field; `score` for the scores.
        stability: population stability index of the newest events to the reference.
        stability_limit: above it, the field has moved.
        distance: Wasserstein distance in standard deviations of the reference; None for a category.
        surprise: how much more (or less) surprising the field is to the encoder, in nats; None if it is not predicted.
        surprise_limit: beyond it, either way, the field has moved.
    """

    name: str
    stability: float
    stability_limit: float
    distance: float | None = None
    surprise: float | None = None
    surprise_limit: float = MIN_NATS

    @property
    def severity(self) -> float:
        """How far it has moved, as a multiple of the limit; above 1 it has moved.

        >>> Moved("amount", 0.3, 0.1).severity
        3.0
        """
        surprise = 0.0 if self.surprise is None else abs(self.surprise) / self.surprise_limit
        return round(max(self.stability / self.stability_limit, surprise), 6)

    @property
    def has_moved(self) -> bool:
        """Whether it is farther off than chance and the days of the week explain."""
        return self.severity > 1


@dataclass(frozen=True)
class Drift:
    """What moved: fields and the score, the farthest first.

    Args:
        events: number of newest events.
        since_ms, until_ms: their event times.
        reference: number of events of the reference.
        reference_since_ms, reference_until_ms: their event times.
    """

    moved: tuple[Moved, ...]
    events: int
    since_ms: int
    until_ms: int
    reference: int
    reference_since_ms: int
    reference_until_ms: int

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields that have moved, the farthest first."""
        return tuple(one.name for one in self.moved if one.has_moved and one.name != SCORE)

    @property
    def has_drifted(self) -> bool:
        """Whether a field or the score has moved."""
        return any(one.has_moved for one in self.moved)


def drift(
    network: Expectation,
    coding: CellCoding,
    score: Callable[[Table], NDArray[np.float32]],
    past: Table,
    now: Table,
    *,
    width_ms: int,
) -> Drift:
    """Compare the newest events with those before.

    Args:
        network, coding: the pretrained encoder; it gives the surprise of each field with the field hidden.
        score: scores of a table, **shape (n,)**.
        past: the events of the reference, in time order; of these the newest `BLOCKS` times `width_ms`.
        now: the newest events, in time order.
        width_ms: time that `now` covers, and each block of the reference.

    Raises:
        TooFewEventsError: `now` has fewer than `MIN_EVENTS`, or fewer than `MIN_BLOCKS` blocks have `MIN_IN_BLOCK`.

    Source: population stability index (Siddiqi, 2006); Wasserstein distance (scipy). That the prediction error of a
    self-supervised model reveals a shift without labels: Rabanser et al., Failing Loudly (NeurIPS 2019).
    """
    blocks = [block for block in _blocks(past, width_ms) if len(block) >= MIN_IN_BLOCK]
    if len(now) < MIN_EVENTS or len(blocks) < MIN_BLOCKS:
        raise TooFewEventsError(
            f"{len(now):,} newest events, and {len(blocks)} spans of their length with {MIN_IN_BLOCK} before them: "
            f"{MIN_EVENTS:,} and {MIN_BLOCKS} are needed to tell a drift from chance; take another length"
        )
    parts = [_even(part) for part in (*blocks, now)]
    nats = [surprises_of(network, coding.cells(part.arranged(coding.columns))) for part in parts]
    scores = [score(part) for part in parts]
    predicted = {field.name: i for i, field in enumerate(network.fields)}
    found = []
    for name, at, is_number in _judged(now):
        values = [_column(part, at) for part in parts]
        surprise = [one[:, predicted[name]] for one in nats] if name in predicted else None
        found.append(_moved(name, values, surprise, is_number=is_number))
    found.append(_moved(SCORE, [one.astype(np.float64) for one in scores], None, is_number=True))
    return Drift(
        tuple(sorted(found, key=lambda one: -one.severity)),
        events=len(now),
        since_ms=int(now.time_ms[0]),
        until_ms=int(now.time_ms[-1]),
        reference=sum(len(block) for block in blocks),
        reference_since_ms=int(blocks[0].time_ms[0]),
        reference_until_ms=int(blocks[-1].time_ms[-1]),
    )


def _blocks(past: Table, width_ms: int) -> list[Table]:
    """The newest spans of the reference, the oldest first."""
    end_ms = int(past.time_ms[-1]) + 1 if len(past) else 0
    edges = np.searchsorted(past.time_ms, [end_ms - i * width_ms for i in range(BLOCKS, -1, -1)])
    return [past.take(slice(first, end)) for first, end in pairwise(edges.tolist())]


def _judged(table: Table) -> list[tuple[str, int, bool]]:
    """Name, place and kind of the columns with values of the event itself, and the hour. The weekday differs anyway."""
    return [
        (column.name, at, column.kind == "numeric")
        for at, column in enumerate(table.columns)
        if not column.label_fed and (column.of == column.name or column.stat == "hour")
    ]


def _column(table: Table, at: int) -> NDArray:
    if at < table.d_num:
        return np.asarray(table.numeric[:, at] if isinstance(table.numeric, np.ndarray) else table.numeric.column(at))
    matrix, at = table.categorical, at - table.d_num
    return np.asarray(matrix[:, at] if isinstance(matrix, np.ndarray) else matrix.column(at))


def _even(table: Table) -> Table:
    """At most `MAX_READ` of the rows, evenly chosen."""
    return table.take(slice(0, len(table), -(-len(table) // MAX_READ)))


def _moved(
    name: str, values: Sequence[NDArray], surprise: Sequence[NDArray[np.float32]] | None, *, is_number: bool
) -> Moved:
    """Compare the last part with those before it, by how far each of these is from all of them."""
    counts = _counts(values, is_number=is_number)
    whole = counts[:-1].sum(axis=0)
    usual = [stability_index(whole - one, one) for one in counts[:-1]]
    shift, limit = _shift(surprise) if surprise is not None else (None, MIN_NATS)
    return Moved(
        name,
        stability=stability_index(whole, counts[-1]),
        stability_limit=max(MIN_STABILITY, TIMES * sorted(usual)[-2]),
        distance=_distance(np.concatenate(values[:-1]), values[-1]) if is_number else None,
        surprise=shift,
        surprise_limit=limit,
    )


def _counts(parts: Sequence[NDArray], *, is_number: bool) -> NDArray[np.float64]:
    """Events of each part by bin, the last of which is for missing values: **shape (n_parts, n_bins)**."""
    before = np.concatenate(parts[:-1])
    if is_number:
        seen = before[np.isfinite(before)]
        edges = np.unique(np.quantile(seen, np.linspace(0, 1, N_BINS + 1)[1:-1])) if len(seen) else np.zeros(0)
        n = len(edges) + 1
        bins = [np.where(np.isfinite(one), np.searchsorted(edges, one, side="right"), n) for one in parts]
    else:
        known, often = np.unique(before[before != 0], return_counts=True)
        top = np.sort(known[np.argsort(-often, kind="stable")[:MAX_VALUES]])
        n = len(top) + 1  # the last one: all other values
        bins = [np.where(one == 0, n, _place(top, one)) for one in parts]
    return np.array([np.bincount(one, minlength=n + 1) for one in bins], float)


def _place(top: NDArray, values: NDArray) -> NDArray[np.int64]:
    at = np.minimum(np.searchsorted(top, values), max(len(top) - 1, 0))
    return np.where(top[at] == values, at, len(top)) if len(top) else np.zeros(len(values), np.int64)


def _shift(parts: Sequence[NDArray[np.float32]]) -> tuple[float | None, float]:
    """How much more surprising the last part is, and the limit for it."""
    before = np.concatenate(parts[:-1])
    if not np.isfinite(before).any() or not np.isfinite(parts[-1]).any():
        return None, MIN_NATS
    cut = float(np.nanquantile(before, CLIP))
    means = [float(np.nanmean(np.minimum(one, cut))) for one in parts if np.isfinite(one).any()]
    usual = float(np.nanmean(np.minimum(before, cut)))
    return means[-1] - usual, max(MIN_NATS, TIMES * sorted([0.0, 0.0, *(abs(one - usual) for one in means[:-1])])[-2])


def _distance(before: NDArray[np.float64], now: NDArray[np.float64]) -> float | None:
    before, now = before[np.isfinite(before)], now[np.isfinite(now)]
    spread = float(before.std()) if len(before) else 0.0
    return float(wasserstein_distance(before, now)) / spread if spread and len(now) else None
