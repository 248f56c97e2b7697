"""Alert storms: whatever comes in, however it is cut, each score over the threshold is counted exactly once."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pipelines.contracts.alert_memory import AlertMemory, Overflowed
from pipelines.contracts.messages import (
    AlertOverflow,
    AlertUpdate,
    Progress,
    RecordSource,
    Score,
    alert_id_of,
    decode,
    encode,
)
from pipelines.contracts.stream import DAY_MS, StormRules, Stream
from pipelines.live import storms
from pipelines.live.storms import FullAlert, Raised, Storm, storm_of
from tests.pipelines.live.simulated import STREAM

HOUR_MS = 3_600_000
START_MS = 20_000 * DAY_MS - 6  # a day ends soon
EARLY_MS = START_MS - HOUR_MS
N_PARTITIONS = 3
PARTITION = 1
Out = FullAlert | AlertUpdate | AlertOverflow


class Step(NamedTuple):
    """An event: its entity, the time since the one before it, and its score, None if it is below the threshold."""

    entity: int
    after_ms: int
    score: float | None


AFTER_MS = (0, 0, 0, 1, 5, 20_000, 60_000, HOUR_MS - 1, HOUR_MS, 9 * HOUR_MS)
SCORES = (None, 0.9, 0.9, 0.91, 0.95, 0.96, 0.99, 1.0)


def steps_of(drawn: bytes) -> list[Step]:
    """Three bytes a step: drawn one by one, hypothesis makes sequences too short to go wrong."""
    threes = zip(drawn[::3], drawn[1::3], drawn[2::3], strict=False)
    return [Step(a % 4, AFTER_MS[b % len(AFTER_MS)], SCORES[c % len(SCORES)]) for a, b, c in threes]


steps = st.binary(min_size=3 * 15, max_size=3 * 60).map(steps_of)
rules = st.builds(StormRules, st.sampled_from((None, HOUR_MS, 5)), st.sampled_from((None, 1, 9, 60)))
cuts = st.lists(st.integers(1, 9), max_size=60)


def events_of(given: Iterable[Step], *, start_ms: int = START_MS) -> list[tuple[int, Raised | None]]:
    """Each event's arrival, and what it raises."""
    now_ms, events = start_ms, list[tuple[int, Raised | None]]()
    for offset, step in enumerate(given):
        now_ms += step.after_ms
        score = Score(
            event_id=f"e{offset}", score=step.score or 0.0, alert=True, model="m", late_ms=0, event_time="",
            source=RecordSource("small.events", PARTITION, offset), arrival="", out_of_order=False, features_hash="",
        )  # fmt: skip
        one = Raised(offset, score, f"c{step.entity}", now_ms - 7, now_ms)
        events.append((now_ms, None if step.score is None else one))
    return events


def progress_with(memory: AlertMemory | None) -> Progress:
    return Progress(
        next_offset=0, start=0, n_scored=0, n_refused=0, n_duplicates=0, n_out_of_turn=0, n_partitions=N_PARTITIONS,
        owner="", definition="", model="", origin={}, frontier=None, out_of_turn=[], alert_memory=memory,
    )  # fmt: skip


def batch(
    stream: Stream, progress: Progress, events: Sequence[tuple[int, Raised | None]]
) -> tuple[list[Out], Progress]:
    """What a transaction publishes, and its progress record as the next owner reads it."""
    if (storm := storm_of(stream, progress, PARTITION)) is None:
        return [FullAlert(one.row, None) for _, one in events if one], progress
    out: list[Out] = [record for _, one in events if one for record in storm.admit(one)]
    out += storm.pass_time(events[-1][0])
    assert storm.memory is None or len(storm.memory.groups) <= storms.MAX_GROUPS
    return out, decode(encode(progress_with(storm.memory)), Progress)


def whole(stream: Stream, events: Sequence[tuple[int, Raised | None]]) -> tuple[list[Out], Progress]:
    return batch(stream, progress_with(None), events) if events else ([], progress_with(None))


def in_batches(
    stream: Stream, events: Sequence[tuple[int, Raised | None]], sizes: Iterable[int]
) -> tuple[list[Out], Progress]:
    out, progress, at = list[Out](), progress_with(None), 0
    for size in [*sizes, len(events)]:
        if at < len(events):
            more, progress = batch(stream, progress, events[at : at + size])
            out, at = [*out, *more], at + size
    return out, progress


def counted(out: Iterable[Out], progress: Progress) -> int:
    """Alerts in full, in groups or as overflow, and those that are remembered only."""
    groups, n_overflow, n_alone = Counter[str](), 0, 0
    for record in out:
        if isinstance(record, AlertOverflow):
            n_overflow += len(record.events)
        elif record.group_id is None:
            n_alone += 1
        else:
            groups[record.group_id] = record.count if isinstance(record, AlertUpdate) else 1
    return groups.total() + n_overflow + n_alone + (progress.alert_memory.n_pending if progress.alert_memory else 0)


@pytest.fixture(autouse=True, scope="module")
def small_bounds() -> Iterator[None]:
    """So that they are reached in a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storms, "MAX_GROUPS", 2)
        patch.setattr(storms, "MAX_LISTED", 3)
        patch.setattr(storms, "KEPT_SHARE", 5)
        yield


@given(steps, rules, cuts)
def test_batches_and_take_overs_change_nothing(given: list[Step], rule: StormRules, sizes: list[int]) -> None:
    stream, events = replace(STREAM, storms=rule), events_of(given)
    assert in_batches(stream, events, sizes) == whole(stream, events)


@given(steps, rules)
def test_every_score_over_the_threshold_is_counted_once(given: list[Step], rule: StormRules) -> None:
    stream, events = replace(STREAM, storms=rule), events_of(given)
    out, progress = whole(stream, events)
    n_raised = sum(one is not None for _, one in events)
    assert counted(out, progress) == n_raised
    late_ms = START_MS + 10**10
    rest, progress = batch(stream, progress, [(late_ms, None)])
    assert counted([*out, *rest], progress) == n_raised
    assert progress.alert_memory is None or (progress.alert_memory.n_pending, progress.alert_memory.groups) == (0, ())


@given(steps, rules, rules, st.integers(0, 60))
def test_a_changed_rule_loses_nothing(given: list[Step], old: StormRules, new: StormRules, at: int) -> None:
    events = events_of(given)
    out, progress = whole(replace(STREAM, storms=old), events[:at])
    for event in [*events[at:], (START_MS + 10**10, None)]:
        more, progress = batch(replace(STREAM, storms=new), progress, [event])
        out = [*out, *more]
    assert counted(out, progress) == sum(one is not None for _, one in events)
    if new == StormRules():
        assert progress.alert_memory is None


@given(steps, st.sampled_from((1, 9, 60)), st.sampled_from((None, HOUR_MS)))
def test_the_cap_of_a_day_is_kept_and_its_last_part_goes_to_the_highest(
    given: list[Step], per_day: int, within_ms: int | None
) -> None:
    cap, n_kept = per_day // N_PARTITIONS or 1, per_day // N_PARTITIONS // 5
    events = events_of(given)
    out, _ = whole(replace(STREAM, storms=StormRules(within_ms, per_day)), events)
    full: dict[int, list[float]] = defaultdict(list)
    for record in out:
        if isinstance(record, FullAlert):
            one = events[record.row][1]
            assert one is not None
            day = full[one.arrival_ms // DAY_MS]
            assert len(day) < cap - n_kept or one.score.score >= max(day, default=0.0)
            day.append(one.score.score)
    assert all(len(scores) <= cap for scores in full.values())
    for record in out:
        if isinstance(record, AlertOverflow):
            days = {events[overflowed.offset][0] // DAY_MS for overflowed in record.events}
            assert len(days) == 1
            assert len(full[days.pop()]) >= cap - n_kept
            assert record.highest_score == max(overflowed.score for overflowed in record.events)


def groups_by_hand(events: Sequence[tuple[int, Raised | None]]) -> dict[str, list[Raised]]:
    """Group id -> its alerts, where nothing is bounded: those of an entity from its first one on, for an hour."""
    groups: dict[str, list[Raised]] = {}
    newest: dict[str, str] = {}
    for at_ms, one in events:
        if one is None:
            continue
        group_id = newest.get(one.entity)
        if group_id is None or at_ms - groups[group_id][0].arrival_ms >= HOUR_MS:
            newest[one.entity] = group_id = alert_id_of(one.score)
            groups[group_id] = []
        groups[group_id].append(one)
    return groups


@given(steps.map(lambda given: [step._replace(entity=step.entity % 2) for step in given]))
def test_groups_are_those_made_by_hand(given: list[Step]) -> None:
    events = events_of(given)
    stream = replace(STREAM, storms=StormRules(HOUR_MS))
    out, progress = whole(stream, [*events, (START_MS + 10**10, None)])
    expected = groups_by_hand(events)
    opened = {record.group_id: record.row for record in out if isinstance(record, FullAlert)}
    assert opened == {group_id: members[0].row for group_id, members in expected.items()}
    newest = {record.group_id: record for record in out if isinstance(record, AlertUpdate)}
    assert newest.keys() == {group_id for group_id, members in expected.items() if len(members) > 1}
    for group_id, update in newest.items():
        members = expected[group_id]
        last = members[-1].score
        assert (update.count, update.highest_score) == (len(members), max(one.score.score for one in members))
        assert (update.event_id, update.score, update.source) == (last.event_id, last.score, last.source)
        assert update.entities == {"card": members[0].entity}
    assert progress.alert_memory is None


def admitted(rule: StormRules, scores: Iterable[float], *, every_ms: int = 0, start_ms: int = START_MS) -> list[Out]:
    """What is published about one entity's scores over the threshold, and about the end of them."""
    storm = Storm(replace(STREAM, storms=rule), AlertMemory(), partition=PARTITION, n_partitions=1)
    events = events_of(
        (Step(0, every_ms if place else 0, score) for place, score in enumerate(scores)), start_ms=start_ms
    )
    out = [record for _, one in events if one for record in storm.admit(one)]
    return [*out, *storm.pass_time(START_MS + DAY_MS)]


def test_updates_of_a_burst_are_few_and_the_last_one_has_the_whole_count() -> None:
    opened, *updates = admitted(StormRules(HOUR_MS), [0.9] * 1_000)
    assert isinstance(opened, FullAlert)
    assert [update.count for update in updates if isinstance(update, AlertUpdate)] == [
        2, 4, 8, 16, 32, 64, 128, 256, 512, 1_000,
    ]  # fmt: skip
    assert [update.closed for update in updates if isinstance(update, AlertUpdate)] == [False] * 9 + [True]
    assert len(updates) == 10


def test_scores_that_rise_all_the_time_give_few_updates_too() -> None:
    rising = [1 - 0.1 * 0.99**n for n in range(2_000)]
    _, *updates = admitted(StormRules(HOUR_MS), rising)
    assert 20 < len(updates) < 50
    assert isinstance(updates[-1], AlertUpdate)
    assert updates[-1].highest_score == rising[-1]


def test_a_much_higher_score_is_published_at_once() -> None:
    _, _, third, *rest = admitted(StormRules(HOUR_MS), [0.9, 0.9, 0.96, 0.97])
    assert isinstance(third, AlertUpdate)
    assert (third.count, third.highest_score, third.closed) == (3, 0.96, False)
    assert [one.count for one in rest if isinstance(one, AlertUpdate)] == [4]


def test_a_group_does_not_outlive_its_time() -> None:
    out = admitted(StormRules(HOUR_MS), [0.9] * 7, every_ms=HOUR_MS // 3)
    assert [record.count if isinstance(record, AlertUpdate) else "full" for record in out] == [
        "full", 2, 3, "full", 2, 3, "full",
    ]  # fmt: skip


def test_ids_of_any_length_take_bounded_memory_and_keep_entities_apart() -> None:
    storm = Storm(replace(STREAM, storms=StormRules(HOUR_MS)), AlertMemory(), partition=0, n_partitions=1)
    ((_, one),) = events_of([Step(0, 0, 0.9)])
    assert one is not None
    for end in "ab":
        full, *_ = storm.admit(one._replace(entity="\x01" * 60_000 + end))
        assert isinstance(full, FullAlert)
    assert storm.memory is not None
    assert len(storm.memory.groups) == 2
    assert len(encode(storm.memory)) < 2_000


def test_overflow_waits_a_minute_at_most_and_says_what_it_is_about() -> None:
    _, first, second = admitted(
        StormRules(None, 1), [0.9, 0.8, 0.85, 0.99], every_ms=30_000, start_ms=START_MS - HOUR_MS
    )
    assert isinstance(first, AlertOverflow)
    assert isinstance(second, AlertOverflow)
    assert [first.events, second.events] == [(Overflowed(1, 0.8), Overflowed(2, 0.85)), (Overflowed(3, 0.99),)]
    assert (first.day, first.n_alerts, first.n_overflow, second.n_overflow) == ("2024-10-03", 1, 2, 3)
    assert (first.topic, first.partition, first.highest_score) == ("small.events", PARTITION, 0.85)


def test_an_overflow_record_is_about_one_day() -> None:
    stream = replace(STREAM, storms=StormRules(None, 1))
    out, progress = whole(stream, events_of([Step(0, 0, 0.9), Step(0, 0, 0.9), Step(0, 20_000, 0.9), Step(0, 0, 0.9)]))
    _, overflow, full = out
    assert isinstance(overflow, AlertOverflow)
    assert (overflow.day, overflow.events) == ("2024-10-03", (Overflowed(1, 0.9),))
    assert full == FullAlert(2, None)
    assert progress.alert_memory is not None
    assert progress.alert_memory.n_pending == 1


def test_what_is_due_comes_in_the_order_of_time_and_not_before() -> None:
    rule = StormRules(70_000, 2)
    # a: full; b: full and two updates, the second one is not published; c: overflow, due after 60 s.
    given = [Step(0, 0, 0.9), Step(1, 0, 0.9), Step(1, 0, 0.9), Step(1, 0, 0.9), Step(2, 1, 0.9)]
    stream, events = replace(STREAM, storms=rule), events_of(given, start_ms=EARLY_MS)
    storm = Storm(stream, AlertMemory(), partition=PARTITION, n_partitions=1)
    for _, one in events:
        if one is not None:
            list(storm.admit(one))
    assert not list(storm.pass_time(EARLY_MS + 60_000))
    overflow, closed = storm.pass_time(EARLY_MS + 70_000)
    assert isinstance(overflow, AlertOverflow)
    assert isinstance(closed, AlertUpdate)
    assert (closed.closed, closed.count, closed.entities) == (True, 3, {"card": "c1"})
    assert not list(storm.pass_time(START_MS + DAY_MS))
