"""The parts of the benchmark on a broker: throughput, scale, latency. Each row is written as soon as it is there."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import msgspec

from tests.bench.stream import latency, replicas, scale
from tests.bench.stream.backlog import N_PARTITIONS, Backlog, customers_for, payments_of
from tests.bench.stream.plan import Run, python_for, runs_of
from tests.bench.stream.prepared import prepared
from tests.bench.stream.profiling import summary
from tests.bench.stream.report import Report, Row
from tests.bench.stream.runs import row_of, started
from tests.bench.stream.task import Found, Task
from tests.bench.tables import BenchError

TRAINING, QUICK_TRAINING = (850, 1_600), (100, 60)  # customers, steps of pretraining
SECONDS, QUICK_SECONDS = 60.0, 3.0  # of a step of the latency
STEPS, QUICK_STEPS = 12, 2


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


@dataclass
class Bench:
    """A run of the benchmark on a broker."""

    asked: argparse.Namespace
    bootstrap: str
    report: Report
    folder: Path
    backlogs: dict[str, Backlog] = field(default_factory=dict)

    @cached_property
    def runs(self) -> list[Run]:
        """The runs that were asked for."""
        asked = self.asked
        return runs_of(asked.systems, asked.clients, asked.forms, asked.streams)

    def trained(self, stream: str) -> Path:
        """What the systems score a stream with."""
        n_customers, steps = QUICK_TRAINING if self.asked.quick else TRAINING
        return prepared(stream, self.folder, n_customers=n_customers, max_steps=steps, say=say)

    def backlog(self, prefix: str, n_customers: int) -> Backlog:
        """A stream whose events are there."""
        if prefix not in self.backlogs:
            say(f"{self.asked.events:,} payments of {n_customers:,} customers to {prefix}.events")
            self.backlogs[prefix] = Backlog(self.bootstrap, prefix)
            self.backlogs[prefix].write(payments_of(self.asked.events, n_customers))
        return self.backlogs[prefix]

    def row(self, part: str, run: Run, make: Callable[[], Row]) -> Row:
        """Make a row and write it, unless it is there; a failure becomes a row that says why."""
        settings = {"asked_events": self.asked.events, "quick": self.asked.quick, "profiled": self.asked.profile}
        key = {**run._asdict(), "part": part, **settings}
        if kept := self.report.row(**key):
            say(f"{part}: {run}: kept")
            return kept
        say(f"{part}: {run}")
        try:
            made = make()
        except BenchError as error:
            say(f"  {error}")
            made = {"why": str(error)}
        return self.report.add({**key, **made})

    def measure(self, run: Run, backlog: Backlog) -> tuple[Row, Found]:
        """Run a system on a backlog, and check what it published; the round with the least CPU time counts."""
        name = "-".join(run)
        profile = str(self.asked.out.absolute().with_suffix(f".{name}.json")) if self.asked.profile else ""
        every = max(1, self.asked.events // scale.N_STEPS)
        python, folder = python_for(run.system, say), str(self.trained(run.stream))
        task = Task(*run, backlog.prefix, self.bootstrap, folder, "", backlog.ends, every=every, profile=profile)
        rounds = []
        for _ in range(self.asked.rounds):
            backlog.renew_outputs()
            with started(task, python) as running:
                rounds.append(running.found())
            backlog.check(run.system, run.form)
            say(f"  {rounds[-1].events / rounds[-1].cpu_s:,.0f} events per CPU-second")
        if profile:
            say(f"  {profile}\n{summary(Path(profile))}")
        best = min(rounds, key=lambda found: found.cpu_s)
        return {**row_of(task, best), "rounds_cpu_s": [round(found.cpu_s, 3) for found in rounds]}, best

    def throughput(self) -> None:
        """Events per CPU-second of each run."""
        for run in self.runs:
            self.row("throughput", run, partial(self._plain, run))

    def _plain(self, run: Run) -> Row:
        row, _ = self.measure(run, self.backlog(f"bench-{run.stream}", customers_for(self.asked.events)))
        return row

    def scaled(self) -> None:
        """Curves of events per CPU-second by entities and history, and their picture."""
        curves = self.report.parts.setdefault("scale", {})
        for name, n_customers in scale.customers(self.asked.events).items():
            for run in self.runs:
                if run.stream == "key":
                    row = self.row(f"scale, {name}", run, partial(self._along, run, n_customers))
                    if row.get("curve"):
                        curves[f"{run.system} ({run.client}, {run.form}), {name}"] = row["curve"]
        if curves:
            scale.draw(curves, self.asked.out.with_suffix(".png"))
        self.report.write()

    def _along(self, run: Run, n_customers: int) -> Row:
        row, found = self.measure(run, self.backlog(f"scale-{n_customers}", n_customers))
        return {**row, "customers": n_customers, "curve": scale.curve(found)}

    def replicated(self) -> None:
        """CPU time of one and more replicas together, and their picture."""
        for run in self.runs:
            if run.system == "unmask":
                for n in replicas.NUMBERS:
                    self.row(f"{n} replicas", run, partial(self._together, run, n))
        costs = self.report.parts.setdefault("replicas", {})
        for run in self.runs:
            rows = {n: self.report.row(**run._asdict(), part=f"{n} replicas") for n in replicas.NUMBERS}
            if all(rows.values()):
                costs[str(run)] = {n: round(1e6 / row["events_per_cpu_s"], 2) for n, row in rows.items() if row}
        if costs:
            replicas.draw(costs, self.asked.out.with_suffix(".replicas.png"))
        for name, cost in costs.items():
            say(f"{name}: {cost} us per event; {replicas.expected_us(cost)} expected")
        self.report.write()

    def _together(self, run: Run, n_replicas: int) -> Row:
        backlog = self.backlog(f"bench-{run.stream}", customers_for(self.asked.events))
        backlog.renew_outputs()
        task = Task(*run, backlog.prefix, self.bootstrap, str(self.trained(run.stream)), "", backlog.ends)
        with ExitStack() as stack:
            running = []
            for number in range(n_replicas):
                own = sorted(replicas.partitions_of(number, n_replicas, N_PARTITIONS))
                running.append(stack.enter_context(started(msgspec.structs.replace(task, partitions=own))))
            found = [one.found() for one in running]
        backlog.check(run.system, run.form)
        cpu_s, wall_s = sum(one.cpu_s for one in found), max(one.wall_s for one in found)
        say(f"  {task.n_events / cpu_s:,.0f} events per CPU-second")
        return {**row_of(task, Found(task.n_events, cpu_s, wall_s)), "replicas_cpu_s": [one.cpu_s for one in found]}

    def latencies(self) -> None:
        """Rate and latency of `bare` and Unmask, and the broker's own commits at these rates."""
        rates = dict[str, float]()
        for run in self.runs:
            if run.system in ("bare", "unmask") and run.form == "events":
                row = self.row("latency", run, partial(self._late, run))
                rates[str(run)] = row.get("rate_per_s") or 0.0
        commits = self.report.parts.setdefault("broker_commits", {})
        for name, rate in rates.items():
            if rate and name not in commits:
                commits[name] = latency.commits(self.bootstrap, rate, min(self.asked.seconds, 20.0))
                say(f"the broker's own commits at {rate:,.0f} events/s: {commits[name]}")
        self.report.write()

    def _late(self, run: Run) -> Row:
        """The first rate is half of what the system did with the backlog."""
        known = self.report.row(**run._asdict(), part="throughput") or {}
        wall_s, n = known.get("wall_s"), known.get("events")
        return latency.measured(
            run,
            self.bootstrap,
            self.trained(run.stream),
            first_rate=0.5 * n / wall_s if wall_s and n else 4_000.0,
            seconds=self.asked.seconds,
            most_steps=QUICK_STEPS if self.asked.quick else STEPS,
            say=say,
        )
