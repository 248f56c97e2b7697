"""Scorers are killed under load; nothing is lost, doubled or different. A small share of `python -m tests.faults`."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.round import Judged, Round, judge, run_round, wrong
from tests.pipelines.live.kill_load import Load


@pytest.mark.parametrize(
    "run",
    [
        # The wait is negative and one partition read late, so that much comes out of turn: its places must survive too.
        Round("", kills=4, replicas=1, per_s=400, seed=7, order_wait_ms=-1_000),
        Round("", kills=3, replicas=2, per_s=400, seed=8),
        Round("", kills=4, replicas=2, per_s=400, seed=9, order_wait_ms=-1_000, stream="key"),
    ],
    ids=["one replica", "two replicas", "two replicas, windows of the key"],
)
def test_scorers_that_are_killed_lose_double_and_change_nothing(run: Round, kafka: str, tmp_path: Path) -> None:
    run = Round(**{**run.__dict__, "bootstrap": kafka})
    outcome = run_round(run, tmp_path)
    print(outcome)
    assert not wrong(run, outcome)


@contextmanager
def two_replicas_under_load(bootstrap: str, folder: Path, *, stream: str, seed: int) -> Iterator[Judged]:
    """Two replicas and a load; at the end of the block every event is compared with the reference."""
    run = Round(bootstrap, replicas=2, per_s=400, seed=seed, stream=stream)
    judged = Judged(run, folder)
    load = Load(judged.connection, judged.stream, per_s=run.per_s, seed=seed)
    load.start()
    try:
        judged.start("0")
        judged.start("1")
        yield judged
        load.stop()
        judged.drain()
    finally:
        load.stopping.set()
        judged.fleet.kill_all()
    counts, problems = judge(run, judged.stream)
    print(counts)
    assert not problems
    assert counts["scored"] + counts["refused"] + counts["duplicates"] == counts["events"] > 1_000


@pytest.mark.parametrize("stream", ["merged", pytest.param("key", marks=pytest.mark.bench)])
def test_a_scorer_whose_clock_jumps_by_an_hour_to_and_fro_scores_as_the_reference(
    stream: str, kafka: str, tmp_path: Path
) -> None:
    with two_replicas_under_load(kafka, tmp_path, stream=stream, seed=5) as judged:
        for name in ("0", "1", "0", "1", "0", "1"):  # both ahead, both back, both right; never at the same time
            life = judged.fleet.lives[name]
            life.process.send_signal(signal.SIGUSR2)
            time.sleep(1.0)
            judged.until_published(by=life)


@pytest.mark.parametrize("stream", ["merged", "key"])
def test_a_scorer_that_stood_still_beyond_its_session_publishes_nothing_more_of_what_it_lost(
    stream: str, kafka: str, tmp_path: Path
) -> None:
    with two_replicas_under_load(kafka, tmp_path, stream=stream, seed=9) as judged:
        zombie = judged.fleet.lives["0"]
        owner = zombie.owner
        assert owner is not None
        zombie.process.send_signal(signal.SIGSTOP)
        judged.until_published(instead_of=owner)
        zombie.process.send_signal(signal.SIGCONT)
        time.sleep(5.0)  # it finds out, and has its share again
