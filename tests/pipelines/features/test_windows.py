"""The compiled fold against the slow reference, and what it refuses."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.contracts.stream import LABEL_HISTORY_STATS, Feature, Reports
from pipelines.errors import RestoreError
from pipelines.features import entities
from pipelines.features.layout import BLOCK, FoldInput
from pipelines.features.windows import Windows
from tests.pipelines.features.reference import Item, Reference, tally
from tests.strategies import DAY_MS, Case, batch_of, cases

HOUR_MS = 3_600_000
NAN = float("nan")


def whole(case: Case) -> FoldInput:
    return batch_of(case.items, n_entities=len(case.entities), n_numbers=len(case.numbers), n_hashed=len(case.hashed))


def reference_of(case: Case) -> tuple[Reference, NDArray[np.float64]]:
    reference = Reference(*case[:5], case.lifetime_ms, case.reports)
    rows = [row for item in case.items if (row := reference.fold(item)) is not None]
    return reference, np.array(rows, np.float64).reshape(len(rows), len(case.features))


def saved(windows: Windows) -> dict[str, bytes | set[bytes]]:
    """What a snapshot has, whatever the order of its entities."""
    arrays = windows.snapshot()
    parts: dict[str, bytes | set[bytes]] = {name: array.tobytes() for name, array in arrays.items()}
    for number, layout in enumerate(windows.plan.layouts):
        rows, blocks = arrays[f"{number}.rows"].whole(), arrays[f"{number}.blocks"].whole()
        rows = rows.reshape(-1, layout.stride)
        ends = np.cumsum(rows[:, BLOCK], dtype=np.int64)
        assert ends[-1:].tolist() in ([], [len(blocks)])
        parts[f"{number}.rows"] = {
            row.tobytes() + blocks[end - row[BLOCK].astype(int) : end].tobytes()
            for row, end in zip(rows, ends.tolist(), strict=True)
        }
        assert len(rows) == len(parts[f"{number}.rows"])
        del parts[f"{number}.blocks"]
    return parts


def nonzero(counters: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counters.items() if count}


def check(case: Case) -> Windows:
    """Fold a case both ways and compare bit for bit; the state after it."""
    reference, expected = reference_of(case)
    windows = Windows(case.plan)
    rows = windows.fold(whole(case))
    differing = np.flatnonzero((rows.view(np.int64) != expected.view(np.int64)).any(axis=0))
    assert rows.tobytes() == expected.tobytes(), ([case.features[f] for f in differing], rows, expected)
    assert nonzero(windows.late_dropped) == nonzero(reference.late_dropped)
    assert nonzero(windows.labels_outside) == nonzero(reference.labels_outside)
    return windows


def customer(stat: str, window_ms: int | None = HOUR_MS, *, field: str | None = None) -> Feature:
    return Feature(f"customer.{stat}.{field}.{window_ms}", stat, "customer", field, window_ms)


def fold(
    features: Sequence[Feature], items: Sequence[Item], *, maturity_ms: int = HOUR_MS, reports: Reports = "frauds"
) -> list[list[float]]:
    """Features of items of one entity, one number and one hashed column; held to the reference."""
    case = Case(tuple(features), ("customer",), ("amount",), ("country",), maturity_ms, tuple(items), reports=reports)
    check(case)
    return Windows(case.plan).fold(whole(case)).tolist()


def event(time_ms: int, amount: float = 1.0, *, id: int = 1, country: int = 0, clock_ms: int | None = None) -> Item:
    return Item(time_ms if clock_ms is None else clock_ms, time_ms, (id,), (amount,), (country,), None)


def label(clock_ms: int, *, about_ms: int, delta: int = 1, legit: int = 0, id: int = 1) -> Item:
    return Item(clock_ms, about_ms, (id,), (NAN,), (0,), delta, legit)


@given(cases())
def test_the_kernel_gives_the_reference_bit_for_bit_and_counts_what_it_counts(case: Case) -> None:
    check(case)


@given(cases(), st.data())
def test_any_cut_restore_and_sweep_gives_the_same_features_and_the_same_snapshot(
    case: Case, data: st.DataObject
) -> None:
    batch, plan = whole(case), case.plan
    once = Windows(plan)
    expected = once.fold(batch)
    windows, parts, done = Windows(plan), [], 0
    while done < len(case.items):
        until = data.draw(st.integers(done, len(case.items)), label="cut at")
        parts.append(windows.fold(batch.slice(done, until)))
        done = until
        if data.draw(st.booleans(), label="restore"):
            windows = Windows.restore(plan, windows.snapshot())
        if data.draw(st.booleans(), label="sweep"):
            windows.sweep(data.draw(st.sampled_from((-(2**60), case.items[-1].clock_ms, 2**60))))
    rows = np.concatenate([np.empty((0, len(case.features))), *parts])
    assert rows.tobytes() == expected.tobytes()
    assert saved(windows) == saved(once)


def test_a_column_that_grows_beyond_its_first_slots_gives_the_reference() -> None:
    random = np.random.default_rng(3)
    items = []
    for place, clock_ms in enumerate(np.sort(random.integers(0, 3 * DAY_MS, 4_000)).tolist()):
        ids = (int(random.integers(0, 700)), int(random.integers(0, 2**64 - 1, dtype=np.uint64)))
        late = int(random.integers(0, HOUR_MS))
        delta = 1 if place % 9 == 0 else None
        items.append(Item(clock_ms, clock_ms - late, ids, (float(random.lognormal(3)),), ids, delta))
    features = [
        Feature(f"{entity}.{stat}", stat, entity, field, window_ms)
        for entity, other in (("customer", "terminal"), ("terminal", "customer"))
        for stat, field, window_ms in (
            ("count", None, HOUR_MS),
            ("zscore", "amount", DAY_MS),
            ("distinct", other, DAY_MS),
            ("fraud_rate", None, DAY_MS),
            ("std", "amount", None),
        )
    ]
    case = Case(
        tuple(features),
        ("customer", "terminal"),
        ("amount",),
        ("customer", "terminal"),
        HOUR_MS,
        tuple(items),
    )
    windows = check(case)
    assert windows.n_entities[1] > 3_000
    assert windows.nbytes == sum(windows.bytes_by_table.values()) == sum(windows.bytes_by_entity.values())
    for n, row, block, size in zip(
        windows.n_entities, case.plan.row_bytes, case.plan.block_bytes, windows.bytes_by_entity.values(), strict=True
    ):
        assert n * row < size < n * (row + block)
    assert windows.sweep(2**60) > 0, "those whose last event is longer ago than the longest window are dropped"


@pytest.mark.parametrize("most_granules", [2**32 - 1, 13_000])
def test_blocks_that_are_moved_together_while_events_arrive_change_nothing(
    monkeypatch: pytest.MonkeyPatch, most_granules: int
) -> None:
    monkeypatch.setattr(entities, "_MOVED", 40)
    monkeypatch.setattr(entities, "_SMALL", 0)
    monkeypatch.setattr(entities, "MOST_GRANULES", most_granules)
    random = np.random.default_rng(5)
    features = (
        customer("count"),
        customer("std", DAY_MS, field="amount"),
        customer("fraud_rate"),
        customer("share", None, field="country"),
    )
    ids, countries = 1 + random.zipf(1.2, 30_000) % 300, random.integers(1, 100, 30_000)
    items = tuple(
        event(10_000 * n, float(n % 7), id=int(id_), country=int(country))
        if n % 50
        else label(10_000 * n, about_ms=10_000 * n - HOUR_MS, id=int(id_))
        for n, (id_, country) in enumerate(zip(ids, countries, strict=True))
    )
    case = Case(features, ("customer",), ("amount",), ("country",), HOUR_MS, items, lifetime_ms=DAY_MS)
    batch, once, windows = whole(case), Windows(case.plan), Windows(case.plan)
    expected = once.fold(batch)
    free, parts = [], []
    for start in range(0, len(items), 100):
        parts.append(windows.fold(batch.slice(start, start + 100)))
        if start % 5_000 == 0:
            windows.sweep(2**60)
        sizes = windows.bytes_by_table
        free.append(sizes["customer.free"] / (sizes["customer.free"] + sizes["customer.blocks"]))
    assert np.concatenate(parts).tobytes() == expected.tobytes()
    assert saved(windows) == saved(once)
    assert np.median(free) < 0.3, "it is 0.36 if blocks stay where they are"
    restored = Windows.restore(case.plan, windows.snapshot())
    assert saved(restored) == saved(once)


def test_an_event_does_not_see_itself_and_sees_what_came_before_at_the_same_moment() -> None:
    features = [customer("count"), customer("sum", field="amount"), customer("mean", field="amount")]
    assert fold(features, [event(5, 2.0), event(5, 4.0), event(5, 8.0)])[1:] == [
        [1.0, 2.0, 2.0],
        [2.0, 6.0, 3.0],
    ]


def test_without_a_past_counts_and_sums_are_zero_and_the_rest_is_missing() -> None:
    stats = ("count", "sum", "distinct", "mean", "std", "min", "max", "ratio", "zscore", "since_last")
    fields = {"distinct": "country", "count": None, "since_last": None}
    features = [
        customer(stat, None if stat == "since_last" else HOUR_MS, field=fields.get(stat, "amount")) for stat in stats
    ]
    row = fold(features, [event(0)])[0]
    assert row[:3] == [0.0, 0.0, 0.0]
    assert np.isnan(row[3:]).all()


def test_a_window_reaches_back_its_panes_and_the_running_one() -> None:
    pane_ms = HOUR_MS // 12
    items = [event(0), event(HOUR_MS + pane_ms - 1), event(HOUR_MS + pane_ms)]
    assert [row[0] for row in fold([customer("count")], items)] == [0.0, 1.0, 1.0]


def test_a_late_event_enters_its_own_pane_and_one_too_late_only_gets_its_features() -> None:
    now = 10 * HOUR_MS
    items = [
        event(now),
        event(now - HOUR_MS // 2, clock_ms=now),
        event(now - 5 * HOUR_MS, clock_ms=now),
        event(now),
    ]
    case = Case((customer("count"),), ("customer",), ("amount",), ("country",), HOUR_MS, tuple(items))
    windows = check(case)
    assert Windows(case.plan).fold(whole(case)).tolist() == [[0.0], [0.0], [0.0], [2.0]]
    assert windows.late_dropped == {f"customer, {HOUR_MS} ms": 1}


def test_a_missing_value_counts_as_an_event_but_not_as_a_value() -> None:
    features = [customer("count"), customer("mean", field="amount"), customer("ratio", field="amount")]
    rows = fold(features, [event(0, 4.0), event(1, NAN), event(2, 1e200), event(3, float("inf")), event(4, 2.0)])
    assert rows[4] == [4.0, 4.0, 0.5]
    assert np.isnan([row[2] for row in rows[1:4]]).all()


def test_a_missing_id_has_no_features_and_leaves_nothing_behind() -> None:
    rows = fold([customer("count")], [event(0, id=0), event(1, id=0), event(2)])
    assert np.isnan(rows[0] + rows[1]).all()
    assert rows[2] == [0.0]


def test_the_spread_of_equal_values_is_zero_and_has_no_zscore_whatever_the_rounding() -> None:
    features = [
        customer("std", field="amount"),
        customer("zscore", field="amount"),
        customer("std", None, field="amount"),
    ]
    row = fold(features, [event(t, 0.1) for t in range(9)] + [event(9, 5.0)])[-1]
    assert row[0] == 0.0
    assert np.isnan(row[1])
    assert row[2] == 0.0


def test_a_small_but_real_spread_is_not_taken_for_rounding() -> None:
    row = fold([customer("std", field="amount")], [event(0, 1.0), event(1, 1.00001), event(2)])[-1]
    assert row[0] == pytest.approx(5e-6, rel=1e-2)


@pytest.mark.parametrize("past", [0.0, 5e-324])
def test_what_is_not_finite_is_the_one_missing_value(past: float) -> None:
    features = [customer("ratio", field="amount"), customer("ratio", None, field="amount")]
    for now in (0.0, 1.0, -1e99):
        rows = fold(features, [event(0, past), event(1, now)])
        assert np.isnan(rows[1]).all() or now == 0.0


def test_minus_zero_is_zero() -> None:
    row = fold([customer("min", field="amount"), customer("sum", field="amount")], [event(0, -0.0), event(1, 0.0)])[1]
    assert np.signbit(row).tolist() == [False, False]


def test_times_before_1970_fall_into_panes_of_their_own() -> None:
    assert [row[0] for row in fold([customer("count")], [event(-HOUR_MS - 1), event(-1), event(0)])] == [
        0.0,
        1.0,
        1.0,
    ]


def test_time_since_the_last_event_is_in_seconds_and_never_negative() -> None:
    rows = fold([customer("since_last", None)], [event(0), event(2500), event(100, clock_ms=2600), event(3500)])
    assert [row[0] for row in rows[1:]] == [2.5, 0.0, 1.0]


def test_the_last_events_are_told_in_the_order_of_arrival() -> None:
    features = [
        Feature(f"{stat}.{last}", stat, "customer", "amount" if stat == "last_value" else None, last=last)
        for stat in ("last_age", "last_hour", "last_value")
        for last in (1, 3)
    ]
    items = [event(0, 5.0), event(2 * HOUR_MS, NAN), event(HOUR_MS, 7.0, clock_ms=2 * HOUR_MS), event(DAY_MS, 1e200)]
    late = event(DAY_MS, 1.0, clock_ms=DAY_MS + 2000)
    rows = fold(features, [*items, event(DAY_MS + 1000, -0.0), event(DAY_MS + 2000, 1.0), late])
    assert np.array(rows[:2]).tolist() == pytest.approx(np.array([[NAN] * 6, [7200, NAN, 0, NAN, 5, NAN]]), nan_ok=True)
    assert rows[2] == pytest.approx([0, NAN, 2, NAN, NAN, NAN], nan_ok=True), "the newest is later than this one"
    assert rows[3] == [23 * 3600, 24 * 3600, 1.0, 0.0, 7.0, 5.0]
    assert rows[4] == pytest.approx([1, 22 * 3600 + 1, 0, 2, NAN, NAN], nan_ok=True), "too large counts as missing"
    assert rows[5] == [1.0, 23 * 3600 + 2, 1 / 3600, 1.0, 0.0, 7.0]
    assert rows[6] == pytest.approx([0, 0, 2 / 3600, 0, 1, NAN], nan_ok=True)


def test_the_last_events_have_sixteen_bytes_each_with_one_number_and_are_kept_of_a_dormant_entity() -> None:
    features = [customer("sum", field="amount")]
    lasts = [Feature(f"{k}", "last_value", "customer", "amount", last=k) for k in range(1, 5)]
    items = (event(0, 5.0), event(DAY_MS, 6.0))
    without, with_them = (
        Case(tuple(f), ("customer",), ("amount",), ("country",), HOUR_MS, items) for f in (features, features + lasts)
    )
    assert with_them.plan.row_bytes[0] - without.plan.row_bytes[0] == 4 * 16
    windows = Windows(with_them.plan)
    windows.fold(whole(with_them).slice(0, 1))
    windows.sweep(DAY_MS)
    assert windows.fold(whole(with_them).slice(1, 2))[0] == pytest.approx([0, 5, NAN, NAN, NAN], nan_ok=True)


def test_distinct_values_are_estimated_within_a_tenth_up_to_two_hundred() -> None:
    random = np.random.default_rng(5)
    values = random.integers(1, 2**64 - 1, 200, dtype=np.uint64).tolist()
    rows = fold([customer("distinct", field="country")], [event(0, country=v) for v in [*values, 0]])
    assert rows[1][0] == pytest.approx(1.0, abs=0.01)
    assert rows[200][0] == pytest.approx(200, rel=0.1)


def test_a_value_far_above_the_own_mean_is_counted_and_teaches_the_habit_no_more_than_the_limit() -> None:
    features = [customer(stat, window_ms, field="amount") for stat in ("above", "wmean", "wratio")
                for window_ms in (HOUR_MS, None)]  # fmt: skip
    rows = fold(features, [event(t, amount) for t, amount in enumerate((10.0, 1_000.0, 1.0, 13.0, 0.0, 2_000.0, 1.0))])
    assert rows[3][:4] == [0.0, 0.0, 337.0, 337.0], "the first three values have no limit"
    assert rows[3][4:] == [13 / 337, 13 / 337]
    assert rows[5][:4] == pytest.approx([0.0, 0.0, 204.8, 204.8])
    cut = (5 * 204.8 + 3 * 204.8) / 6
    assert rows[6] == pytest.approx([1.0, 1.0, cut, cut, 1 / cut, 1 / cut])


def test_the_limit_of_a_window_is_the_entitys_whole_past_and_the_factor_its_own() -> None:
    def feature(factor: float) -> Feature:
        return Feature(f"above {factor}", "above", "customer", "amount", HOUR_MS, factor)

    rows = fold([feature(3.0), feature(5.0)], [*(event(t) for t in range(3)), event(DAY_MS, 4.0), event(DAY_MS + 1)])
    assert rows[-1] == [1.0, 0.0]


def test_an_entity_whose_mean_is_not_positive_has_no_limit() -> None:
    rows = fold([customer("above", None, field="amount")], [*(event(t, 0.0) for t in range(4)), event(5), event(6)])
    assert rows[-1] == [0.0]


def test_the_share_of_a_value_and_of_an_hour_grows_with_its_events() -> None:
    features = [customer("share", None, field="country"), customer("hour_share", None)]
    items = [event(n * HOUR_MS, country=v) for n, v in ((0, 7), (23, 7), (25, 8), (36, 0), (48, 7))]
    rows = fold(features, items)
    assert [row[1] for row in rows] == [1 / 8, 2 / 9, 2 / 10, 1 / 11, 4 / 12]
    assert [row[0] for row in rows[:3]] == [0.5, 1.5 / 2, 0.5 / 3]
    assert np.isnan(rows[3][0])
    assert rows[4][0] == 2.5 / 4, "an event without the value does not count"


def test_counters_of_a_tally_are_halved_before_they_overflow() -> None:
    values = [1 + (n % 7 == 0) for n in range(80_000)]
    items = tuple(event(n * HOUR_MS // 10_000, country=v) for n, v in enumerate(values))
    features = (customer("share", None, field="country"), customer("hour_share", None))
    case = Case(features, ("customer",), ("amount",), ("country",), HOUR_MS, items)
    last = Windows(case.plan).fold(whole(case))[-1]
    cells, hours = tally(values[:-1], 64), tally([i.time_ms // HOUR_MS for i in items[:-1]], 24)
    assert sum(cells) < 66_000
    assert last.tolist() == [(cells[values[-1]] + 0.5) / (sum(cells) + 1), (sum(hours[6:9]) + 1) / (sum(hours) + 8)]


def test_frauds_count_once_they_are_mature_and_can_be_taken_back() -> None:
    features = [customer("fraud_rate"), customer("fraud_count")]
    early = [event(0), event(1), label(2, about_ms=1), event(3)]
    later = HOUR_MS + HOUR_MS // 2
    assert fold(features, early)[-1] == [0.0, 0.0], "not mature yet"
    assert fold(features, [*early, event(later)])[-1] == [1 / 3, 1.0]
    assert fold(features, [*early, label(4, about_ms=1, delta=-1), event(later)])[-1] == [0.0, 0.0]


def test_where_both_are_reported_only_events_with_a_label_count_and_at_once() -> None:
    features = [customer(stat) for stat in ("fraud_rate", "fraud_count", "labelled_count", "smoothed_fraud_rate")]
    events = [event(0), event(1), event(2)]
    reports = [label(3, about_ms=0), label(3, about_ms=1, delta=0, legit=1)]
    rows = fold(features, [*events, event(3), *reports, event(4), event(2 * HOUR_MS)], reports="both")
    assert np.isnan(rows[3][0]), "nothing is known"
    assert rows[3][1:] == [0.0, 0.0, 0.01]
    assert rows[4] == rows[5] == [0.5, 1.0, 2.0, 1.1 / 12]
    turned = [label(5, about_ms=0, delta=-1, legit=1), event(6), label(7, about_ms=1, legit=-1), event(8)]
    rows = fold(features, [*events, *reports, *turned], reports="both")
    assert rows[-2:] == [[0.0, 0.0, 2.0, 0.1 / 12], [0.5, 1.0, 2.0, 1.1 / 12]]


def test_where_frauds_are_reported_the_events_that_count_are_the_mature_ones() -> None:
    features = [customer("labelled_count"), customer("smoothed_fraud_rate")]
    items = [event(0), event(1), label(2, about_ms=1), event(3), event(HOUR_MS + HOUR_MS // 2)]
    assert fold(features, items)[2:] == [[0.0, 0.01], [3.0, 1.1 / 13]]


def test_a_run_of_frauds_begins_after_the_newest_known_legitimate_event() -> None:
    features = [customer(stat, None) for stat in LABEL_HISTORY_STATS]
    items = [event(s * 1000) for s in range(6)]

    def row(*reports: tuple[int, int, int]) -> list[float]:
        told = [label(6000, about_ms=s * 1000, delta=delta, legit=legit) for s, delta, legit in reports]
        return fold(features, [*items, *told, event(9000)], reports="both")[-1]

    fraud, legit = (1, 0), (0, 1)
    assert row((0, *fraud), (1, *legit), (3, *fraud), (4, *fraud)) == [5.0, 8.0, 2.0, 6.0]
    assert row((3, *fraud), (4, *fraud), (1, *fraud), (2, *legit)) == [5.0, 7.0, 2.0, 6.0], "in another order"
    assert row((1, *legit), (3, *fraud), (3, -1, 1), (5, *fraud)) == [4.0, 6.0, 1.0, 4.0], "taken back"
    assert row((1, *legit), (3, *legit), (2, *fraud), (3, 1, -1)) == [6.0, 8.0, 2.0, 7.0]
    nothing = row()
    assert nothing[2] == 0.0
    assert np.isnan(nothing[:2] + nothing[3:]).all()


def test_a_long_run_is_counted_whole_and_its_first_fraud_is_remembered() -> None:
    features = [customer("fraud_run", None), customer("fraud_run_age", None)]
    events = [event(s * 1000) for s in range(40)]
    frauds = [label(40_000, about_ms=s * 1000) for s in range(40)]
    assert fold(features, [*events, *frauds, event(50_000)], reports="both")[-1] == [40.0, 50.0]
    late = [label(41_000, about_ms=30_000, delta=-1, legit=1), event(50_000)]
    assert fold(features, [*events, *frauds, *late], reports="both")[-1] == [8.0, 18.0]


@given(st.lists(st.tuples(st.sampled_from((0, 1, 2, 3, 10, 11, 12, 13)), st.booleans()), max_size=30))
def test_a_label_history_of_few_events_is_that_of_their_latest_labels(reports: list[tuple[int, bool]]) -> None:
    """Labels of at most four legitimate events, and eight frauds."""
    known: dict[int, bool] = {}
    items = [event(s * 1000) for s in range(14)]
    for second, fraud in reports:
        if second < 10 or fraud:  # the others are only frauds
            was = known.get(second)
            delta, legit = fraud - (was is True), (not fraud) - (was is False)
            items.append(label(20_000, about_ms=second * 1000, delta=delta, legit=legit))
            known[second] = fraud
    frauds = [s for s, fraud in known.items() if fraud]
    newest_legit = max([s for s, fraud in known.items() if not fraud], default=-1)
    run = [s for s in frauds if s > newest_legit]
    expected = [
        20.0 - max(frauds) if frauds else NAN,
        20.0 - newest_legit if newest_legit >= 0 else NAN,
        float(len(run)),
        20.0 - min(run) if run else NAN,
    ]
    features = [customer(stat, None) for stat in LABEL_HISTORY_STATS]
    assert fold(features, [*items, event(20_000)], reports="both")[-1] == pytest.approx(expected, nan_ok=True)


def test_a_label_reaches_a_dormant_entity_and_is_forgotten_with_it() -> None:
    features = (customer("count"), customer("since_fraud", None), customer("fraud_run", None))
    first, idle_ms = event(0), HOUR_MS + HOUR_MS // 12
    told, back = label(DAY_MS, about_ms=0), event(2 * DAY_MS)
    for away_ms, expected in ((2 * DAY_MS, [0.0, 172_800.0, 1.0]), (401 * DAY_MS, [0.0, NAN, 0.0])):
        back = event(away_ms)
        rows = fold(features, [first, told, back], reports="both")
        assert rows[-1] == pytest.approx(expected, nan_ok=True)
        plan = Case(features, ("customer",), ("amount",), ("country",), HOUR_MS, (), reports="both").plan
        windows = Windows(plan)
        for item in (first, event(2 * idle_ms, id=0), told, event(DAY_MS + 1, id=0), back):
            batch = batch_of([item], n_entities=1, n_numbers=1, n_hashed=1)
            row = windows.fold(batch)
            windows.sweep(2**60)
        assert row.tolist()[-1] == pytest.approx(expected, nan_ok=True)


def test_a_label_of_an_unknown_entity_or_before_its_event_is_counted_as_outside() -> None:
    items = (
        label(0, about_ms=0),
        event(0),
        label(1, about_ms=HOUR_MS),
        label(2, about_ms=0, id=9),
        event(3 * HOUR_MS),
    )
    windows = check(Case((customer("fraud_rate"),), ("customer",), ("amount",), ("country",), HOUR_MS, items))
    assert windows.labels_outside == {f"customer, {HOUR_MS} ms, labels": 3}
    assert windows.n_entities == (1,)


def test_a_label_is_held_to_the_last_pane_of_the_ring_and_not_beyond() -> None:
    pane_ms = HOUR_MS // 12
    ring = 12 + 12 + 2
    for panes_ago, outside in ((ring - 1, 0), (ring, 1)):
        items = (
            event(0),
            event(40 * pane_ms),
            label(40 * pane_ms, about_ms=(40 - panes_ago) * pane_ms),
            event(41 * pane_ms),
        )
        case = Case((customer("fraud_rate"),), ("customer",), ("amount",), ("country",), HOUR_MS, items)
        assert check(case).labels_outside == {f"customer, {HOUR_MS} ms, labels": outside}


def test_an_event_too_late_for_the_ring_is_not_counted_where_a_later_pane_stands() -> None:
    now, ring_ms = 40 * HOUR_MS, (12 + 12 + 2) * HOUR_MS // 12
    items = [
        event(now),
        event(now - ring_ms, clock_ms=now),
        label(now, about_ms=now),
        event(now + HOUR_MS + HOUR_MS // 2),
    ]
    assert fold([customer("fraud_rate")], items)[-1] == [1.0]


def test_a_late_event_does_not_see_what_stood_in_its_panes_a_turn_of_the_ring_ago() -> None:
    pane_ms = HOUR_MS // 12
    features = [customer("fraud_rate"), customer("fraud_count"), customer("sum", field="amount")]
    for panes in range(26, 80):
        now = panes * pane_ms
        early = [event(pane * pane_ms, clock_ms=now) for pane in range(26)]
        late = [event(now - back * pane_ms, clock_ms=now) for back in range(30)]
        fold(features, [*early, *(label(now, about_ms=i.time_ms) for i in early), *late])


def test_an_entity_at_the_very_edge_of_idleness_outlives_a_sweep_and_a_snapshot() -> None:
    features = (customer("count"), customer("count", None))
    idle_ms = HOUR_MS + HOUR_MS // 12
    plan = Case(features, ("customer",), ("amount",), ("country",), HOUR_MS, ()).plan
    windows = Windows(plan)
    first = [event(0), event(idle_ms, id=2)]
    windows.fold(batch_of(first, n_entities=1, n_numbers=1, n_hashed=1))
    assert windows.sweep(idle_ms) == 0
    windows = Windows.restore(plan, windows.snapshot())
    back = batch_of([event(1, clock_ms=idle_ms)], n_entities=1, n_numbers=1, n_hashed=1)
    assert windows.fold(back).tolist() == [[1.0, 1.0]]
    windows.fold(batch_of([event(2 * idle_ms + 1, id=3)], n_entities=1, n_numbers=1, n_hashed=1))
    assert windows.sweep(2**60) == 2


def test_an_entity_that_was_idle_for_longer_than_its_windows_has_only_its_lifetime_facts() -> None:
    idle_ms = HOUR_MS + HOUR_MS // 12
    features = [customer("count"), customer("count", None), customer("mean", None, field="amount")]
    features += [customer("since_last", None)]
    assert fold(features, [event(0, 3.0), event(0, clock_ms=idle_ms)])[1] == [1.0, 1.0, 3.0, 0.0]
    assert fold(features, [event(0, 3.0), event(60_000, clock_ms=idle_ms + 1)])[1] == [0.0, 1.0, 3.0, 60.0]
    life_ms = 400 * DAY_MS
    assert fold(features, [event(0, 3.0), event(life_ms)])[1] == [0.0, 1.0, 3.0, life_ms / 1000]
    forgotten = fold(features, [event(0, 3.0), event(life_ms + 1)])[1]
    assert forgotten[:2] == [0.0, 0.0]
    assert np.isnan(forgotten[2:]).all()


def test_a_dormant_entity_costs_its_lifetime_facts_and_comes_back_with_them_whenever_it_was_swept() -> None:
    n, dormant_ms = 3_000, 90 * DAY_MS
    features = (
        customer("count", DAY_MS),
        customer("mean", 30 * DAY_MS, field="amount"),
        customer("since_last", None),
        customer("mean", None, field="amount"),
        customer("std", None, field="amount"),
    )
    first = [event(0, float(i), id=i + 1) for i in range(n)] + [event(1, float(2 * i), id=i + 1) for i in range(n)]
    back = [event(dormant_ms, 1.0, id=i + 1) for i in range(0, n, 7)]
    case = Case(features, ("customer",), ("amount",), ("country",), HOUR_MS, (*first, event(DAY_MS * 40, id=0), *back))
    check(case)
    batch, windows = whole(case), Windows(case.plan)
    windows.fold(batch.slice(0, len(first) + 1))
    assert windows.sweep(2**60) == n
    assert (windows.n_entities, windows.n_dormant) == ((0,), (n,))
    assert windows.bytes_by_table["customer.rows"] == n * case.plan.row_bytes[0] == n * 8 * (6 + 3 + 2)
    assert windows.bytes_by_table["customer.blocks"] == 0
    for n_swept in range(2):
        expected = Windows(case.plan).fold(batch)[-len(back) :]
        rows = windows.fold(batch.slice(len(first) + 1 + 200 * n_swept, len(first) + 1 + (200, len(batch[0]))[n_swept]))
        assert rows.tobytes() == expected[200 * n_swept :][: len(rows)].tobytes()
        windows.sweep(2**60)
        windows = Windows.restore(case.plan, windows.snapshot())
    assert (windows.n_entities, windows.n_dormant) == ((len(back),), (n - len(back),))


def test_what_is_dormant_for_longer_than_the_lifetime_memory_is_given_up() -> None:
    features = (customer("count", HOUR_MS), customer("count", None))
    plan = Case(features, ("customer",), ("amount",), ("country",), HOUR_MS, (), lifetime_ms=DAY_MS).plan
    windows = Windows(plan)
    for at_ms, held in ((0, (1, 0)), (DAY_MS, (1, 1)), (DAY_MS + 1, (1, 0))):
        windows.fold(batch_of([event(at_ms, id=1 + (at_ms > 0))], n_entities=1, n_numbers=1, n_hashed=1))
        windows.sweep(2**60)
        assert (*windows.n_entities, *windows.n_dormant) == held


def test_without_all_time_features_nothing_is_kept_of_idle_entities() -> None:
    plan = Case((customer("count"),), ("customer",), ("amount",), ("country",), HOUR_MS, ()).plan
    windows = Windows(plan)
    windows.fold(batch_of([event(0), event(2 * HOUR_MS, id=2)], n_entities=1, n_numbers=1, n_hashed=1))
    assert windows.sweep(2**60) == 1
    assert (windows.n_entities, windows.n_dormant) == ((1,), (0,))


def test_the_same_id_in_two_columns_is_two_entities() -> None:
    features = (
        Feature("a", "count", "customer", None, HOUR_MS),
        Feature("b", "count", "terminal", None, HOUR_MS),
    )
    items = tuple(Item(t, t, ids, (), (), None) for t, ids in enumerate(((7, 8), (8, 7), (7, 7))))
    case = Case(features, ("customer", "terminal"), (), (), HOUR_MS, items)
    check(case)
    assert Windows(case.plan).fold(whole(case))[2].tolist() == [1.0, 1.0]


def test_a_batch_whose_clock_runs_backwards_is_refused() -> None:
    plan = Case((customer("count"),), ("customer",), ("amount",), ("country",), HOUR_MS, ()).plan
    windows = Windows(plan)
    windows.fold(batch_of([event(5)], n_entities=1, n_numbers=1, n_hashed=1))
    with pytest.raises(ValueError, match="clock_ms decreases after 5"):
        windows.fold(batch_of([event(4)], n_entities=1, n_numbers=1, n_hashed=1))


def test_a_batch_of_other_columns_than_the_plan_is_refused() -> None:
    plan = Case((customer("count"),), ("customer",), ("amount",), ("country",), HOUR_MS, ()).plan
    with pytest.raises(ValueError, match=r"entities is uint64 \(1, 2\); it must be uint64 \(1, 1\)"):
        Windows(plan).fold(batch_of([event(0)._replace(entities=(1, 2))], n_entities=2, n_numbers=1, n_hashed=1))


def test_a_snapshot_of_other_features_is_refused_and_any_change_of_them_shows_in_the_digest() -> None:
    base = Case((customer("count"),), ("customer",), ("amount",), ("country",), HOUR_MS, ())
    changed = [
        base._replace(features=(customer("count", DAY_MS),)),
        base._replace(maturity_ms=DAY_MS),
        base._replace(reports="both"),
        base._replace(lifetime_ms=DAY_MS),
        base._replace(numbers=("amount", "balance")),
        base._replace(features=(customer("count"), customer("count", DAY_MS))),
        *(base._replace(features=(Feature("c", "above", "customer", "amount", None, k),)) for k in (3.0, 4.0)),
    ]
    assert len({case.plan.digest for case in (base, *changed)}) == 9
    assert base.plan.digest == base._replace(items=(event(0),)).plan.digest
    with pytest.raises(RestoreError, match=r"the snapshot has feature definition .* rebuild the state"):
        Windows.restore(changed[0].plan, Windows(base.plan).snapshot())


def test_a_snapshot_is_not_moved_by_what_is_folded_after_it() -> None:
    plan = Case((customer("count"),), ("customer",), ("amount",), ("country",), HOUR_MS, ()).plan
    windows = Windows(plan)
    windows.fold(batch_of([event(0)], n_entities=1, n_numbers=1, n_hashed=1))
    snapshot = windows.snapshot()
    before = {name: array.tobytes() for name, array in snapshot.items()}
    for state in (windows, Windows.restore(plan, snapshot)):
        state.fold(batch_of([event(1), event(2, id=2)], n_entities=1, n_numbers=1, n_hashed=1))
    assert {name: array.tobytes() for name, array in snapshot.items()} == before
