"""One round: replicas of a scorer under load, killed one after the other; then the oracle judges."""

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts.stream import Stream
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.progress import all_progress
from pipelines.kafka.topics import KEEP_FOR_EVER
from tests.faults.fleet import Fleet, Life
from tests.patience import wait_until
from tests.pipelines.kafka.adapters import CLIENT
from tests.pipelines.live.kill_load import Load
from tests.pipelines.live.kill_stream import KEY, N_PARTITIONS, stream_named

# Where a life is killed. Those at the start of a life, the others once it publishes. Most are in an open transaction.
AT_START = ("mid_restore", "between_claims", "between_claims", "mid_snapshot")
RUNNING = ("after_flush", "after_flush", "after_flush", "before_outbox_drop", "after_poll", "mid_fold", "before_flush",
           "after_outbox_drop")  # fmt: skip
RANDOM = "a random time"


@dataclass(frozen=True)
class Round:
    """What to do.

    Args:
        replicas: how many scorers share the stream.
        order_wait_ms: below 0 one partition is read late now and then, so that much comes out of turn.
    """

    bootstrap: str
    kills: int = 20
    replicas: int = 1
    per_s: int = 1_100
    seed: int = 0
    order_wait_ms: int = 50
    client: str = CLIENT
    stream: str = "merged"


@dataclass
class Outcome:
    """What happened; `problems` empty means that nothing was lost, doubled or different."""

    kills_by_point: dict[str, int] = field(default_factory=dict)
    in_open_transaction: int = 0
    takeovers: int = 0
    in_takeover: int = 0
    snapshot_restores: int = 0
    restart_s: list[float] = field(default_factory=list)
    takeover_s: list[float] = field(default_factory=list)
    load_s: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    problems: dict[str, int] = field(default_factory=dict)


KINDS = ("late", "duplicates", "refused", "labels", "alerts", "with frauds", "by linear", "by doubled")


def wrong(run: Round, outcome: Outcome) -> list[str]:
    """What a round shows that it must not, or does not show though it must."""
    counts = outcome.counts
    least = min(100, counts["events"] // 200)
    told = [f"{what}: {n}" for what, n in outcome.problems.items()]
    for what, holds in (
        ("every kill", sum(outcome.kills_by_point.values()) == run.kills),
        ("restores from snapshots", outcome.snapshot_restores >= run.kills // 4 - 1),
        ("take-overs", outcome.takeovers > 0 or run.replicas == 1 or run.kills < 4),
        ("balanced books", counts["scored"] + counts["refused"] + counts["duplicates"] == counts["events"]),
        ("events out of turn", counts["out of turn"] > 0 or run.order_wait_ms >= 0),
        *((kind, counts[kind] > least) for kind in KINDS),
    ):
        if not holds:
            told.append(f"not seen: {what}")
    return told


def plan(run: Round) -> list[str]:
    """One fault spec for each kill; "" is a random time."""
    chance, specs = random.Random(run.seed), []
    running = [*RUNNING, ""]
    chance.shuffle(running)
    for number in range(run.kills):
        if number % 4 == 3:  # the life after a kill at a random time dies at its start
            point = AT_START[number // 4 % len(AT_START)]
            specs.append(f"{point}:{chance.randint(1, 2) if point == 'between_claims' else 1}")
        else:
            point = running[number % len(running)]
            specs.append(f"{point}:{chance.randint(1, 40)}" if point else "")
    return specs


class Judged:
    """A round in progress."""

    def __init__(self, run: Round, folder: Path) -> None:
        self.run, self.folder = run, folder
        self.stream: Stream = stream_named(
            f"{KEY if run.stream == 'key' else ''}faults-{run.seed}-{time.time_ns() // 1_000_000}"
        )
        self.connection = Connection(run.bootstrap)
        kinds = ("events", "labels", "scores", "alerts", "refused", "progress")
        counts = {self.stream.topic(kind): N_PARTITIONS for kind in kinds} | {self.stream.topic("clock"): 1}
        topics.create_topics(
            self.connection, counts, config=KEEP_FOR_EVER | {"message.timestamp.type": "LogAppendTime"}
        )
        self.fleet = Fleet(run.bootstrap, self.stream, folder, order_wait_ms=run.order_wait_ms, client=run.client)
        self.outcome, self.chance = Outcome(), random.Random(run.seed + 1)

    def owners(self) -> dict[int, tuple[str, int]]:
        """Owner and next offset of every partition."""
        found = all_progress(self.connection, self.stream, N_PARTITIONS)
        return {p: (told.owner, told.next_offset) for p, told in found.items() if told is not None}

    def until_published(self, *, by: Life | None = None, instead_of: str | None = None) -> None:
        """Until a life has published, or no partition is left with an owner that is gone."""
        before, now = self.owners(), dict[int, tuple[str, int]]()

        def holds() -> bool:
            now.update(self.owners())
            fresh = {p: owner for p, (owner, at) in now.items() if before.get(p, ("", -1)) != (owner, at)}
            if by is not None:
                return by.owner is not None and by.owner in fresh.values()
            mine = {p for p, (owner, _) in before.items() if owner == instead_of}
            return all(now[p][0] != instead_of for p in mine)

        wait_until(holds, seen=lambda: dict(now), alive=lambda: by is None or by.must_live())

    def has_open_transaction(self) -> bool:
        """Whether records of a transaction that is not finished wait in the scores."""
        positions = [(self.stream.topic("scores"), p) for p in range(N_PARTITIONS)]
        with self.connection.reading(dict.fromkeys(positions, 0)) as reader:
            stable, ends = reader.spans(positions), reader.ends(timeout_ms=5_000)
        return any(ends.get(position, 0) > stable[position][1] for position in positions)

    def leader(self) -> str:
        """The replica that owns the first partition: of a merged stream, only this one writes snapshots."""
        found = list[str]()

        def is_known() -> bool:
            owner = self.owners()[0][0]
            found[:] = [name for name, life in self.fleet.lives.items() if life.is_alive and life.owner == owner]
            return bool(found)

        wait_until(is_known)
        return found[0]

    def kill(self, number: int, spec: str) -> None:
        """One kill and what follows it."""
        names = [str(n) for n in range(self.run.replicas)]
        name, point = names[number % len(names)], spec.partition(":")[0] or RANDOM
        if point == "mid_snapshot" and self.run.stream == "merged":
            name = self.leader()
        life = self.fleet.lives[name]
        if point in AT_START:
            life.end()
            life = self.fleet.start(name, spec)
            life.wait_for_death()
            self.outcome.in_takeover += point == "between_claims"
        elif point == RANDOM:
            time.sleep(self.chance.uniform(0.0, 3.0))
            life.kill()
        else:
            life.arm(spec)
            life.wait_for_death()
        died = time.monotonic()
        self.outcome.kills_by_point[point] = self.outcome.kills_by_point.get(point, 0) + 1
        self.outcome.in_open_transaction += self.has_open_transaction()
        if self.run.replicas > 1 and number % 2 and life.owner is not None:
            self.until_published(instead_of=life.owner)
            self.outcome.takeovers += 1
            self.outcome.takeover_s.append(round(time.monotonic() - died, 2))
        if number == 2 * self.run.kills // 3 and self.run.replicas == 1:
            shutil.rmtree(self.folder / "snapshots", ignore_errors=True)
        self.start(name)

    def start(self, name: str) -> None:
        began = time.monotonic()
        life = self.fleet.start(name)
        self.until_published(by=life)
        self.outcome.restart_s.append(round(time.monotonic() - began, 2))

    def drain(self) -> None:
        """Until every event has been scored, refused or found to be a duplicate; then all replicas end cleanly."""
        ends = {p: end for (_, p), (_, end) in topics.bounds(self.connection, [self.stream.topic("events")]).items()}
        out: dict[int, int] = {}

        def all_is_out() -> bool:
            out.update({p: at for p, (_, at) in self.owners().items()})
            return all(out.get(p, 0) >= end for p, end in ends.items())

        wait_until(all_is_out, seen=out.copy, alive=self.fleet.must_live)
        for life in self.fleet.lives.values():
            life.end()


def run_round(run: Round, folder: Path) -> Outcome:
    """Kill, restart, kill; drain; judge. The logs of all lives stay in `folder`."""
    judged = Judged(run, folder)
    outcome = judged.outcome
    load = Load(judged.connection, judged.stream, per_s=run.per_s, seed=run.seed)
    load.start()
    began = time.monotonic()
    try:
        for n in range(run.replicas):
            judged.start(str(n))
        for number, spec in enumerate(plan(run)):
            judged.kill(number, spec)
        load.stop()
        outcome.load_s = round(time.monotonic() - began, 1)
        judged.drain()
    finally:
        load.stopping.set()
        judged.fleet.kill_all()
    outcome.snapshot_restores = judged.fleet.count_in_logs("restored from snapshot")
    outcome.counts, outcome.problems = judge(run, judged.stream)
    return outcome


def judge(run: Round, stream: Stream) -> tuple[dict[str, int], dict[str, int]]:
    """What the oracle counted, and the problems that it found, in a process of its own that shares no state."""
    command = [sys.executable, "-m", "tests.pipelines.live.oracle", "--bootstrap", run.bootstrap]
    done = subprocess.run([*command, "--stream", stream.name], stdout=subprocess.PIPE, check=False)
    verdict: dict[str, Any] = json.loads(done.stdout)
    return verdict["counts"], verdict["problems"]


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """p50 and p99."""
    if not values:
        return {"p50": None, "p99": None}
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2)}


def as_json(run: Round, outcome: Outcome) -> dict[str, Any]:
    """What one round was, and what came of it."""
    return asdict(run) | asdict(outcome)
