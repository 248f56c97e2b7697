"""The merge: what is released, when, in which order, and what comes out of turn."""

import math

from hypothesis import given
from hypothesis import strategies as st

from pipelines.order import EVENT, LABEL, Key, Mark, Merge, Source, SourceClock
from pipelines.record import Received
from tests.pipelines.items import Item, items_of

A, B, L = Source(EVENT, 0), Source(EVENT, 1), Source(LABEL, 0)


def record(source: Source, offset: int, stamp_ms: int) -> tuple[Source, Received]:
    return source, Received("topic", source.partition, offset, stamp_ms, None, None)


def add(merge: Merge, *records: tuple[Source, Received]) -> None:
    """Records of any sources, one by one."""
    for source, received in records:
        merge.add(source, [received])


def merge_of(*sources: Source, order_stall_ms: int = 30_000) -> Merge:
    return Merge(dict.fromkeys(sources, 0), label_lag_ms=10, order_wait_ms=5, order_stall_ms=order_stall_ms)


def release(merge: Merge) -> list[Item]:
    """What a replica without others releases: its own marks are the clock."""
    items = items_of(merge.release())
    if (mark := merge.proposal()) is not None:
        merge.mark(mark)
        items += items_of(merge.release())
    return items


def places(items: list[Item]) -> list[tuple[int, int, int]]:
    return [(*i.source, i.record.offset) for i in items]


def test_a_record_is_held_until_every_other_partition_is_known_to_be_beyond_it() -> None:
    merge = merge_of(A, B)
    add(merge, record(A, 0, 100), record(A, 1, 110))
    assert release(merge) == []
    add(merge, record(B, 0, 105))
    assert places(release(merge)) == [(EVENT, 0, 0)]
    merge.observe(B, position=1, end=1, asked_ms=120, live=True)
    assert places(release(merge)) == [(EVENT, 1, 0)]


def test_more_records_of_the_same_millisecond_may_still_come_so_it_is_not_released() -> None:
    merge = merge_of(A, B)
    add(merge, record(A, 0, 100), record(B, 0, 100))
    assert release(merge) == []
    add(merge, record(A, 1, 100), record(A, 2, 101), record(B, 1, 101))
    assert places(release(merge)) == [(EVENT, 0, 0), (EVENT, 0, 1), (EVENT, 1, 0)]


def test_an_answer_counts_from_the_moment_of_its_question_less_the_wait_and_only_at_the_end() -> None:
    merge = merge_of(A, B)
    add(merge, record(A, 0, 100))
    merge.observe(A, position=1, end=1, asked_ms=106, live=True)
    merge.observe(B, position=0, end=1, asked_ms=500, live=True)
    assert release(merge) == []
    merge.observe(B, position=0, end=0, asked_ms=105, live=True)
    assert release(merge) == []
    merge.observe(B, position=0, end=0, asked_ms=106, live=True)
    assert places(release(merge)) == [(EVENT, 0, 0)]


def test_a_label_takes_its_place_a_lag_after_its_arrival_and_before_events_of_that_moment() -> None:
    merge = merge_of(A, L)
    add(merge, record(L, 0, 100), record(L, 1, 150), record(A, 0, 109), record(A, 1, 110), record(A, 2, 200))
    assert places(release(merge)) == [(EVENT, 0, 0), (LABEL, 0, 0), (EVENT, 0, 1)]


def test_arrival_never_runs_backwards_within_a_partition() -> None:
    merge = merge_of(A)
    add(merge, record(A, 0, 100), record(A, 1, 90), record(A, 2, 101))
    assert [(i.arrival_ms, i.key) for i in release(merge)] == [(100, Key(100, *A, 0)), (100, Key(100, *A, 1))]


def test_what_comes_too_late_is_folded_where_it_came_and_found_there_again() -> None:
    merge = merge_of(A, B)
    add(merge, record(A, 0, 100))
    for source in (A, B):
        merge.observe(source, position=1 if source == A else 0, end=1 if source == A else 0, asked_ms=200, live=True)
    assert places(release(merge)) == [(EVENT, 0, 0)]
    add(merge, record(B, 0, 50), record(B, 1, 60), record(B, 2, 300), record(A, 1, 300))
    late = release(merge)
    assert [(i.key, i.out_of_turn) for i in late] == [(Key(100, *A, 0, 1), True), (Key(100, *A, 0, 2), True)]
    assert merge.n_out_of_turn == 2

    again = Merge(
        {A: 0, B: 0},
        label_lag_ms=10,
        places={(*i.source, i.record.offset): i.key for i in late},
        folded_first={A: 1, B: 2},
    )
    add(again, record(B, 0, 50), record(B, 1, 60), record(B, 2, 300), record(A, 0, 100), record(A, 1, 300))
    assert places(release(again)) == [(EVENT, 0, 0), (EVENT, 1, 0), (EVENT, 1, 1)]


def test_a_silent_partition_is_waited_for_until_the_stall_is_over_even_with_a_record_in_hand() -> None:
    for in_hand in ([], [record(B, 0, 99)]):
        merge = merge_of(A, B, order_stall_ms=3_000)
        add(merge, record(A, 0, 100), record(A, 1, 200), *in_hand)
        for seconds in range(4):
            merge.tick(1_000 * seconds)
            assert (EVENT, 0, 0) not in places(release(merge))
        merge.tick(4_000)
        assert (EVENT, 0, 0) in places(release(merge))


def test_a_transaction_left_open_is_waited_for_until_the_stall_is_over_and_comes_out_of_turn_then() -> None:
    merge = merge_of(A, B, order_stall_ms=3_000)
    add(merge, record(A, 0, 100))
    for seconds in range(4):  # B holds one record that is not committed: its end is 1, our position stays 0
        merge.observe(A, position=1, end=1, asked_ms=1_000.0 * (seconds + 1), live=True)
        merge.observe(B, position=0, end=1, asked_ms=1_000.0 * (seconds + 1), live=True)
        merge.tick(1_000 * seconds)
        assert release(merge) == []
    merge.tick(4_000)
    assert places(release(merge)) == [(EVENT, 0, 0)]
    add(merge, record(B, 0, 50))
    merge.observe(B, position=1, end=1, asked_ms=9_000.0, live=True)
    merge.observe(A, position=1, end=1, asked_ms=9_000.0, live=True)
    [late] = release(merge)
    assert (late.record.partition, late.out_of_turn) == (1, True)


def test_a_partition_that_moves_is_not_given_up_and_one_that_returns_is_waited_for_again() -> None:
    merge = merge_of(A, B, order_stall_ms=3_000)
    add(merge, *(record(A, n, 100 * n) for n in range(1, 100)))
    for seconds in range(10):
        add(merge, record(B, seconds, seconds))
        merge.tick(1_000 * seconds)
        assert all(p[1] == 1 for p in places(release(merge)))
    for seconds in range(10, 14):
        merge.tick(1_000 * seconds)
    assert len(release(merge)) > 90  # given up
    add(merge, record(B, 10, 200), record(A, 100, 20_000))
    merge.tick(14_000)
    assert release(merge) == []


def test_time_in_which_this_process_stood_still_does_not_count_as_a_stall() -> None:
    merge = merge_of(A, B, order_stall_ms=3_000)
    add(merge, record(A, 0, 100), record(A, 1, 200))
    merge.tick(0)
    merge.tick(3_600_000)
    assert release(merge) == []


def test_only_partitions_that_others_hold_back_hoard() -> None:
    merge = merge_of(A, B)
    each = int(SourceClock(A).run([record(A, 0, 100)[1]]).n_bytes[0])
    add(merge, *(record(A, n, 100 + n) for n in range(50)))
    assert merge.hoards(10 * each) == {A}
    assert merge.hoards(100 * each) == set()
    add(merge, *(record(B, n, 100) for n in range(50)))  # of one millisecond: only reading on can tell what follows
    assert merge.hoards(10 * each) == {A}


@st.composite
def replays(draw: st.DrawFn) -> tuple[list[tuple[Source, Received]], list[tuple[str, int]], int]:
    """Records stamped by their producer, how they are read, and how many marks stand between them."""
    stamps = draw(st.lists(st.integers(0, 60), max_size=40))
    ends = dict.fromkeys((A, B, L), 0)
    records = []
    for stamp in sorted(stamps):
        source = draw(st.sampled_from((A, B, L)))
        records.append(record(source, ends[source], stamp))
        ends[source] += 1
    reads = draw(st.lists(st.tuples(st.sampled_from(("read", "release")), st.integers(0, 2)), max_size=60))
    return records, reads, draw(st.integers(1, 5))


@given(replays())
def test_a_replay_is_released_whole_and_in_order_however_it_is_read(
    replay: tuple[list[tuple[Source, Received]], list[tuple[str, int]], int],
) -> None:
    records, reads, n_marks = replay
    merge = merge_of(A, B, L)
    every = max(1, len(records) // n_marks)
    ends = dict.fromkeys((A, B, L), 0)
    for n, one in enumerate(records):
        if n % every == 0:
            merge.mark(Mark(one[1].timestamp_ms, dict(ends)))
        ends[one[0]] += 1
    merge.mark(Mark(math.inf, ends))
    logs = {s: [r for r in records if r[0] == s] for s in (A, B, L)}
    released = []
    for what, number in [*reads, *[("read", n) for n in (0, 1, 2)] * 40, ("release", 0)]:
        log = logs[(A, B, L)[number]]
        if what == "read" and log:
            add(merge, log.pop(0))
        elif what == "release":
            released += items_of(merge.release())
    expected = sorted((r.timestamp_ms + (10 if s.kind == LABEL else 0), *s, r.offset) for s, r in records)
    assert [tuple(i.key[:4]) for i in released] == expected
    assert merge.n_out_of_turn == 0


def test_alone_a_partition_without_labels_waits_for_nothing() -> None:
    merge = merge_of(A)
    add(merge, record(A, 0, 100), record(A, 1, 100))
    assert places(items_of(merge.release_alone())) == [(EVENT, 0, 0), (EVENT, 0, 1)]
    add(merge, record(A, 2, 100))
    assert places(items_of(merge.release_alone())) == [(EVENT, 0, 2)]


def test_alone_events_wait_only_for_labels_that_may_take_effect_before_them() -> None:
    merge = merge_of(A, L)
    merge.observe(L, position=0, end=0, asked_ms=100, live=True)  # labels take effect from 105 on
    add(merge, record(A, 0, 104), record(A, 1, 105))
    assert places(items_of(merge.release_alone())) == [(EVENT, 0, 0)]
    merge.observe(L, position=0, end=0, asked_ms=101, live=True)
    assert places(items_of(merge.release_alone())) == [(EVENT, 0, 1)]


def test_alone_what_is_promised_comes_first() -> None:
    merge = Merge({A: 0, L: 0}, label_lag_ms=0, folded_first={A: 2, L: 0})
    add(merge, record(A, 0, 100))
    assert not items_of(merge.release_alone())


@given(
    stamps=st.tuples(*[st.lists(st.integers(0, 30), max_size=12)] * 2),
    steps=st.lists(st.tuples(st.sampled_from([A, L]), st.booleans()), max_size=60),
)
def test_alone_the_order_is_by_places_however_it_is_read(
    stamps: tuple[list[int], list[int]], steps: list[tuple[Source, bool]]
) -> None:
    """With true bounds nothing is out of turn; records are released once, and all of them in the end."""
    logs = {s: [record(s, i, at)[1] for i, at in enumerate(sorted(one))] for s, one in zip((A, L), stamps, strict=True)}
    merge, read, found = merge_of(A, L), {A: 0, L: 0}, list[Item]()
    for source, is_asked in [*steps, *[(s, False) for s in (A, L) for _ in logs[s]], (A, True), (L, True)]:
        log, at = logs[source], read[source]
        if is_asked and at == len(log):
            merge.observe(source, position=at, end=at, asked_ms=1_000, live=True)
        elif not is_asked and at < len(log):
            merge.add(source, [log[at]])
            read[source] += 1
        found += items_of(merge.release_alone())
    assert [item.key for item in found] == sorted(item.key for item in found)
    assert not any(item.out_of_turn for item in found)
    assert sorted(places(found)) == [(LABEL, 0, i) for i in range(len(stamps[1]))] + [
        (EVENT, 0, i) for i in range(len(stamps[0]))
    ]
