"""The memories by event id against plain dictionaries, whatever the cut into batches and the restarts in between."""

import tracemalloc
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.features.duplicates import Duplicates
from pipelines.features.id_log import hash_ids
from pipelines.features.reports import Reports

KEY = b"a key of a test."


class Case(NamedTuple):
    """Items in the one order, and how they are cut; a cut may come with a restart."""

    memory_ms: int
    most: int
    smallest: int
    ids: list[str]
    partitions: list[int]
    clock_ms: list[int]
    time_ms: list[int]
    labels: list[int]
    strengths: list[int]
    cuts: list[tuple[int, bool]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n = draw(st.integers(0, 120))

    def each(values: st.SearchStrategy[int]) -> list[int]:
        return draw(st.lists(values, min_size=n, max_size=n))

    clock_ms = (100 + np.cumsum(np.array(each(st.sampled_from((0, 0, 1, 1, 2, 9))), np.int64))).tolist()
    back = each(st.integers(-3, 14))
    return Case(
        draw(st.integers(0, 40)),
        draw(st.integers(1, 40)),
        draw(st.sampled_from((1, 2, 8))),
        [str(i) for i in each(st.integers(0, draw(st.integers(1, 60))))],
        each(st.integers(0, 2)),
        clock_ms,
        [clock - ago for clock, ago in zip(clock_ms, back, strict=True)],
        each(st.integers(0, 1)),
        each(st.integers(0, draw(st.integers(0, 3)))),
        draw(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=12)),
    )


def parts(case: Case) -> list[tuple[slice, bool]]:
    """Slices of the items, and whether a restart follows."""
    ends, done = [], 0
    for length, restart in case.cuts:
        ends.append((slice(done, min(done + length, len(case.ids))), restart))
        done = ends[-1][0].stop
    return [*ends, (slice(done, len(case.ids)), False)]


def plain_duplicates(case: Case) -> tuple[list[int], int, int]:
    """Originals (an item's offset is its number), how many were evicted, how many are held."""
    held: OrderedDict[tuple[int, str], tuple[int, int]] = OrderedDict()
    originals, n_evicted = [], 0
    for offset, (id_, partition, clock) in enumerate(zip(case.ids, case.partitions, case.clock_ms, strict=True)):
        while held and clock - next(iter(held.values()))[1] > case.memory_ms:
            held.popitem(last=False)
        if known := held.get((partition, id_)):
            originals.append(known[0])
            continue
        if len(held) == case.most:
            held.popitem(last=False)
            n_evicted += 1
        held[partition, id_] = (offset, clock)
        originals.append(-1)
    return originals, n_evicted, len(held)


@given(cases())
def test_duplicates_are_those_of_a_dictionary_whatever_the_cuts_and_restarts(case: Case) -> None:
    expected, n_evicted, n_held = plain_duplicates(case)
    memory = Duplicates(case.memory_ms, case.most, smallest=case.smallest)
    ids, clock_ms = hash_ids(case.ids, KEY), np.array(case.clock_ms, np.int64)
    partition, offset = np.array(case.partitions, np.int32), np.arange(len(ids))
    found: list[int] = []
    for part, restart in parts(case):
        found += memory.first_offsets(ids[part], partition[part], offset[part], clock_ms[part]).tolist()
        if restart:
            now_ms = int(clock_ms[part.stop - 1]) if part.stop else 0
            before, memory = memory, Duplicates(case.memory_ms, case.most, smallest=case.smallest)
            memory.restore(before.snapshot(now_ms))
            memory.n_evicted = before.n_evicted
            assert memory.snapshot(now_ms).tobytes() == before.snapshot(now_ms).tobytes()
    assert found == expected
    assert memory.n_evicted == n_evicted
    if len(ids):
        assert memory.n_held(int(clock_ms[-1])) <= n_held  # nobody has looked since the last ones ran out
        once = Duplicates(case.memory_ms, case.most)
        once.first_offsets(ids, partition, offset, clock_ms)
        assert memory.snapshot(int(clock_ms[-1])).tobytes() == once.snapshot(int(clock_ms[-1])).tobytes()


@pytest.mark.parametrize("both", [False, True])
@given(case=cases())
def test_reports_are_those_of_a_dictionary_whatever_the_cuts_and_restarts(case: Case, both: bool) -> None:
    reported: dict[str, tuple[int, int, int, int]] = {}
    expected = []
    columns_of = (case.ids, case.clock_ms, case.time_ms, case.labels, case.strengths)
    for id_, clock, time, label, strength in zip(*columns_of, strict=True):
        if clock - time > case.memory_ms:
            expected.append([0, 0])
            continue
        known = id_ in reported and clock - min(reported[id_][:2]) <= case.memory_ms
        was, rank = reported[id_][2:] if known else (None if both else 0, 0)
        if strength < rank:
            expected.append([0, 0])
            continue
        expected.append([label - (was == 1), (not label) - (was == 0) if both else 0])
        if (label, strength) != (was, rank):
            reported[id_] = (time, clock, label, strength)
    # By number: as many as there are items; that they are bounded too is the same code as for duplicates.
    memory = Reports(case.memory_ms, 1_000, both=both, smallest=case.smallest)
    columns: tuple[NDArray[Any], ...] = (
        hash_ids(case.ids, KEY),
        np.array(case.clock_ms, np.int64),
        np.array(case.time_ms, np.int64),
        np.array(case.labels, np.int8),
        np.array(case.strengths, np.int64),
    )
    found: list[list[int]] = []
    for part, restart in parts(case):
        found += memory.changes(*(column[part] for column in columns)).tolist()
        if restart:
            now_ms = case.clock_ms[part.stop - 1] if part.stop else 0
            before, memory = memory, Reports(case.memory_ms, 1_000, both=both, smallest=case.smallest)
            memory.restore(before.snapshot(now_ms))
    assert found == expected


def test_an_id_that_is_sent_for_ever_takes_one_place_however_short_the_memory() -> None:
    memory = Duplicates(memory_ms=1, most=1_000)
    ids, partition = hash_ids(["same"], KEY), np.zeros(1, np.int32)
    many = np.repeat(ids, 200_000, axis=0)
    clock_ms = 2 * np.arange(len(many))
    originals = memory.first_offsets(many, np.repeat(partition, len(many)), np.arange(len(many)), clock_ms)
    assert (originals == -1).all()
    assert memory.nbytes < 1 << 20


def test_an_entry_costs_forty_bytes_and_a_snapshot_of_it_nothing() -> None:
    n = 400_000
    memory = Duplicates(memory_ms=10**9, most=10**9)
    ids, partition = np.random.default_rng(1).integers(0, 2**64, (n, 2), np.uint64), np.zeros(1_000, np.int32)
    for begin in range(0, n, 1_000):
        at = np.arange(begin, begin + 1_000)
        memory.first_offsets(ids[at], partition, at, at)
    assert memory.nbytes / n < 40 * 1.25
    tracemalloc.start()
    snapshot = memory.snapshot(n)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
    assert snapshot.shape == (n, 4)
    before = snapshot.whole()
    memory.first_offsets(ids[:1_000] + np.uint64(1), partition, at, at + 1_000)
    assert (snapshot.whole() == before).all()


def test_an_id_has_another_hash_under_another_key() -> None:
    assert (hash_ids(["a", "b"], KEY) == hash_ids(["a", "b"], KEY)).all()
    assert not (hash_ids(["a"], KEY) == hash_ids(["a"], b"another key.")).any()
