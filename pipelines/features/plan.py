"""The plan of the window features: which panes, accumulators and words their state needs.

A window of width w consists of n panes of width w / n by event time. An event sees the n whole panes before its own
pane, and the earlier events in its own (a "sawtooth" window: its width is between w and w + w / n).
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipelines.contracts.feature_rules import Panes, fault_of
from pipelines.contracts.stream import (
    DAY_MS,
    HABIT_STATS,
    LABEL_HISTORY_STATS,
    LABEL_STATS,
    LAST_STATS,
    LIFETIME_STATS,
    Feature,
    Reports,
)
from pipelines.errors import StreamFileError
from pipelines.features import facts, layout, stats
from pipelines.features.blocks import GRANULE, sizes_up_to
from pipelines.features.layout import Layout
from pipelines.features.panes import DISTINCT_BITS

KERNEL_VERSION = 3  # increase it if the same items can result in other features
LIFETIME_MS = 400 * DAY_MS
REPORT_MS = 30 * DAY_MS  # a label history takes labels that come no later than this after the maturity
_ACCUMULATORS = {
    "sum": ("sum",),
    "mean": ("sum",),
    "std": ("sum", "square"),
    "min": ("low",),
    "max": ("high",),
    "ratio": ("sum",),
    "zscore": ("sum", "square"),
    "above": (),
    "wmean": ("sum",),
    "wratio": ("sum",),
}
_STATS = {
    "count": stats.COUNT,
    "since_last": stats.SINCE_LAST,
    "sum": stats.SUM,
    "mean": stats.MEAN,
    "std": stats.STD,
    "min": stats.MIN,
    "max": stats.MAX,
    "ratio": stats.RATIO,
    "zscore": stats.ZSCORE,
    "fraud_rate": stats.FRAUD_RATE,
    "fraud_count": stats.FRAUD_COUNT,
    "labelled_count": stats.LABELLED_COUNT,
    "smoothed_fraud_rate": stats.SMOOTHED_FRAUD_RATE,
    "since_fraud": stats.SINCE_FRAUD,
    "since_legit": stats.SINCE_LEGIT,
    "fraud_run": stats.FRAUD_RUN,
    "fraud_run_age": stats.FRAUD_RUN_AGE,
    "above": stats.ABOVE,
    "wmean": stats.MEAN,
    "wratio": stats.RATIO,
    "last_age": stats.LAST_AGE,
    "last_hour": stats.LAST_HOUR,
    "last_value": stats.LAST_VALUE,
}
# A number as it is (None), or cut at the limit of the habit with this factor.
_Cut = tuple[str, float | None]


@dataclass(frozen=True)
class FeaturePlan:
    """The features of a stream, compiled to a memory layout.

    Example:
        >>> features = [Feature("customer.count.1h", "count", "customer", None, 3_600_000)]
        >>> plan = FeaturePlan.of(features, entities=["customer"], numbers=["amount"], hashed=[], maturity_ms=None)
        >>> plan.names, plan.row_bytes, plan.block_bytes, plan.idle_ms
        (('customer.count.1h',), (56,), (112,), (3900000,))
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
        reports: Reports = "frauds",
        lifetime_ms: int = LIFETIME_MS,
    ) -> Self:
        """Compile features.

        Args:
            features: entity features; their order is the order of the columns.
            entities: names of the columns of `FoldInput.entities`.
            numbers: names of the columns of `FoldInput.numbers`.
            hashed: names of the columns of `FoldInput.hashed`.
            maturity_ms: time after the event at which its label is final; None if the stream has no labels.
            reports: what labels report, as in `Labels`.
            lifetime_ms: time without an event after which an entity's all-time features start over; at least its
                longest window.

        Raises:
            StreamFileError: a feature cannot be computed.
        """
        reported = None if maturity_ms is None else reports
        for f in features:
            if fault := fault_of(f, entities=entities, numbers=numbers, hashed=hashed, reports=reported):
                raise StreamFileError(f"feature {f.name!r}: {fault}")
        definition = [
            KERNEL_VERSION,
            [[f.name, f.stat, f.entity, f.field, f.window_ms, _cut(f)[1], f.last] for f in features],
            [list(entities), list(numbers), list(hashed)],
            maturity_ms,
            reported,
            lifetime_ms,
        ]
        layouts = tuple(
            _lay_out(
                [(column, f) for column, f in enumerate(features) if f.entity == entity],
                numbers,
                hashed,
                maturity_ms or 0,
                lifetime_ms,
                counts_labelled=reports == "both",
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
        """Per entity column: time without an event after which the windows of an entity are reset."""
        return tuple(layout.idle_ms for layout in self.layouts)

    @property
    def lifetime_ms(self) -> tuple[int, ...]:
        """Per entity column: time without an event after which an entity is forgotten."""
        return tuple(layout.lifetime_ms for layout in self.layouts)

    @property
    def report_memory_ms(self) -> int:
        """How long after its event a label still changes a feature, ms of the clock."""
        told = [layout.maturity_ms + REPORT_MS for layout in self.layouts if len(layout.histories)]
        return max([*self.idle_ms, *told], default=DAY_MS)

    @property
    def row_bytes(self) -> tuple[int, ...]:
        """Per entity column: size of a row, without its share of the hash table."""
        return tuple(8 * layout.stride for layout in self.layouts)

    @property
    def block_bytes(self) -> tuple[int, ...]:
        """Per entity column: panes and counters of an entity that has all of them."""
        return tuple(8 * layout.block_words for layout in self.layouts)


class _RowPlan:
    """Lays out the row of one entity column, section by section."""

    def __init__(self, features: Sequence[tuple[int, Feature]], maturity_ms: int, *, counts_labelled: bool) -> None:
        self.features = features  # with the output column of each
        self.maturity_ms, self.counts_labelled = maturity_ms, counts_labelled
        self.words = self.lifetime_words = layout.HEADER_WORDS
        self.block_words = 0
        self.spans_ms: list[int] = []  # how long each window needs its entity
        self.windows: list[tuple[int, ...]] = []
        self.numbers: list[tuple[int, ...]] = []
        self.distincts: list[tuple[int, ...]] = []
        self.label_windows: list[tuple[int, ...]] = []
        self.lifetimes: list[tuple[int, ...]] = []
        self.habits: dict[_Cut, tuple[int, ...]] = {}
        self.tallies: list[tuple[int, ...]] = []
        self.histories: list[tuple[int, ...]] = []
        self.rings: list[tuple[int, ...]] = []
        self.kept: list[tuple[int, ...]] = []
        self.lasts: list[tuple[int, ...]] = []
        self.outputs: list[tuple[int, ...]] = []

    def add_lifetimes(self, number_columns: Mapping[str, int], hashed_columns: Mapping[str, int]) -> None:
        """Lifetime facts: words for each number and habit, tallies, label history, last events."""
        habitual = [(c, f) for c, f in self.features if f.stat in HABIT_STATS]
        tallied = [(c, f) for c, f in self.features if f.stat in LIFETIME_STATS]
        told = [(c, f) for c, f in self.features if f.stat in LABEL_HISTORY_STATS]
        last = [(c, f) for c, f in self.features if f.stat in LAST_STATS]
        apart = habitual + tallied + told + last
        others = [(c, f) for c, f in self.features if f.window_ms is None and (c, f) not in apart]
        for field in _fields(f for _, f in others):
            column = -1 if field is None else number_columns[field]
            self.lifetimes.append((self.words, column, *self._emit((c, f) for c, f in others if f.field == field)))
            self.words += 0 if field is None else 3
        for cut in sorted({_cut(f) for _, f in habitual}):
            all_time = [(c, f) for c, f in habitual if f.window_ms is None and _cut(f) == cut]
            self.habits[cut] = (self.words, number_columns[cut[0]], *self._emit(all_time))
            self.words += 2
        count = 2 * (self.words + len(tallied))
        for output, f in tallied:
            column, cells = (-1, facts.HOURS) if f.field is None else (hashed_columns[f.field], facts.SHARE_CELLS)
            self.tallies.append((self.words, count + len(self.tallies), column, output))
            self.words += 1
            self.block_words += cells // 4
        self.words += (len(tallied) + 1) // 2
        if told:
            self.histories.append((self.words, *self._emit(told)))
            self.words += facts.HISTORY_WORDS
        if last:
            self._add_last_events(last, number_columns)
        self.lifetime_words = self.words

    def _add_last_events(self, features: Sequence[tuple[int, Feature]], number_columns: Mapping[str, int]) -> None:
        """A ring of the last events: for each its time and the numbers that the features need, 8 bytes each."""
        fields = [field for field in _fields(f for _, f in features) if field is not None]
        self.kept = [(number_columns[field], 1 + place) for place, field in enumerate(fields)]
        at = {None: 0} | {field: at for field, (_, at) in zip(fields, self.kept, strict=True)}
        self.lasts = [(_STATS[f.stat], f.last, at[f.field], column) for column, f in features]
        most, words = max(f.last for _, f in features), 1 + len(fields)
        self.rings = [(self.words, most, words)]
        self.words += most * words

    def add_window(self, window_ms: int, number_columns: Mapping[str, int], hashed_columns: Mapping[str, int]) -> None:
        """A window over events: a ring of panes with the accumulators that the features need."""
        here = [(c, f) for c, f in self.features if f.window_ms == window_ms and f.stat not in LABEL_STATS]
        if not here:
            return
        panes = Panes.of(window_ms)
        counts = self._emit((c, f) for c, f in here if f.stat == "count")
        valued = [(c, f) for c, f in here if f.stat in _ACCUMULATORS]
        cuts = sorted({_cut(f) for _, f in valued}, key=str)
        surprised = {_cut(f) for _, f in valued if f.stat == "above"}
        halves = 1 + len(cuts) + len(surprised)  # counts are half words
        words, half = (halves + 1) // 2, 1
        first_number, first_distinct = len(self.numbers), len(self.distincts)
        for cut in cuts:
            of_cut = [(c, f) for c, f in valued if _cut(f) == cut]
            needed = {name for _, f in of_cut for name in _ACCUMULATORS[f.stat]}
            offsets = []
            for name in ("sum", "square", "low", "high"):
                offsets.append(words if name in needed else -1)
                words += name in needed
            habit = list(self.habits).index(cut) if cut in self.habits else -1
            above = half + 1 if cut in surprised else -1
            self.numbers.append((number_columns[cut[0]], habit, half, above, *offsets, *self._emit(of_cut)))
            half += 1 + (cut in surprised)
        for field in _fields(f for _, f in here if f.stat == "distinct"):
            for column, f in here:
                if f.stat == "distinct" and f.field == field:
                    self.distincts.append((hashed_columns[str(field)], words, column))
            words += DISTINCT_BITS // 64
        ring = panes.count + 2
        ranges = (*counts, first_number, len(self.numbers), first_distinct, len(self.distincts))
        self.windows.append((self.words, panes.width_ms, panes.count, ring, words, *ranges))
        self.words += 1
        self.block_words += ring * words
        self.spans_ms.append(window_ms + panes.width_ms)

    def add_label_window(self, window_ms: int) -> None:
        """A window over events old enough to have their labels. Panes are kept until then."""
        wanted = [(c, f) for c, f in self.features if f.window_ms == window_ms and f.stat in LABEL_STATS]
        if not wanted:
            return
        panes = Panes.of(window_ms)
        ring = panes.count + -(-self.maturity_ms // panes.width_ms) + 2
        mask_words = -(-ring // 64)
        self.label_windows.append((self.words, mask_words, panes.width_ms, panes.count, ring, *self._emit(wanted)))
        self.words += mask_words
        self.block_words += ring
        self.spans_ms.append(window_ms + self.maturity_ms + 2 * panes.width_ms)

    @property
    def has_lifetime_facts(self) -> bool:
        """Whether a feature needs the entity's past beyond its windows."""
        return bool(self.lifetimes or self.habits or self.tallies or self.histories or self.rings)

    def layout(self, lifetime_ms: int) -> Layout:
        """The finished layout."""
        idle_ms = max(self.spans_ms, default=lifetime_ms)
        sections = len(self.tallies) + len(self.windows) + len(self.label_windows)
        return Layout(
            stride=self.words,
            block_words=self.block_words,
            spare_words=(sections + 2) * int(sizes_up_to(self.block_words)[-1]) + GRANULE,
            idle_ms=idle_ms,
            lifetime_ms=max(idle_ms, lifetime_ms) if self.has_lifetime_facts else idle_ms,
            lifetime_words=self.lifetime_words,
            maturity_ms=self.maturity_ms,
            counts_labelled=self.counts_labelled,
            windows=np.array(self.windows, layout.WINDOW),
            numbers=np.array(self.numbers, layout.NUMBER),
            distincts=np.array(self.distincts, layout.DISTINCT_COUNT),
            label_windows=np.array(self.label_windows, layout.LABEL_WINDOW),
            lifetimes=np.array(self.lifetimes, layout.LIFETIME),
            habits=np.array(list(self.habits.values()), layout.HABIT),
            factors=np.array([factor for _, factor in self.habits], np.float64),
            tallies=np.array(self.tallies, layout.TALLY),
            histories=np.array(self.histories, layout.HISTORY),
            rings=np.array(self.rings, layout.RING),
            kept=np.array(self.kept, layout.KEPT),
            lasts=np.array(self.lasts, layout.LAST),
            outputs=np.array(self.outputs, layout.OUTPUT),
            estimates=_estimates(),
        )

    def _emit(self, wanted: Iterable[tuple[int, Feature]]) -> tuple[int, int]:
        """Append features to the outputs; returns their range."""
        first = len(self.outputs)
        self.outputs.extend((_STATS[f.stat], column) for column, f in wanted)
        return first, len(self.outputs)


def _lay_out(
    features: Sequence[tuple[int, Feature]],
    numbers: Sequence[str],
    hashed: Sequence[str],
    maturity_ms: int,
    lifetime_ms: int,
    *,
    counts_labelled: bool,
) -> Layout:
    number_columns = {name: column for column, name in enumerate(numbers)}
    hashed_columns = {name: column for column, name in enumerate(hashed)}
    row = _RowPlan(features, maturity_ms, counts_labelled=counts_labelled)
    row.add_lifetimes(number_columns, hashed_columns)
    widths = sorted({f.window_ms for _, f in features if f.window_ms is not None})
    for window_ms in widths:
        row.add_window(window_ms, number_columns, hashed_columns)
    for window_ms in widths:
        row.add_label_window(window_ms)
    return row.layout(lifetime_ms)


def _cut(feature: Feature) -> _Cut:
    """The number of a feature: its field, and the factor of its habit."""
    return str(feature.field), feature.factor if feature.stat in HABIT_STATS else None


def _fields(features: Iterable[Feature]) -> list[str | None]:
    return sorted({f.field for f in features}, key=str)


def _estimates() -> NDArray[np.float64]:
    """Number of distinct values by number of zero bits: linear counting (Whang et al. 1990), with at least one zero."""
    m = DISTINCT_BITS
    return np.array([m * math.log(m / max(zeros, 1)) for zeros in range(m + 1)])


def _named(entity: str, windows: NDArray[np.void]) -> list[str]:
    return [f"{entity}, {window['panes'] * window['pane_ms']} ms" for window in windows]
