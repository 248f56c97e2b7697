"""Scorers are killed under load; nothing is lost, doubled or different. A small share of `python -m tests.faults`."""

from pathlib import Path

import pytest

from tests.faults.round import Round, run_round, wrong


@pytest.mark.parametrize(
    "run",
    [
        # The wait is negative and one partition read late, so that much comes out of turn: its places must survive too.
        Round("", kills=4, replicas=1, per_s=400, seed=7, order_wait_ms=-1_000),
        Round("", kills=3, replicas=2, per_s=400, seed=8),
    ],
    ids=["one replica", "two replicas"],
)
def test_scorers_that_are_killed_lose_double_and_change_nothing(run: Round, kafka: str, tmp_path: Path) -> None:
    run = Round(**{**run.__dict__, "bootstrap": kafka})
    outcome = run_round(run, tmp_path)
    print(outcome)
    assert not wrong(run, outcome)
