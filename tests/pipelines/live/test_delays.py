"""Scores that come late are told once for each episode, whatever restarts meanwhile."""

import time
from collections import defaultdict
from pathlib import Path

from kafka import KafkaProducer
from msgspec.structs import replace

from flows.serve.follow import readable_alerts
from pipelines.contracts.delays import OpenDelay, ScoringDelayed
from pipelines.contracts.messages import decode
from pipelines.kafka.port import Adapter
from pipelines.kafka.progress import read_progress
from pipelines.live.delays import Delays
from tests.patience import wait_until
from tests.pipelines.live.kill_stream import stream_named
from tests.pipelines.live.rig import N_PARTITIONS, Rig, Running, at_passage, running
from tests.pipelines.live.test_storms import progress_with

BOUND_MS = 4_000


def delays_of(rig: Rig) -> dict[int, list[ScoringDelayed]]:
    """What was told of each partition, in order."""
    found = defaultdict[int, list[ScoringDelayed]](list)
    for record in rig.published("alerts"):
        for told in readable_alerts([record]):
            if isinstance(told, ScoringDelayed):
                assert record.partition == told.partition
                found[told.partition].append(told)
    return found


def test_a_delay_is_told_when_the_bound_is_passed_and_when_the_lag_is_below_half_of_it() -> None:
    delays = Delays(stream_named("s"), 3, 60_000)
    progress, now_ms, told = progress_with(None), 1_000_000, list[tuple[int, ScoringDelayed]]()
    lags = (0, 60_000, 60_001, 90_000, 30_001, 70_000, 30_000, 60_000, 1, 80_000)
    for lag_ms in lags:
        delay, messages = delays.told(progress, oldest_ms=now_ms - lag_ms, now_ms=now_ms)
        progress = replace(progress, delay=delay)
        told += [(lag_ms, decode(message.value, ScoringDelayed)) for message in messages]
    assert [(lag_ms, one.recovered, one.highest_lag_ms) for lag_ms, one in told] == [
        (60_001, False, 60_001),
        (30_000, True, 90_000),
        (80_000, False, 80_000),
    ]
    assert {one.partition for _, one in told} == {3}
    assert progress.delay == OpenDelay(now_ms - 80_000, 80_000)
    delay, (recovered,) = delays.told(progress, oldest_ms=None, now_ms=now_ms)
    assert delay is None
    assert decode(recovered.value, ScoringDelayed).recovered


def test_an_episode_is_told_once_over_lanes_that_die_in_it(kafka: str, tmp_path: Path, adapter: Adapter) -> None:
    rig = Rig(kafka, tmp_path, adapter=adapter)
    rig.send(200)
    with running(rig.scorer()):
        rig.wait_until_out()
    assert not delays_of(rig)
    rig.stream = replace(rig.stream, delayed_after_ms=BOUND_MS)

    def fail() -> None:
        raise ZeroDivisionError("the process dies here")

    points = ("before_flush", "after_flush", "before_outbox_drop", "after_outbox_drop")
    for episode, point in enumerate(points, 1):
        rig.send(2_000)
        time.sleep(BOUND_MS / 1000 + 0.2)
        run = Running(rig.scorer(fault=at_passage(point, 1, fail)))
        run.join()
        assert isinstance(run.error, ZeroDivisionError), run.error
        with running(rig.scorer()):
            rig.wait_until_out()
            rig.send(20)  # in time: the delay is over
            rig.wait_until_out()
            wait_until(
                lambda n=episode: all(len(told) == 2 * n for told in delays_of(rig).values()),  # type: ignore[misc]
                seen=lambda: [(one.partition, one.at) for told in delays_of(rig).values() for one in told],
            )
    found = delays_of(rig)
    assert sorted(found) == list(range(N_PARTITIONS))
    for p, told in found.items():
        assert [one.recovered for one in told] == [False, True] * len(points)
        for late, in_time in zip(told[::2], told[1::2], strict=True):
            assert late.since == in_time.since < late.at <= in_time.at
            assert in_time.highest_lag_ms >= late.lag_ms > BOUND_MS == late.bound_ms
            assert in_time.lag_ms <= BOUND_MS / 2
        progress = read_progress(rig.connection, rig.stream, p)
        assert progress is not None
        assert progress.delay is None
    assert len({score["event_id"] for score in rig.scores()}) == len(rig.scores()) == rig.n_sent


def test_events_that_no_one_can_read_yet_are_told_while_the_lane_has_nothing_to_publish(
    kafka: str, tmp_path: Path
) -> None:
    rig = Rig(kafka, tmp_path)
    rig.stream = replace(rig.stream, delayed_after_ms=BOUND_MS)
    with running(rig.scorer()) as run:
        rig.send(10)
        rig.wait_until_out()
        producer = KafkaProducer(bootstrap_servers=kafka, transactional_id=f"upstream-{rig.stream.name}")
        producer.init_transactions()
        producer.begin_transaction()
        event = b'{"id": "open", "at": %d, "card": "c0", "amount": 5.0}' % int(time.time() * 1000)
        producer.send(rig.stream.topic("events"), event, key=b"c0").get(30)
        wait_until(lambda: len(delays_of(rig)) > 0, alive=lambda: run.is_alive)
        ((partition, (late,)),) = delays_of(rig).items()
        assert not late.recovered
        producer.commit_transaction()
        producer.close()
        rig.n_sent += 1
        wait_until(lambda: len(rig.scores()) == rig.n_sent, alive=lambda: run.is_alive)
        wait_until(lambda: len(delays_of(rig)[partition]) == 2, alive=lambda: run.is_alive)
        time.sleep(1.0)
    assert [one.recovered for one in delays_of(rig)[partition]] == [False, True]
