"""Generators of test data; every new kind of input joins here."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from pipelines.contracts.feature_rules import Panes
from pipelines.contracts.stream import Feature, Reports
from pipelines.features.layout import FoldInput
from pipelines.features.plan import FeaturePlan
from tests.pipelines.features.reference import Item

DAY_MS = 86_400_000
WINDOWS_MS = (12, 60, 5_000, 3_600_000, DAY_MS, 2 * DAY_MS, 7 * DAY_MS, 30 * DAY_MS, 60 * DAY_MS)
HABIT_STATS = ("above", "wmean", "wratio")
LABEL_WINDOW_STATS = ("fraud_rate", "fraud_count", "labelled_count", "smoothed_fraud_rate")
LABEL_HISTORY_STATS = ("since_fraud", "since_legit", "fraud_run", "fraud_run_age")
VALUE_STATS = ("sum", "mean", "std", "min", "max", "ratio", "zscore", *HABIT_STATS, *HABIT_STATS)
ALL_TIME_STATS = ("mean", "std", "ratio", "zscore", *HABIT_STATS)


class Case(NamedTuple):
    """A small stream: its features, and items in the one order."""

    features: tuple[Feature, ...]
    entities: tuple[str, ...]
    numbers: tuple[str, ...]
    hashed: tuple[str, ...]
    maturity_ms: int
    items: tuple[Item, ...]
    lifetime_ms: int = 400 * DAY_MS
    reports: Reports = "frauds"

    @property
    def plan(self) -> FeaturePlan:
        """The compiled features."""
        return FeaturePlan.of(
            self.features,
            entities=self.entities,
            numbers=self.numbers,
            hashed=self.hashed,
            maturity_ms=self.maturity_ms,
            reports=self.reports,
            lifetime_ms=self.lifetime_ms,
        )


def batch_of(items: Sequence[Item], *, n_entities: int, n_numbers: int, n_hashed: int) -> FoldInput:
    """Items as the arrays that the kernel takes."""
    n = len(items)
    return FoldInput(
        is_event=np.array([i.delta is None for i in items], bool),
        clock_ms=np.array([i.clock_ms for i in items], np.int64),
        time_ms=np.array([i.time_ms for i in items], np.int64),
        entities=np.array([i.entities for i in items], np.uint64).reshape(n, n_entities),
        numbers=np.array([i.numbers for i in items], np.float64).reshape(n, n_numbers),
        hashed=np.array([i.hashed for i in items], np.uint64).reshape(n, n_hashed),
        delta=np.array([i.delta or 0 for i in items], np.int8),
        legit=np.array([i.legit for i in items], np.int8),
    )


def features(
    entities: Sequence[str],
    numbers: Sequence[str],
    hashed: Sequence[str],
    windows_ms: Sequence[int],
    reports: Reports = "frauds",
) -> st.SearchStrategy[Feature]:
    """Any one feature that these columns allow, named after what it is."""
    entity, window = st.sampled_from(entities), st.sampled_from(windows_ms)
    of_events = st.tuples(st.sampled_from(("count", *LABEL_WINDOW_STATS)), entity, st.none(), window)
    of_labels = LABEL_HISTORY_STATS if reports == "both" else ("since_fraud",)
    whole = st.tuples(st.sampled_from(("count", "since_last", "hour_share", *of_labels)), entity, st.none(), st.none())
    of_values = st.tuples(st.sampled_from(VALUE_STATS), entity, st.sampled_from(numbers), window)
    whole_values = st.tuples(st.sampled_from(ALL_TIME_STATS), entity, st.sampled_from(numbers), st.none())
    others = st.tuples(entity, st.sampled_from(hashed)).filter(lambda pair: pair[0] != pair[1])
    distinct = st.tuples(others, window).map(lambda p: ("distinct", *p[0], p[1]))
    share = others.map(lambda pair: ("share", *pair, None))
    parts = st.one_of(of_events, whole, of_values, of_values, whole_values, distinct, share)
    windows = st.tuples(parts, st.sampled_from((3.0, 1.5)), st.just(0))
    moments = st.tuples(st.sampled_from(("last_age", "last_hour")), entity, st.none(), st.none())
    values = st.tuples(st.just("last_value"), entity, st.sampled_from(numbers), st.none())
    lasts = st.tuples(st.one_of(moments, values), st.just(3.0), st.integers(1, 5))
    return st.one_of(windows, windows, windows, lasts).map(_named)


def _named(parts: tuple[tuple[str, str, str | None, int | None], float, int]) -> Feature:
    (stat, entity, field, window_ms), factor, last = parts
    name = f"{stat}.{entity}.{field}.{window_ms}.{factor}.{last}"
    return Feature(name, stat, entity, field, window_ms, factor, last)


amounts = st.one_of(
    st.sampled_from((0.0, -0.0, 1.0, 0.1, -2.5, 1e15, 1e99, -1e99, 1e200, 5e-324, float("nan"), float("inf"))),
    st.floats(min_value=-1e6, max_value=1e6),
    st.integers(1, 500).map(lambda cents: cents / 100),
)


@st.composite
def cases(draw: st.DrawFn, *, max_items: int = 60) -> Case:
    """A small stream whose items fall on, between and beyond the panes of its windows.

    Late and early events, labels before their event and for events that never were, equal moments, negative
    times, missing ids and values, ids that several columns share, entities that fall idle, or dormant, and return.
    """
    entities = ("customer", "terminal", "card")[: draw(st.integers(1, 3))]
    numbers = ("amount", "balance")[: draw(st.integers(1, 2))]
    hashed = ("country", *entities)
    windows_ms = draw(st.lists(st.sampled_from(WINDOWS_MS), min_size=1, max_size=2, unique=True))
    finest_ms = Panes.of(min(windows_ms)).width_ms
    maturity_ms = draw(st.sampled_from((1, finest_ms, 5 * finest_ms + 1, 12 * finest_ms, 36 * finest_ms)))
    reports: Reports = draw(st.sampled_from(("frauds", "both")))
    changes = ((1, 0), (1, 0), (-1, 0), (0, 0), (0, 1), (1, -1), (-1, 1))[: 7 if reports == "both" else 4]
    wanted = draw(
        st.lists(
            features(entities, numbers, hashed, windows_ms, reports),
            min_size=1,
            max_size=9,
            unique_by=lambda f: f.name,
        )
    )
    pane_ms = Panes.of(draw(st.sampled_from(windows_ms))).width_ms
    lifetime_ms = max(windows_ms) + draw(st.sampled_from((0, 5, 40, 100, 10_000))) * finest_ms
    # What matters happens at the edges of panes: the window's, the ring's, the moment of falling idle.
    whole_panes = st.one_of(st.integers(0, 3), st.integers(0, 75)).map(lambda n: n * pane_ms)
    jump = st.one_of(st.integers(0, 2), whole_panes, whole_panes.map(lambda ms: ms + 1), st.integers(0, 3 * pane_ms))
    shift = st.one_of(st.just(0), jump, jump.map(lambda ms: -ms), jump.map(lambda ms: -ms))
    ids = st.integers(0, draw(st.integers(1, 4)))
    clock_ms = draw(st.sampled_from((0, -3 * pane_ms - 1, 1_700_000_000_000)))
    items: list[Item] = []
    for _ in range(draw(st.integers(0, max_items))):
        clock_ms += draw(jump) if draw(st.booleans()) else 0
        events = [i for i in items if i.delta is None]
        if draw(st.integers(0, 2)) or not items:
            item = Item(
                clock_ms,
                clock_ms + draw(shift),
                tuple(draw(ids) for _ in entities),
                tuple(draw(amounts) for _ in numbers),
                tuple(draw(st.one_of(st.integers(0, 3), st.integers(0, 2**64 - 1))) for _ in hashed),
                None,
            )
        else:
            is_known = draw(st.booleans())
            about = draw(st.sampled_from(events)) if events and is_known else None
            item = Item(
                clock_ms,
                about.time_ms if about else clock_ms + draw(shift),
                about.entities if about else tuple(draw(ids) for _ in entities),
                (float("nan"),) * len(numbers),
                (0,) * len(hashed),
                *draw(st.sampled_from(changes)),
            )
        items.append(item)
    return Case(tuple(wanted), entities, numbers, hashed, maturity_ms, tuple(items), lifetime_ms, reports)
