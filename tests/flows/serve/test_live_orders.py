"""Orders to two replicas under load, as an operator gives them: models, thresholds, bad models, a restart."""

import json
import subprocess
import sys
import time

import pytest

from flows.backtesting.live_check import live_scores
from flows.backtesting.period import score
from flows.serve.live_scores import newest_scores
from flows.serve.model import model_of
from pipelines.lake import audit
from pipelines.lake.feature_table import feature_table
from pipelines.lake.ingest import ingest
from pipelines.live.control import order_of, send_order
from tests.flows.serve.cached import Home
from tests.flows.serve.live_run import live_run
from tests.patience import wait_until


def unmask(home: Home, *words: str) -> str:
    """Run a command as the operator does."""
    command = [sys.executable, "-m", "flows.cli", *words, "--stream", str(home.stream_file)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def check_history(home: Home, *, first: str, second: str, bad: str) -> None:
    """The commands of the history, and that a record put in by hand is found."""
    lines = [json.loads(line) for line in unmask(home, "history", "--json").splitlines()]
    moves, chain = lines[:-1], lines[-1]
    assert [(one["kind"], one.get("from"), one["digest"]) for one in moves[:2]] == [
        ("follow", None, first), ("use", first, second),
    ]  # fmt: skip
    assert (moves[-1]["kind"], moves[-1]["from"], moves[-1]["digest"], moves[-1]["refused"]) == (
        "return", bad, second, bad,
    )  # fmt: skip
    assert (chain["wrong"], chain["unchained"], len(chain["head"])) == ([], 0, 64)
    table = unmask(home, "history", "--verify", chain["head"])
    assert f"Head: {chain['head']}" in table
    used = json.loads(unmask(home, "history", "--at", moves[-1]["stored_at"], "--json"))
    assert (used["wanted"], used["since"]["kind"]) == (second, "return")
    assert {one["model"] for one in used["scored"]} == {first, second, bad}
    assert "No model was ordered until" in unmask(home, "history", "--at", "2020-01-01")

    order = b'{"kind":"use","digest":"x","why":"","by":"eve","at":""}'
    home.rig.send_raw(order, None, kind="control", partition=0)
    command = [sys.executable, "-m", "flows.cli", "history", "--stream", str(home.stream_file)]
    told = subprocess.run([*command, "--verify", "0" * 63 + "1"], capture_output=True, text=True, check=False)
    assert told.returncode == 1
    said = " ".join(told.stdout.split())
    assert "BROKEN" in said
    assert "it names no record before it" in said
    assert "no record has the hash" in said


@pytest.mark.timeout(900)
def test_every_order_reaches_all_replicas_and_no_event_is_lost_or_scored_twice(home: Home) -> None:
    first = home.put("first", threshold=1.0)
    with live_run(home) as run:
        rig = home.rig
        wait_until(lambda: len(newest_scores(rig.connection, home.stream, most=3_000)) >= 3_000)
        usual = run.share_above(0.01)
        second, bad = home.put("second", threshold=usual), home.put("bad", threshold=0.0)
        broken = home.put("broken", threshold=usual)
        weights = home.settings.model_cache / broken / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-7])

        assert "Scorers follow within" in unmask(home, "use-model", second, "--why", "newer")
        run.wait_for(model=second, threshold=usual)
        unmask(home, "set-threshold", "0.75", "--why", "test")
        run.wait_for(model=second, threshold=0.75, threshold_ordered=True)
        began = time.monotonic()
        unmask(home, "rollback", "--why", "test")
        run.wait_for(model=first, threshold=1.0, threshold_ordered=False)
        print(
            f"from the start of `unmask rollback` until both replicas use the model: {time.monotonic() - began:.1f} s"
        )

        run.stop("b")
        unmask(home, "use-model", second)
        run.wait_for(model=second, threshold=0.75)
        run.start("b")
        run.wait_for(model=second, threshold=0.75, caught_up=True)
        unmask(home, "set-threshold", "--own")
        run.wait_for(model=second, threshold=usual)

        told = subprocess.run(
            [sys.executable, "-m", "flows.cli", "use-model", broken, "--stream", str(home.stream_file)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (told.returncode, "bytes; expected" in told.stderr) == (2, True)
        send_order(rig.connection, home.stream, order_of("use", broken, why="not looked at", by="bob"))
        wait_until(lambda: all(broken in run.status_of(name).get("models_refused", {}) for name in "ab"))
        for name in "ab":
            status = run.status_of(name)
            assert "bytes; expected" in status["models_refused"][broken]
            assert (status["model"], status["health"]) == (second, "ok")
            assert f"model {broken[:12]} is not used, {second[:12]} stays" in run.log_of(name)
        unmask(home, "use-model", bad, "--why", "to be returned")
        wait_until(
            lambda: all(bad in run.status_of(name).get("models_refused", {}) for name in "ab"),
            seen=lambda: [run.status_of(name)["scored"] for name in "ab"],
        )
        run.wait_for(model=second, threshold=usual)
        run.load.stop()
        run.wait_until_all_is_out()
        run.stop("a")
        run.stop("b")

    assert audit.reconcile(rig.connection, home.stream).holds
    scores = newest_scores(rig.connection, home.stream, most=10**9)
    assert scores.select("partition", "offset").is_unique().all()
    assert set(scores["model"]) == {first, second, bad}
    backtest_is_equal(home, {first, second, bad})
    check_history(home, first=first, second=second, bad=bad)
    returned = [order for _, order in run.orders() if order.kind == "return"]
    assert {(order.refused, order.digest) for order in returned} == {(bad, second)}
    assert "raised an alert; expected are" in returned[0].why


def backtest_is_equal(home: Home, digests: set[str]) -> None:
    """A backtest has the bits of every live score, and its alerts, also those by an ordered threshold."""
    stream, lake = home.stream, home.settings.lake(home.stream)
    ingest(home.rig.connection, stream, lake)
    table = feature_table(lake, stream, home.settings.features(stream))
    rows = range(len(table))
    n_compared = n_ordered = 0
    for digest in digests:
        model = model_of(home.settings, stream, digest)
        check = live_scores(lake, table, rows, digest).compared(model, table, 0, score(model, table, rows))
        assert check.is_equal, check.words
        n_compared, n_ordered = n_compared + check.n_compared, n_ordered + check.n_ordered
    assert n_compared == len(rows)
    assert 0 < n_ordered < n_compared
