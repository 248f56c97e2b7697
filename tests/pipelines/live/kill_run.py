"""Kills a scorer again and again under load; the oracle judges: `python -m tests.pipelines.live.kill_run --help`.

python -m tests.pipelines.live.kill_run                      12 kills under 1,100 events/s, a broker of its own
python -m tests.pipelines.live.kill_run --bootstrap 127.0.0.1:9092 --kills 300 --per-s 1000 --order-wait-ms 0

Exit code 1 if something was lost, doubled or different, or the run did not try what it must.
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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from flows.local.kafka_server import start_broker
from pipelines.contracts.stream import Stream
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.progress import all_progress, read_progress
from pipelines.kafka.topics import KEEP_FOR_EVER
from tests.patience import HANG_S, wait_until
from tests.pipelines.kafka.adapters import ADAPTERS
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
    longest_life_s: float = 4.0  # of a life that ends at a random time, once it has written a snapshot
    client: str = "kafka-python"  # one of ADAPTERS

    @property
    def connection(self) -> Connection:
        return Connection(self.bootstrap, adapter=ADAPTERS[self.client])


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


KINDS = ("late", "duplicates", "refused", "labels", "alerts", "with frauds")


def wrong(run: Run, outcome: Outcome) -> list[str]:
    """What a run shows that it must not, or does not show though it must."""
    counts, n_random = outcome.counts, run.kills // 4
    least = min(100, counts["events"] // 200)
    n_seams = min(run.kills - n_random, len(POINTS))
    told = [f"{what}: {n}" for what, n in outcome.problems.items()]
    for what, holds in (
        ("every kill", sum(outcome.kills.values()) == run.kills),
        ("every seam", len(outcome.kills) == n_seams + (n_random > 0)),
        ("restores from snapshots", outcome.n_from_snapshot >= n_random - 1),
        ("a start without snapshots", outcome.n_without_snapshots >= 1),
        ("balanced books", counts["scored"] + counts["refused"] + counts["duplicates"] == counts["events"]),
        ("events out of turn", counts["out of turn"] > 0 or run.order_wait_ms >= 0),
        *((kind, counts[kind] > least) for kind in KINDS),
    ):
        if not holds:
            told.append(f"not seen: {what}")
    return told


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
    stream, connection = stream_named(name), run.connection
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
            try:
                load.stop()
                outcome.seconds_of_load = round(time.monotonic() - started, 1)
                _wait_until_drained(connection, stream, last)
                last.terminate()
                if last.wait(timeout=HANG_S) != 0:
                    raise RuntimeError(f"the last scorer did not stop cleanly; see {log.name}")
            finally:
                last.kill()
                last.wait()
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
        "--client",
        run.client,
        "--stream",
        stream.name,
    ]
    command += ["--snapshots", str(snapshots), "--fault", spec, "--order-wait-ms", str(run.order_wait_ms)]
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"})


def _one_life(run: Run, stream: Stream, snapshots: Path, spec: str, chance: random.Random, log: Any) -> str:
    """Start a scorer and see it killed; returns by what."""
    scorer = _start(run, stream, snapshots, spec, log)
    try:
        if not spec:
            _wait_until_worth_killing(run, stream, snapshots, scorer)
            time.sleep(chance.uniform(0.0, run.longest_life_s))
            return "a random time"
        code = scorer.wait(timeout=HANG_S)  # events keep coming, so each seam is passed sooner or later
    finally:
        scorer.kill()
        scorer.wait()
    if code != -9:
        raise RuntimeError(f"the scorer ended with {code} instead of being killed at {spec}; see {log.name}")
    return spec.partition(":")[0]


def _wait_until_worth_killing(run: Run, stream: Stream, snapshots: Path, scorer: subprocess.Popen[bytes]) -> None:
    """Until this life has written a snapshot, and published what came out of turn where a partition is read late."""
    connection, known = run.connection, set(snapshots.glob("*.snapshot"))
    out_before = _n_out_of_turn(connection, stream)
    out = list(out_before)

    def is_worth_it() -> bool:
        out[:] = _n_out_of_turn(connection, stream)
        more = out[0] > out_before[0] or run.order_wait_ms >= 0
        return more and bool(set(snapshots.glob("*.snapshot")) - known)

    wait_until(is_worth_it, seen=lambda: tuple(out), alive=lambda: scorer.poll() is None)


def _n_out_of_turn(connection: Connection, stream: Stream) -> tuple[int, int]:
    """Events published out of turn, and all published, since the beginning."""
    told = [p for p in all_progress(connection, stream, N_PARTITIONS).values() if p is not None]
    return sum(p.n_out_of_turn for p in told), sum(p.next_offset for p in told)


def _wait_until_drained(connection: Connection, stream: Stream, scorer: subprocess.Popen[bytes]) -> None:
    ends = {p: end for (_, p), (_, end) in topics.bounds(connection, [stream.topic("events")]).items()}
    out: dict[int, int] = {}

    def all_is_out() -> bool:
        told = {p: read_progress(connection, stream, p) for p in ends}
        out.update({p: one.next_offset for p, one in told.items() if one is not None})
        return all(out.get(p, 0) >= end for p, end in ends.items())

    wait_until(all_is_out, seen=lambda: (out.copy(), ends), alive=lambda: scorer.poll() is None)


def _judge(bootstrap: str, name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.pipelines.live.oracle", "--bootstrap", bootstrap, "--stream", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=3_600)
    verdict: dict[str, Any] = json.loads(done.stdout)
    return verdict


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bootstrap", default="", help="a broker; without it one is started")
    parser.add_argument("--kills", type=int, default=Run.kills)
    parser.add_argument("--per-s", type=int, default=Run.per_s)
    parser.add_argument("--seed", type=int, default=Run.seed)
    parser.add_argument("--order-wait-ms", type=int, default=-1_000, help="below 0 one partition is read late")
    parser.add_argument("--longest-life-s", type=float, default=Run.longest_life_s)
    parser.add_argument("--client", default=Run.client, choices=ADAPTERS)
    run = Run(**vars(parser.parse_args()))
    folder = Path(tempfile.mkdtemp(prefix="unmask-kill-"))
    own = None if run.bootstrap else start_broker(folder / "kafka")
    try:
        run = run if own is None else replace(run, bootstrap=own.bootstrap)
        outcome = kill_run(run, folder)
    finally:
        if own is not None:
            own.stop()
    print(json.dumps(asdict(run) | asdict(outcome), indent=1))
    if found := wrong(run, outcome):
        sys.exit("\n".join([*found, f"the logs of every life are in {folder}"]))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
