"""State from the lake is the state that a snapshot would have held, whatever had happened."""

import tempfile
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.features.snapshot import Snapshot
from pipelines.lake.ingest import Intake
from pipelines.lake.tables import Lake
from pipelines.live.rebuild import snapshot_from_lake
from pipelines.order import EVENT, KIND_NAMES, LABEL, Source
from pipelines.record import Received
from tests.pipelines.live.simulated import N_PARTITIONS, World, event_of, label_of
from tests.pipelines.live.test_replica import schedules, steps_of, take


def fill(lake: Lake, world: World) -> None:
    """Ingest everything that the world's broker shows, and every progress record."""
    intake = Intake(world.stream, lake)
    for source in world.sources:
        kind = KIND_NAMES[source.kind]
        topic = world.stream.topic(kind)
        records = world.log[source][: world.seen[source]]
        if records:
            getattr(intake, kind)(topic, records, {source.partition: records[-1].offset})
    topic = world.stream.topic("progress")
    for p, told in enumerate(world.progress):
        records = [Received(topic, p, i, 0, None, msgspec.json.encode(record)) for i, record in enumerate(told)]
        intake.places(topic, records, {p: len(records) - 1})


def lose_all_but_the_lake(world: World) -> Snapshot:
    """No snapshot: go on from one that is made from the lake."""
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(Path(folder), world.stream)
        fill(lake, world)
        snapshot = snapshot_from_lake(
            lake,
            world.stream,
            {p: records[-1] for p, records in enumerate(world.progress)},
            first=dict.fromkeys(world.sources, 0),
            ends=dict(world.seen),
            topic_ids={"events": "one"},
            partitions=range(N_PARTITIONS),
        )
    assert snapshot.meta["topic_ids"] == {"events": "one"}
    n_folded = sum(snapshot.frontier.values())
    world.snapshots = {n_folded: snapshot}
    world.restart()
    assert sum(world.replica.at.values()) == n_folded, "the snapshot was not used"
    return snapshot


@settings(max_examples=settings().max_examples // 5)
@given(schedules, st.floats(0, 1))
def test_going_on_from_the_lake_is_bit_equal_to_never_having_stopped(schedule: bytes, when: float) -> None:
    world = World()
    steps = steps_of(schedule)
    at = int(when * len(steps))
    for name, numbers in steps[:at]:
        take(world, name, numbers)
    lose_all_but_the_lake(world)
    for name, numbers in steps[at:]:
        take(world, name, numbers)
    world.drain()
    assert world.published == world.offline()
    lose_all_but_the_lake(world)
    world.drain()
    assert world.published == world.offline()


def test_a_label_that_no_published_event_has_seen_is_left_to_the_log() -> None:
    """Its partition had no leader: after `order_stall` the others went on without it."""
    world, silent = World(), Source(LABEL, 1)
    world.append(EVENT, 0, event_of(0, card=2, shop=1, at_ms=world.now_ms), b"2")
    world.append(LABEL, 1, label_of(0, card=1, shop=1, at_ms=world.now_ms), b"1")
    world.now_ms += 200
    world.append(EVENT, 0, event_of(1, card=2, shop=1, at_ms=world.now_ms), b"2")
    for source in world.sources:
        world.show(source, 9)
    for _ in range(40):
        world.now_ms += 1_000
        for source in world.sources:
            if source != silent:
                world.replica.read(source, 9)
                world.replica.ask(source)
        world.replica.replica.merge.tick(world.now_ms)
        world.replica.order()
    for _ in range(2):
        world.publish(world.replica, 0)
    assert len(world.published) == 2
    lose_all_but_the_lake(world)
    world.drain()
    assert world.published == world.offline()


def test_most_of_what_was_published_is_folded_from_the_lake() -> None:
    world, n = World(), 60
    for i in range(n):
        for name, numbers in (("event", (i, 2, 0, 0, i % 3, i % 5)), ("label", (i, i, 0, 1, 1, 1)), ("turn", (0,) * 6)):
            take(world, name, numbers)
        world.publish(world.replica, i % N_PARTITIONS)
    world.now_ms += 1_000
    take(world, "event", (1, 2, 0, 0, 1, 1))  # all labels lie before it
    world.drain()
    world.replica.replica.n_untold({p: records[-1] for p, records in enumerate(world.progress)})
    live = world.replica.replica.state.snapshot()
    rebuilt = lose_all_but_the_lake(world)
    drawn = {"topic_ids": {}, "id_key": "", "clock_offset": 0, "id": ""}  # what is not a function of the log
    assert rebuilt.meta | drawn == live.meta | drawn
    assert sum(rebuilt.frontier.values()) == 2 * n + 1


def test_a_stamp_that_runs_backwards_keeps_its_arrival() -> None:
    world = World()
    for ago_ms in (0, 0, 50):
        world.now_ms -= ago_ms
        world.append(EVENT, 0, event_of(ago_ms, card=2, shop=1, at_ms=world.now_ms), b"2")
    world.show(Source(EVENT, 0), 2)
    world.replica.read(Source(EVENT, 0), 2)
    world.now_ms += 100
    for source in world.sources:
        world.replica.ask(source)
    world.replica.order()
    world.publish(world.replica, 0)
    assert len(world.published) == 2
    lose_all_but_the_lake(world)
    world.drain()
    assert world.published == world.offline()
    assert not world.published[0, 2].out_of_turn
