"""The fold's own rules (duplicates, labels, lateness), and its snapshots on disk."""

import hashlib
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.contracts.block import Block
from pipelines.contracts.decode import Decoder
from pipelines.contracts.stream_file import parse
from pipelines.errors import InternalError, RestoreError
from pipelines.features import draft, pieces
from pipelines.features.copying import Part
from pipelines.features.snapshot import Snapshot, SnapshotStore
from pipelines.features.state import State, StateCopy, hash_rows
from pipelines.order import EVENT, LABEL, Key, Source
from pipelines.record import Received
from tests.pipelines.items import Item, run_of
from tests.pipelines.live.simulated import START_MS, STREAM, event_of, label_of


def event(offset: int, at_ms: int, id_: int, *, place: Key | None = None, event_ms: int | None = None) -> Item:
    raw = event_of(id_, card=1, shop=1, at_ms=START_MS + (at_ms if event_ms is None else event_ms))
    return item(EVENT, offset, at_ms, raw, place)


def label(offset: int, at_ms: int, id_: int, value: int, *, event_ms: int = 0) -> Item:
    return item(LABEL, offset, at_ms, label_of(id_, card=1, shop=1, at_ms=START_MS + event_ms, label=value))


def item(kind: int, offset: int, at_ms: int, raw: bytes, place: Key | None = None, *, key: bytes = b"1") -> Item:
    record = Received("topic", 0, offset, START_MS + at_ms, key, raw)
    at = place or Key(START_MS + at_ms, kind, 0, offset)
    return Item(at, Source(kind, 0), START_MS + at_ms, record, place is not None)


def block_of(*items: Item) -> Block:
    block = Decoder(STREAM).block(run_of(items))
    assert block.is_accepted.all(), block.refusal
    return block


def fold(*items: Item) -> tuple[State, Block]:
    state = State(STREAM, 2, id_key=b"")
    return state, state.fold(block_of(*items))


def fraud_rates(folded: Block) -> list[float]:
    column = STREAM.numeric_columns.index("shop.fraud_rate.240ms")
    return [float(value) for value in folded.numeric[folded.is_scored, column]]


def test_a_repeated_id_is_a_duplicate_until_the_memory_ends() -> None:
    _, folded = fold(event(0, 0, 7), event(1, 300, 7), event(2, 301, 7), event(3, 302, 7))
    assert folded.duplicate_of.tolist() == [-1, 0, -1, 2]
    assert folded.is_scored.tolist() == [True, False, True, False]
    assert np.isnan(folded.numeric[1]).all()
    assert folded.features_hash[1] == 0 != folded.features_hash[0]


def test_the_memory_of_ids_is_as_large_as_its_time_and_no_larger() -> None:
    state, _ = fold(*[event(n, n, n) for n in range(5_000)])
    assert state.snapshot().arrays["seen"].shape == (301, 4)


def test_what_comes_out_of_turn_keeps_its_own_partition_and_offset_at_the_clock_of_its_place() -> None:
    behind = Key(START_MS + 50, EVENT, 1, 900, 1)
    block = block_of(event(4, 10, 7, place=behind))
    assert (block.partition[0], block.offset[0], block.clock_ms[0]) == (0, 4, START_MS + 50)


def test_an_event_behind_its_partitions_newest_time_is_late_by_the_difference() -> None:
    _, folded = fold(event(0, 10, 1), event(1, 20, 2, event_ms=3), event(2, 30, 3))
    assert folded.late_ms.tolist() == [0, 7, 0]


def test_a_repeated_report_changes_nothing_and_a_zero_takes_it_back() -> None:
    reports = [label(0, 50, 1, 1), label(1, 51, 1, 1), label(2, 160, 1, 0), label(3, 161, 1, 0)]
    asked = [event(n, at, n) for n, at in ((0, 0), (1, 0), (2, 100), (3, 170))]
    _, folded = fold(asked[0], asked[1], *reports[:2], asked[2], *reports[2:], asked[3])
    assert fraud_rates(folded)[2:] == [0.5, 0.0]


def test_the_frontier_never_goes_back() -> None:
    state = State(STREAM, 2)
    state.passed(run_of([event(4, 1, 1)]))
    with pytest.raises(AssertionError, match="the next record has offset 3"):
        state.passed(run_of([event(3, 2, 2)]))


def test_an_event_that_is_folded_twice_is_our_own_defect_and_leaves_no_snapshot() -> None:
    state, _ = fold(event(0, 0, 7), event(1, 1, 8))
    with pytest.raises(InternalError, match="the event at offset 1 of partition 0 was folded twice"):
        state.fold(block_of(event(1, 2, 8)))
    with pytest.raises(InternalError, match="no snapshot can be taken"):
        state.snapshot()


def test_rows_have_one_hash_exactly_if_their_bits_are_equal() -> None:
    numeric = np.array([[1.0, 0.0], [1.0, -0.0], [1.0, 0.0]])
    hashes = hash_rows(numeric, np.array([[1], [1], [1]], np.uint64))
    assert hashes[0] == hashes[2] != hashes[1]


def test_a_snapshot_comes_back_from_disk_as_it_was_and_nothing_else_is_left_there(tmp_path: Path) -> None:
    state, _ = fold(event(0, 0, 1), label(0, 50, 1, 1), event(1, 60, 2))
    state.places = [[EVENT, 0, 1, 60, EVENT, 0, 0, 1]]
    state.topic_ids = {"small.events": "Qx3yZ"}
    state.passed(run_of([event(1, 60, 2)]))
    before = state.snapshot()
    before.write(tmp_path / "a.snapshot")
    restored = State.restore(STREAM, Snapshot.read(tmp_path / "a.snapshot"))
    assert restored.topic_ids == {"small.events": "Qx3yZ"}
    again = restored.snapshot()
    assert again.meta == before.meta == pieces.read_meta(tmp_path / "a.snapshot")
    assert {k: v.tobytes() for k, v in again.arrays.items()} == {k: v.tobytes() for k, v in before.arrays.items()}
    assert [path.name for path in tmp_path.iterdir()] == ["a.snapshot"]


@pytest.mark.parametrize("damage", ["cut", "cut in the head", "flip", "flip in the head", "longer", "empty", "other"])
def test_a_damaged_snapshot_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.snapshot"
    State(STREAM, 2).snapshot().write(path)
    content = path.read_bytes()

    def flipped(at: int) -> bytes:
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    damaged = {
        "cut": content[:-1],
        "cut in the head": content[:100],
        "flip": flipped(len(content) - 100),
        "flip in the head": flipped(23),
        "longer": content + b"1",
        "empty": b"",
        "other": b"nothing of ours" * 9,
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(RestoreError, match=r"a\.snapshot is damaged .* delete it"):
        Snapshot.read(path)


def test_a_snapshot_of_the_first_version_is_known_as_such_and_not_used() -> None:
    with pytest.raises(RestoreError, match=r"written by an older version .*format 1, .* rebuilt from the input"):
        Snapshot.read(Path(__file__).parents[1] / "data" / "format-1.snapshot")


def test_a_snapshot_of_a_later_version_is_known_as_such_and_not_used(tmp_path: Path) -> None:
    State(STREAM, 2).snapshot().write(tmp_path / "a.snapshot")
    content = (tmp_path / "a.snapshot").read_bytes()
    (tmp_path / "a.snapshot").write_bytes(content.replace(b"snapshot 4", b"snapshot 5", 1))
    with pytest.raises(RestoreError, match=r"written by another version of Unmask .*format '5', this version reads 4"):
        Snapshot.read(tmp_path / "a.snapshot")


def test_writing_a_snapshot_holds_nothing_more_and_reading_it_holds_it_once(tmp_path: Path) -> None:
    n = 200_000
    state = State(STREAM, 2)
    everyone = np.arange(n)
    entities = np.stack([everyone + 1, everyone % 5_000 + 1], axis=1).astype(np.uint64)
    block = Block.blank(n, n_entities=2, n_numbers=1, n_categories=0)
    at = np.full(n, START_MS)
    ids = np.array([f"e{i}" for i in range(n)], np.object_)
    state.fold(
        replace(
            block,
            offset=everyone,
            clock_ms=at,
            time_ms=at,
            event_id=ids,
            entity_hashes=entities,
            numbers=np.ones((n, 1)),
        )
    )
    del block, ids
    snapshot = state.snapshot()
    tracemalloc.start()
    snapshot.write(tmp_path / "a.snapshot")
    size, written = sum(array.nbytes for array in snapshot.arrays.values()), tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    again = State.restore(STREAM, Snapshot.read(tmp_path / "a.snapshot"))
    read = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 20_000_000 > 4 * (tmp_path / "a.snapshot").stat().st_size
    assert written < 3_000_000
    assert read < 1.2 * again.nbytes
    assert again.nbytes < 1.3 * state.nbytes


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
    with pytest.raises(RestoreError, match="with different fields or features"):
        State.restore(other, State(one, 2).snapshot())


def test_equal_states_give_equal_snapshot_files(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        state, _ = fold(event(0, 0, 1), event(1, 60, 2))
        state.snapshot().write(tmp_path / name)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


class Flow:
    """A state and the events that it gets: random cards, one event a millisecond."""

    def __init__(self) -> None:
        self.state, self.n = State(STREAM, 2, id_key=b""), 0
        self._random = np.random.default_rng(3)

    def next(self, n: int, *, cards: int = 400) -> Block:
        """The next events."""
        records = []
        for at, card in enumerate(self._random.integers(0, cards, n).tolist(), self.n):
            raw = event_of(at, card=card, shop=card % 7, at_ms=START_MS + at)
            records.append(item(EVENT, at, at, raw, key=str(card).encode()))
        self.n += n
        return block_of(*records)


def sorted_bytes(snapshot: dict[str, pieces.Pieces]) -> dict[str, bytes]:
    return {name: np.sort(array.whole(), axis=None).tobytes() for name, array in snapshot.items()}


def whole(copy: StateCopy) -> dict[str, pieces.Pieces]:
    while not copy.is_whole:
        copy.step(10_000)
    return pieces.joined(copy.parts())


def test_a_copy_made_in_steps_while_events_are_folded_is_that_of_the_moment_at_which_it_began() -> None:
    flow = Flow()
    state = flow.state
    state.fold(flow.next(500))
    expected = sorted_bytes(state.snapshot().arrays)
    copy = state.copy()
    assert state.windows.sweep(2**60) == 0, "what is being copied is not swept"
    parts: list[Part] = []
    while not copy.is_whole:
        copy.step(7)
        parts += copy.parts()
        state.fold(flow.next(20))
    assert len(parts) > 60
    copied = pieces.joined(parts)
    assert sorted_bytes(copied) == expected
    assert sorted_bytes(State.restore(STREAM, Snapshot(copy.meta, copied)).snapshot().arrays) == expected
    assert state.windows.sweep(2**60) > 0


def test_what_changed_since_a_whole_snapshot_and_that_one_give_the_state_back(tmp_path: Path) -> None:
    flow, twin, store = Flow(), Flow(), SnapshotStore(tmp_path, keep=1)
    state = flow.state
    for each in (flow, twin):
        each.state.fold(each.next(600))  # ids are remembered for 300 ms, windows of idle cards end after that
    base = state.copy()
    draft.write(tmp_path / "1.snapshot", base.meta, whole(base))
    for n in (40, 40, 500):
        for each in (flow, twin):
            each.state.fold(each.next(n, cards=9))
            each.state.windows.sweep(each.state.clock_ms)
            each.state.frontier[Source(EVENT, 0)] += n
        later = state.copy(base.as_base)
        later.meta["base"]["file"] = "1.snapshot"
        changes = whole(later)
        path = tmp_path / f"{n + 1}.snapshot"
        draft.write(path, later.meta, changes)
        restored = State.restore(STREAM, Snapshot.read(path))
        restored.windows.sweep(state.clock_ms)
        expected = twin.state.snapshot().arrays
        assert sorted_bytes(restored.snapshot().arrays) == sorted_bytes(expected)
        assert changes["windows/0.rows"].nbytes < expected["windows/0.rows"].nbytes / 2 or n == 500
        following = flow.next(50)
        assert twin.next(50).event_id.tolist() == following.event_id.tolist()
        assert restored.fold(following).numeric.tobytes() == state.fold(following).numeric.tobytes()
        twin.state.fold(following)
    store.tidy()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.snapshot", "501.snapshot"], "its base is kept"
    other = State(STREAM, 2).copy()
    draft.write(tmp_path / "1.snapshot", other.meta, whole(other))
    with pytest.raises(RestoreError, match=r"501.snapshot has only what changed since another 1.snapshot"):
        Snapshot.read(tmp_path / "501.snapshot")
