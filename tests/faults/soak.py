"""Replicas join, leave, die and stand still under load, for a number of changes or for a time; then the oracle judges.

The first replica lives throughout, so that its memory can be watched: it must stay flat.
"""

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tests.faults.fleet import SESSION_S, Life
from tests.faults.round import Judged, Round, judge, percentiles
from tests.patience import wait_until
from tests.pipelines.live.kill_load import Load
from tests.pipelines.live.kill_stream import N_PARTITIONS

MOST_REPLICAS = N_PARTITIONS  # each has one, so that it can be seen to publish
CALM_S = 3.0  # longest pause between a change that was got over and the next one
FIRST = "0"
CHANGES = ("join", "leave", "kill", "stand still")
MOST_GROWTH = 1.15  # of the memory, from the second to the last quarter of the time


@dataclass
class SoakOutcome:
    """What happened. `settled_s`: seconds after each change until all partitions had published again."""

    changes: dict[str, int] = field(default_factory=dict)
    settled_s: list[float] = field(default_factory=list)
    resident_mib: list[tuple[float, float]] = field(default_factory=list)  # (s since the start, of the first replica)
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    problems: dict[str, int] = field(default_factory=dict)


def growth(resident_mib: Sequence[tuple[float, float]]) -> float | None:
    """Memory of the last quarter of the time over that of the second one; None if there are too few samples.

    >>> growth([(float(t), 100.0 + (t > 5) * 10) for t in range(20)])
    1.0476190476190477
    """
    if len(resident_mib) < 20:
        return None
    quarters = np.array_split(np.array([mib for _, mib in resident_mib]), 4)
    return float(quarters[3].mean() / quarters[1].mean())


class _Soak:
    def __init__(self, run: Round, folder: Path) -> None:
        self.judged, self.outcome = Judged(run, folder), SoakOutcome()
        self.chance, self.began, self.n_joined = random.Random(run.seed), time.monotonic(), 0

    @property
    def others(self) -> dict[str, Life]:
        """The replicas that may go."""
        return {name: life for name, life in self.judged.fleet.lives.items() if name != FIRST}

    def change(self) -> None:
        """One change, and what follows it until every partition has published again."""
        others = self.others
        possible = CHANGES if others else ("join", "stand still")
        what = self.chance.choice([one for one in possible if one != "join" or len(others) < MOST_REPLICAS - 1])
        at = time.monotonic()
        if what == "join":
            self.n_joined += 1
            self.judged.start(str(self.n_joined))
        elif what == "stand still":
            self.stand_still(self.chance.choice(list(self.judged.fleet.lives.values())))
        else:
            name = self.chance.choice(list(others))
            life = self.judged.fleet.lives.pop(name)
            (life.end if what == "leave" else life.kill)()
        self.settle()
        self.outcome.changes[what] = self.outcome.changes.get(what, 0) + 1
        self.outcome.settled_s.append(round(time.monotonic() - at, 2))
        self.sample()

    def stand_still(self, life: Life) -> None:
        """A process is stopped for longer than its session: others take its partitions, and it must not publish."""
        life.process.send_signal(signal.SIGSTOP)
        time.sleep(SESSION_S + 2)
        life.process.send_signal(signal.SIGCONT)

    def settle(self) -> None:
        """Until every partition has published anew."""
        before, now = self.judged.owners(), dict[int, tuple[str, int]]()

        def holds() -> bool:
            now.update(self.judged.owners())
            return all(now[p][1] > at for p, (_, at) in before.items())

        wait_until(holds, seen=now.copy, alive=self.judged.fleet.must_live)

    def sample(self) -> None:
        pages = int(Path(f"/proc/{self.judged.fleet.lives[FIRST].process.pid}/statm").read_text().split()[1])
        self.outcome.resident_mib.append((round(time.monotonic() - self.began, 1), round(pages / 256, 1)))


def run_soak(run: Round, folder: Path, *, changes: int, seconds: float) -> SoakOutcome:
    """Change the replicas at least `changes` times and for at least `seconds`; drain; judge."""
    soak = _Soak(run, folder)
    judged, outcome = soak.judged, soak.outcome
    load = Load(judged.connection, judged.stream, per_s=run.per_s, seed=run.seed)
    load.start()
    try:
        for name in map(str, range(run.replicas)):
            judged.start(name)
            soak.n_joined = int(name)
        while sum(outcome.changes.values()) < changes or time.monotonic() - soak.began < seconds:
            soak.change()
            print(
                f"{time.monotonic() - soak.began:6.0f} s: {outcome.changes}, {outcome.resident_mib[-1][1]} MiB",
                flush=True,
            )
            time.sleep(soak.chance.uniform(0.0, CALM_S))
        load.stop()
        outcome.seconds = round(time.monotonic() - soak.began, 1)
        judged.drain()
    finally:
        load.stopping.set()
        judged.fleet.kill_all()
    outcome.counts, outcome.problems = judge(run, judged.stream)
    return outcome


def soak_wrong(outcome: SoakOutcome) -> list[str]:
    """What a soak shows that it must not."""
    counts = Counter(outcome.counts)
    told = [f"{what}: {n}" for what, n in outcome.problems.items()]
    if counts["scored"] + counts["refused"] + counts["duplicates"] != counts["events"]:
        told.append("not seen: balanced books")
    if (grown := growth(outcome.resident_mib)) is not None and grown > MOST_GROWTH:
        told.append(f"resident memory grew by {grown - 1:.0%}")
    return told


def soak_summary(run: Round, outcome: SoakOutcome) -> dict[str, Any]:
    """The figures."""
    counts = outcome.counts
    return {
        "changes": outcome.changes,
        "events": counts["events"],
        "events_per_s": round(counts["events"] / outcome.seconds),
        "seconds": outcome.seconds,
        "out_of_order": counts["out of turn"],
        "problems": outcome.problems,
        "settled_s": percentiles(outcome.settled_s),
        "resident_growth": growth(outcome.resident_mib),
        "run": asdict(run),
        "resident_mib": outcome.resident_mib,
    }


def draw(outcome: SoakOutcome, path: Path) -> None:
    """The resident memory of the first replica over the time."""
    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    axes.plot(*zip(*outcome.resident_mib, strict=True), marker=".")
    axes.set(xlabel="s since the start", ylabel="resident memory of the first replica, MiB", ylim=(0, None))
    axes.grid(True, alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def report(run: Round, outcome: SoakOutcome, out: Path | None) -> Mapping[str, Any]:
    """Print the figures; write them, and the picture, beside `out`."""
    found = soak_summary(run, outcome)
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n")
        draw(outcome, out.with_suffix(".png"))
    print(json.dumps({name: value for name, value in found.items() if name != "resident_mib"}, indent=1))
    return found
