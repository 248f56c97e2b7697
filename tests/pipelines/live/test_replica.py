"""Any log, any interleaving, any crash of any replica: what is published is what the log gives offline, bit for bit."""

from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts.stream import StormRules
from pipelines.live import ownership, storms
from pipelines.order import EVENT, LABEL, Source
from tests.pipelines.live.simulated import N_PARTITIONS, STREAM, World, event_of, label_of

# Ids are pushed out of a memory of four, and a `pass` of 700 ms is longer than all-time features last.
FORGETFUL = msgspec.structs.replace(
    STREAM, duplicate_memory_ids=4, lifetime_memory_ms=600, storms=StormRules(within_ms=60, per_day=2)
)


@pytest.fixture(autouse=True, scope="module")
def short_lists() -> Iterator[None]:
    """So that overflow is published within a schedule."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storms, "MAX_LISTED", 2)
        yield


AMOUNTS = (0.1, 0.2, 1e9, 7.7, 1e9, None)


STEPS = {
    "event": 12, "label": 4, "show": 4, "turn": 14, "read": 4, "ask": 4, "pass": 4, "tick": 1, "marks": 3, "publish": 9,
    "snapshot": 3, "crash": 1, "crash before": 1, "crash after": 1, "fail": 1, "sweep": 1, "lose snapshots": 1,
    "doubt before": 1, "doubt after": 1, "disk full": 1, "unreadable": 1, "tail": 6, "assign": 2, "follow": 4,
    "shed": 1,
}  # fmt: skip
NAMES = [name for name, weight in STEPS.items() for _ in range(weight)]
# One draw for all steps (each is seven bytes): drawn one by one, hypothesis makes schedules too short to go wrong.
schedules = st.binary(min_size=7 * 30, max_size=7 * 110)


def steps_of(schedule: bytes) -> list[tuple[str, tuple[int, ...]]]:
    """What happens, one thing after the other, with small numbers that each step reads as it likes."""
    sevens = [schedule[i : i + 7] for i in range(0, len(schedule) - 6, 7)]
    return [(NAMES[seven[0] % len(NAMES)], tuple(byte % 6 for byte in seven[1:])) for seven in sevens]


def take(world: World, name: str, a: tuple[int, ...]) -> None:
    """One step in the world."""
    number = a[5] % len(world.replicas)
    source, replica = Source(EVENT if a[0] % 3 else LABEL, a[1] % N_PARTITIONS), world.replicas[number]
    n_events = sum(len(world.log[Source(EVENT, p)]) for p in range(N_PARTITIONS))
    match name:
        case "event":
            card = a[0] % 4
            id_ = n_events if a[1] > 1 else max(0, n_events - a[2])  # sometimes the id of an earlier one
            at = world.now_ms - (0, 0, 3, 40, 400, -200)[a[3]]
            value = event_of(id_, card=card, shop=a[4], at_ms=at, amount=AMOUNTS[a[5]]) if a[2] < 5 else b"{"
            world.append(EVENT, card % N_PARTITIONS, value, str(card).encode(), too_large=a[4] == 5 and a[2] > 2)
            world.show(Source(EVENT, card % N_PARTITIONS), a[1] % 3)
        case "label":
            card = a[0] % 4
            value = label_of(a[1] + a[2], card=card, shop=a[4], at_ms=world.now_ms - 40 * a[3], label=a[5] % 3 and 1)
            world.append(LABEL, card % N_PARTITIONS, value, str(card).encode())
            world.show(Source(LABEL, card % N_PARTITIONS), a[1] % 3)
        case "show":
            world.show(source, a[2])
        case "read":
            for each in (source,) if a[2] else world.sources:
                replica.read(each, 1 + 3 * a[3])
        case "ask":
            for each in (source,) if a[2] else world.sources:
                replica.ask(each, ago_ms=a[3])
        case "turn":  # of the live loop
            world.now_ms += 6
            for each in world.sources:
                replica.read(each, 10)
                replica.ask(each)
            replica.follow_marks(a[2])
            replica.fold()
            if a[3]:
                replica.mark()
        case "marks":
            replica.follow_marks(a[2])
            replica.fold()
        case "tail":
            replica.tail(a[1] % N_PARTITIONS, 1 + a[2])
        case "assign":
            world.assign(a[1] % N_PARTITIONS, a[2] % len(world.replicas))
        case "follow":
            replica.follow_group(is_slow=a[0] > 3)
        case "shed":
            replica.ownership.shed(0)
        case "pass":
            world.now_ms += (0, 1, 2, 10, 60, 700)[a[0]]
        case "tick":
            for _ in range(35 * (a[0] % 2) + 1):
                world.now_ms += 1 + 999 * (a[0] % 2)  # 35 s of it are a stall
                replica.replica.merge.tick(world.now_ms)
        case "publish":
            world.publish(replica, a[1] % N_PARTITIONS)
        case "snapshot":
            replica.snapshot(rows=(1, 1, 2, 10**9)[a[0] % 4], changes=a[1] > 1)
        case "crash":
            world.restart(number)
        case "fail":
            replica.fail(("before the windows", "among the windows", "after the step")[a[0] % 3])  # type: ignore[arg-type]
        case "crash before" | "crash after" | "doubt before" | "doubt after":
            world.publish(replica, a[1] % N_PARTITIONS, fault=name)
        case "disk full":
            replica.snapshot(disk_full=True)
        case "unreadable":
            world.append_unreadable(source.kind, source.partition)
        case "sweep":
            replica.replica.state.windows.sweep(replica.replica.state.clock_ms)
        case "lose snapshots":
            world.snapshots.clear()


def run(schedule: bytes, n_replicas: int) -> None:
    """Any steps; then all is published, and equal offline; a last restart of everybody publishes nothing else."""
    has_slow_claims = schedule[0] > 127
    world = World(FORGETFUL, n_replicas=n_replicas, has_slow_claims=has_slow_claims)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ownership, "AGAIN_S", 0.0 if has_slow_claims else 1e9)  # without, no second claim is needed
        for name, numbers in steps_of(schedule):
            take(world, name, numbers)
        world.drain()
        agrees_offline(world)
        for number in range(n_replicas):
            world.restart(number)
        world.drain()
    agrees_offline(world)  # else a last restart published something else


def agrees_offline(world: World) -> None:
    assert world.published == world.offline()
    memories = [records[-1].alert_memory for records in world.progress]
    assert (world.alerted, memories) == world.offline_alerts()


@settings(max_examples=1_000)
@given(schedules, st.sampled_from((1, 2, 2, 4)))
def test_whatever_happens_live_is_offline_bit_for_bit(schedule: bytes, n_replicas: int) -> None:
    run(schedule, n_replicas)
