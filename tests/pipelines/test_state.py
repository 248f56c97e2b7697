"""The fold's own rules (duplicates, labels, lateness), and its snapshots on disk."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from pipelines.contract import Event, EventContract, Label, LabelContract
from pipelines.errors import InternalError, RestoreError
from pipelines.order import EVENT, LABEL, Item, Key, Record, Source
from pipelines.state import Rows, Snapshot, State, hash_rows, items_of
from pipelines.stream import parse
from tests.pipelines.simulated import START_MS, STREAM, event_of, label_of


def event(
    offset: int, at_ms: int, id_: int, *, place: Key | None = None, event_ms: int | None = None
) -> tuple[Item, Event]:
    raw = event_of(id_, card=1, shop=1, at_ms=START_MS + (at_ms if event_ms is None else event_ms))
    record = Record(EVENT, 0, offset, START_MS + at_ms, b"1", raw)
    decoded = EventContract(STREAM).decode(raw, b"1", START_MS + at_ms)
    assert isinstance(decoded, Event), decoded
    key = place or Key(START_MS + at_ms, EVENT, 0, offset)
    return Item(key, START_MS + at_ms, record, place is not None), decoded


def label(offset: int, at_ms: int, id_: int, value: int, *, event_ms: int = 0) -> tuple[Item, Label]:
    raw = label_of(id_, card=1, shop=1, at_ms=START_MS + event_ms, label=value)
    decoded = LabelContract(STREAM).decode(raw, b"1")
    assert isinstance(decoded, Label), decoded
    record = Record(LABEL, 0, offset, START_MS + at_ms, b"1", raw)
    return Item(Key(START_MS + at_ms, LABEL, 0, offset), START_MS + at_ms, record, False), decoded


def fold(*items: tuple[Item, Event | Label]) -> tuple[State, Rows]:
    state = State(STREAM, 2)
    return state, state.fold(items_of(items, STREAM))


def fraud_rates(rows: Rows) -> list[float]:
    column = STREAM.numeric_columns.index("shop.fraud_rate.240ms")
    return [float(value) for value in rows.numeric[:, column]]


def test_a_repeated_id_is_a_duplicate_until_the_memory_ends() -> None:
    _, rows = fold(event(0, 0, 7), event(1, 300, 7), event(2, 301, 7), event(3, 302, 7))
    assert rows.duplicates == {1: 0, 3: 2}
    assert rows.index.tolist() == [0, 2]


def test_the_memory_of_ids_is_as_large_as_its_time_and_no_larger() -> None:
    state, _ = fold(*[event(n, n, n) for n in range(5_000)])
    assert len(state.snapshot().arrays["seen/id"]) == 301


def test_what_comes_out_of_turn_keeps_its_own_partition_and_offset_at_the_clock_of_its_place() -> None:
    behind = Key(START_MS + 50, EVENT, 1, 900, 1)
    items = items_of([event(4, 10, 7, place=behind)], STREAM)
    assert (items.partition[0], items.offset[0], items.clock_ms[0]) == (0, 4, START_MS + 50)


def test_an_event_behind_its_partitions_newest_time_is_late_by_the_difference() -> None:
    _, rows = fold(event(0, 10, 1), event(1, 20, 2, event_ms=3), event(2, 30, 3))
    assert rows.late_ms.tolist() == [0, 7, 0]


def test_a_repeated_report_changes_nothing_and_a_zero_takes_it_back() -> None:
    reports = [label(0, 50, 1, 1), label(1, 51, 1, 1), label(2, 160, 1, 0), label(3, 161, 1, 0)]
    asked = [event(n, at, n) for n, at in ((0, 0), (1, 0), (2, 100), (3, 170))]
    _, rows = fold(asked[0], asked[1], *reports[:2], asked[2], *reports[2:], asked[3])
    assert fraud_rates(rows)[2:] == [0.5, 0.0]


def test_the_frontier_never_goes_back() -> None:
    state = State(STREAM, 2)
    state.passed(Key(1, EVENT, 0, 4), Source(EVENT, 0), 4, 1)
    with pytest.raises(AssertionError, match="then came 3"):
        state.passed(Key(2, EVENT, 0, 3), Source(EVENT, 0), 3, 2)


def test_an_event_that_is_folded_twice_is_our_own_defect_and_leaves_no_snapshot() -> None:
    state, _ = fold(event(0, 0, 7), event(1, 1, 8))
    with pytest.raises(InternalError, match="the event at offset 1 of partition 0 was folded twice"):
        state.fold(items_of([event(1, 2, 8)], STREAM))
    with pytest.raises(InternalError, match="no snapshot can be taken"):
        state.snapshot()


def test_rows_have_one_hash_exactly_if_their_bits_are_equal() -> None:
    numeric = np.array([[1.0, 0.0], [1.0, -0.0], [1.0, 0.0]])
    hashes = hash_rows(numeric, np.array([[1], [1], [1]], np.uint64))
    assert hashes[0] == hashes[2] != hashes[1]


def test_a_snapshot_comes_back_from_disk_as_it_was_and_nothing_else_is_left_there(tmp_path: Path) -> None:
    state, _ = fold(event(0, 0, 1), label(0, 50, 1, 1), event(1, 60, 2))
    state.places = [[EVENT, 0, 1, 60, EVENT, 0, 0, 1]]
    state.passed(Key(START_MS + 60, EVENT, 0, 1), Source(EVENT, 0), 1, START_MS + 60)
    before = state.snapshot()
    before.write(tmp_path / "a.snapshot")
    again = State.restore(STREAM, Snapshot.read(tmp_path / "a.snapshot")).snapshot()
    assert again.meta == before.meta
    assert {k: v.tobytes() for k, v in again.arrays.items()} == {k: v.tobytes() for k, v in before.arrays.items()}
    assert [path.name for path in tmp_path.iterdir()] == ["a.snapshot"]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_snapshot_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.snapshot"
    State(STREAM, 2).snapshot().write(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"cut": bytes(content[:100]), "flip": bytes(content), "empty": b""}[damage])
    with pytest.raises(RestoreError, match=r"a\.snapshot is damaged .* delete it"):
        Snapshot.read(path)


def test_a_snapshot_made_under_other_fields_is_refused(tmp_path: Path) -> None:
    text = """
    [stream]
    name = "other"
    event_id = "id"
    event_time = "at"
    entities = ["card"]
    [fields]
    id = {{ type = "int" }}
    at = {{ type = "time" }}
    card = {{ type = "int" }}
    amount = {{ type = "number", max = {limit} }}
    """
    one, other = parse(text.format(limit=10)), parse(text.format(limit=11))
    with pytest.raises(RestoreError, match="under other fields or features"):
        State.restore(other, State(one, 2).snapshot())


def test_equal_states_give_equal_snapshot_files(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        state, _ = fold(event(0, 0, 1), event(1, 60, 2))
        state.snapshot().write(tmp_path / name)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1
