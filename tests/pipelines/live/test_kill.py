"""The proof: a scorer is killed at every seam under load, and nothing is lost, doubled or different."""

from pathlib import Path

import pytest

from tests.pipelines.live.kill_run import Run, kill_run


@pytest.mark.timeout(600)
def test_a_scorer_killed_at_every_seam_loses_doubles_and_changes_nothing(kafka: str, tmp_path: Path) -> None:
    # The wait is negative and one partition read late, so that much comes out of turn: its places must survive too.
    run = Run(kafka, kills=12, per_s=1_100, seed=7, order_wait_ms=-1_000)
    outcome = kill_run(run, tmp_path)
    print(outcome)
    assert outcome.problems == {}
    assert sum(outcome.kills.values()) >= 10
    assert len(outcome.kills) >= 8
    assert outcome.n_from_snapshot >= 2
    assert outcome.n_without_snapshots >= 1
    counts = outcome.counts
    assert counts["scored"] + counts["refused"] + counts["duplicates"] == counts["events"]
    assert counts["out of turn"] > 0
    assert min(counts[kind] for kind in ("late", "duplicates", "refused", "labels", "alerts", "with frauds")) > 100
