"""Kills a scorer again and again under load; the oracle judges: `python -m tests.pipelines.live.kill_run --help`.

python -m tests.pipelines.live.kill_run --bootstrap 127.0.0.1:9092 --kills 300 --per-s 1000 --order-wait-ms 0
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.contracts.stream import Stream
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.progress import read_progress
from pipelines.kafka.topics import KEEP_FOR_EVER
from tests.pipelines.live.kill_load import Load
from tests.pipelines.live.kill_stream import N_PARTITIONS, stream_named

POINTS = (
    "after_flush",
    "before_outbox_drop",
    "mid_snapshot",
    "mid_restore",
    "after_poll",
    "mid_fold",
    "before_flush",
    "after_outbox_drop",
    "between_claims",
)


@dataclass(frozen=True)
class Run:
    """What to do: each of `POINTS` in turn, after every third of them a kill at a random time."""

    bootstrap: str
    kills: int = 12
    per_s: int = 1_100
    seed: int = 0
    order_wait_ms: int = 50
    longest_life_s: float = 4.0


@dataclass
class Outcome:
    """What happened; `problems` empty means that nothing was lost, doubled or different."""

    kills: dict[str, int] = field(default_factory=dict)
    n_from_snapshot: int = 0
    n_without_snapshots: int = 0
    seconds_of_load: float = 0.0
    seconds_in_all: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    problems: dict[str, int] = field(default_factory=dict)


def plan(run: Run) -> list[str]:
    """Fault specs, one per kill; "" is a random time."""
    chance = random.Random(run.seed)
    specs = []
    for number in range(run.kills):
        if number % 4 == 3:
            specs.append("")
            continue
        point = POINTS[(number - number // 4) % len(POINTS)]
        most = {"mid_snapshot": 2, "mid_restore": 3, "between_claims": N_PARTITIONS}.get(point, 60)
        specs.append(f"{point}:{chance.randint(1, most)}")
    return specs


def kill_run(run: Run, folder: Path) -> Outcome:
    """Kill, restart, kill; drain; judge. Logs of all lives stay in `folder`."""
    began = time.monotonic()
    name = f"kill-{run.seed}-{time.time_ns() // 1_000_000}"
    stream, connection = stream_named(name), Connection(run.bootstrap)
    counts = {stream.topic(k): N_PARTITIONS for k in ("events", "labels", "scores", "alerts", "refused", "progress")}
    topics.create_topics(connection, counts, config=KEEP_FOR_EVER | {"message.timestamp.type": "LogAppendTime"})
    chance, outcome = random.Random(run.seed + 1), Outcome()
    snapshots = folder / "snapshots"
    load = Load(connection, stream, per_s=run.per_s, seed=run.seed)
    load.start()
    started = time.monotonic()
    try:
        for number, spec in enumerate(plan(run)):
            if number == 2 * run.kills // 3:
                shutil.rmtree(snapshots, ignore_errors=True)
                outcome.n_without_snapshots += 1
            with open(folder / f"life-{number:03d}.log", "wb") as log:
                died_of = _one_life(run, stream, snapshots, spec, chance, log)
            outcome.kills[died_of] = outcome.kills.get(died_of, 0) + 1
        with open(folder / "life-last.log", "wb") as log:
            last = _start(run, stream, snapshots, "", log)
            load.stop()
            outcome.seconds_of_load = round(time.monotonic() - started, 1)
            _wait_until_drained(connection, stream, last)
            last.terminate()
            if last.wait(timeout=30) != 0:
                raise RuntimeError(f"the last scorer did not stop cleanly; see {log.name}")
    finally:
        load.stopping.set()
    outcome.n_from_snapshot = sum("restored from snapshot" in p.read_text() for p in folder.glob("life-*.log"))
    verdict = _judge(run.bootstrap, name)
    outcome.counts, outcome.problems = verdict["counts"], verdict["problems"]
    outcome.seconds_in_all = round(time.monotonic() - began, 1)
    return outcome


def _start(run: Run, stream: Stream, snapshots: Path, spec: str, log: Any) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "tests.pipelines.live.live_scorer",
        "--bootstrap",
        run.bootstrap,
        "--stream",
        stream.name,
    ]
    command += ["--snapshots", str(snapshots), "--fault", spec, "--order-wait-ms", str(run.order_wait_ms)]
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"})


def _one_life(run: Run, stream: Stream, snapshots: Path, spec: str, chance: random.Random, log: Any) -> str:
    """Start a scorer and see it killed; returns by what."""
    scorer = _start(run, stream, snapshots, spec, log)
    try:
        code = scorer.wait(timeout=chance.uniform(0.5, run.longest_life_s) if not spec else 6 * run.longest_life_s)
    except subprocess.TimeoutExpired:
        scorer.kill()
        scorer.wait()
        return "a random time"
    if code != -9:
        raise RuntimeError(f"the scorer ended with {code} instead of being killed at {spec}; see {log.name}")
    return spec.partition(":")[0]


def _wait_until_drained(connection: Connection, stream: Stream, scorer: subprocess.Popen[bytes]) -> None:
    ends = {p: end for (_, p), (_, end) in topics.bounds(connection, [stream.topic("events")]).items()}
    until = time.monotonic() + 60
    while True:
        told = {p: read_progress(connection, stream, p) for p in ends}
        if all(one is not None and one.next_offset >= ends[p] for p, one in told.items()):
            return
        if scorer.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"the last scorer did not come to the end: {told}, ends {ends}")
        time.sleep(0.2)


def _judge(bootstrap: str, name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.pipelines.live.oracle", "--bootstrap", bootstrap, "--stream", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=3_600)
    verdict: dict[str, Any] = json.loads(done.stdout)
    return verdict


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--kills", type=int, default=Run.kills)
    parser.add_argument("--per-s", type=int, default=Run.per_s)
    parser.add_argument("--seed", type=int, default=Run.seed)
    parser.add_argument("--order-wait-ms", type=int, default=Run.order_wait_ms)
    parser.add_argument("--longest-life-s", type=float, default=Run.longest_life_s)
    run = Run(**vars(parser.parse_args()))
    folder = Path(tempfile.mkdtemp(prefix="unmask-kill-"))
    outcome = kill_run(run, folder)
    print(json.dumps(asdict(run) | asdict(outcome), indent=1))
    if outcome.problems:
        sys.exit(f"the logs of every life are in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
