"""The proof: a scorer is killed under load, and nothing is lost, doubled or different.

A small share of it; all seams: `python -m tests.pipelines.live.kill_run`.
"""

from pathlib import Path

import pytest

from tests.pipelines.kafka.adapters import ADAPTERS
from tests.pipelines.live.kill_run import Run, kill_run, wrong


@pytest.mark.parametrize("client", ADAPTERS)
def test_a_scorer_that_is_killed_again_and_again_loses_doubles_and_changes_nothing(
    kafka: str, tmp_path: Path, client: str
) -> None:
    # The wait is negative and one partition read late, so that much comes out of turn: its places must survive too.
    run = Run(kafka, kills=4, per_s=400, seed=7, order_wait_ms=-1_000, client=client)
    outcome = kill_run(run, tmp_path)
    print(outcome)
    assert not wrong(run, outcome)
