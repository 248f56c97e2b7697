"""The live scorer beside its peers on one real broker: events per CPU-second, and with `--latency` how soon.

    python -m tests.bench.stream --out stream.json                          # every system, 300,000 events: 5 min
    python -m tests.bench.stream --quick --out stream.json                  # 20,000 events, without the peers apart
    python -m tests.bench.stream --systems bare,unmask --latency --scale --out stream.json
    python -m tests.bench.stream --systems unmask --profile --out stream.json

Each system runs in a process of its own and measures it: CPU time of all its threads and wall time, from just before
its loop (imports, model, compiling, opening clients are over) to the end of its last commit. The events are simulated
payments in 4 partitions, all there before it starts; it writes to fresh topics, which are read back (read_committed)
and counted: as many scores as events, each event once. What is fair, and what is not:

- `bare` only moves records: a constant one for each event, with the key of the event and the size and headers of
  Unmask's, 1,000 and a progress record in a transaction. It is a floor for a client in Python.
- `unmask` is the scorer of the service, with contract, one order, duplicates, hashes of the features, snapshots and
  alerts with reasons (0.5 % of the events). The others do none of these; they check that records were stored.
- `xgboost` has the window kernel of Unmask, 150 trees of depth 4 and transactions of 1,000 events. `packed` is one
  record for each partition and transaction. `river` has half-space trees on the same columns.
- `quix` has the same windows of the key in its state, and no model: the score is a z-score. It commits every 5 s, its
  default, because a commit writes the state of all changed customers. `quix-xgboost` asks the trees for each event.
- Stream `key` has windows of the Kafka key only (30 columns), `merged` of a second entity too (35), which Quix would
  have to key again over a topic of its own.

A row of FILE is kept by a later run with the same options and code; `--again` begins anew. Latency is from the
broker's time stamp of the event to the moment when a read_committed consumer in another process has the score.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from flows.local.kafka_server import start_broker
from pipelines.errors import UnmaskError
from tests.bench.stream import latency, scale
from tests.bench.stream.backlog import Backlog, customers_for, payments_of
from tests.bench.stream.plan import DEFAULT, SYSTEMS, Run, python_for, runs_of
from tests.bench.stream.prepared import prepared
from tests.bench.stream.report import Report, Row
from tests.bench.stream.runs import row_of, started
from tests.bench.stream.task import Found, Task
from tests.bench.tables import ROOT, BenchError, check_folder
from tests.detection.draws import simulated

FOLDER = ROOT / "build" / "bench-stream"
QUICK_EVENTS, QUICK_STEPS, STEPS = 20_000, 60, 1_600
SECONDS, QUICK_SECONDS = 60.0, 6.0


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def options(words: list[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, help=f"default 300,000; {QUICK_EVENTS:,} with --quick")
    parser.add_argument("--systems", help=f"comma list of {', '.join(SYSTEMS)}; default all")
    parser.add_argument(
        "--clients", default="kafka-python,confluent", help="comma list; default kafka-python,confluent"
    )
    parser.add_argument("--forms", default="events,packed", help="comma list; default events,packed")
    parser.add_argument("--latency", action="store_true", help="rate kept up with, and latency at half of it")
    parser.add_argument("--scale", action="store_true", help="ten times as many entities, ten times the history; a PNG")
    parser.add_argument("--profile", action="store_true", help="where CPU time goes, to FILE.SYSTEM-...json")
    parser.add_argument("--quick", action="store_true", help="few events, short steps, no river and Quix unless named")
    parser.add_argument("--again", action="store_true", help="measure every row again")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the rows")
    asked = parser.parse_args(words)
    asked.events = asked.events or (QUICK_EVENTS if asked.quick else 300_000)
    here = [name for name in DEFAULT if not (asked.quick and SYSTEMS[name].apart)]
    asked.systems = tuple((asked.systems or ",".join(here)).split(","))
    asked.clients, asked.forms = tuple(asked.clients.split(",")), tuple(asked.forms.split(","))
    if asked.events < 1_000:
        raise BenchError(f"--events is {asked.events}; it must be at least 1,000")
    return asked


@dataclass
class Bench:
    """A run of the benchmark on a broker."""

    asked: argparse.Namespace
    bootstrap: str
    report: Report

    @cached_property
    def runs(self) -> list[Run]:
        """The runs that were asked for."""
        return runs_of(self.asked.systems, self.asked.clients, self.asked.forms)

    def folder(self, stream: str) -> Path:
        """What the systems score a stream with."""
        steps = QUICK_STEPS if self.asked.quick else STEPS
        return prepared(stream, FOLDER, max_steps=steps, frame=lambda: simulated(0), say=say)

    def task(self, run: Run, backlog: Backlog) -> Task:
        """The task of a run."""
        name = "-".join(run)
        profile = str(self.asked.out.absolute().with_suffix(f".{name}.json")) if self.asked.profile else ""
        return Task(*run, backlog.prefix, self.bootstrap, str(self.folder(run.stream)), "", backlog.ends,
                    profile=profile, every=max(1, self.asked.events // scale.N_STEPS))  # fmt: skip

    def measure(self, run: Run, backlog: Backlog) -> tuple[Task, Found]:
        """Run a system on a backlog, and check what it published."""
        python, task = python_for(run.system, say), self.task(run, backlog)
        backlog.renew_outputs()
        with started(task, python) as running:
            found = running.found()
        backlog.check(run.system, run.form)
        return task, found

    def row(self, part: str, run: Run, make: Callable[[], Row]) -> None:
        """Make a row and write it, unless it is there; a failure becomes a row that says why."""
        settings = {"asked_events": self.asked.events, "quick": self.asked.quick, "profiled": self.asked.profile}
        key = {**run._asdict(), "part": part, **settings}
        if self.report.row(**key):
            say(f"{part}: {run}: kept")
            return
        say(f"{part}: {run}")
        try:
            made = make()
        except BenchError as error:
            say(f"  {error}")
            made = {"why": str(error)}
        self.report.add({**key, **made})

    def throughput(self) -> None:
        """Events per CPU-second of each run."""
        for stream in dict.fromkeys(run.stream for run in self.runs):
            backlog = self.filled(f"bench-{stream}", customers_for(self.asked.events))
            for run in self.runs:
                if run.stream == stream:
                    self.row("throughput", run, partial(self.plain, run, backlog))

    def plain(self, run: Run, backlog: Backlog) -> Row:
        """The row of a run on a backlog."""
        task, found = self.measure(run, backlog)
        say(f"  {found.events / found.cpu_s:,.0f} events per CPU-second")
        return row_of(task, found, "throughput")

    def filled(self, prefix: str, n_customers: int) -> Backlog:
        """A stream whose events are there."""
        backlog = Backlog(self.bootstrap, prefix)
        say(f"{self.asked.events:,} payments of {n_customers:,} customers to {prefix}.events")
        backlog.write(payments_of(self.asked.events, n_customers))
        return backlog

    def scaled(self) -> None:
        """Curves of events per CPU-second by entities and history, and their picture."""
        curves = self.report.parts.setdefault("scale", {})
        for name, n_customers in scale.customers(self.asked.events).items():
            backlog = self.filled(f"scale-{n_customers}", n_customers)
            for run in self.runs:
                if run.stream == "key":
                    self.row(f"scale, {name}", run, partial(self.along, run, name, backlog))
        rows = [row for row in self.report.rows if row.get("curve")]
        curves |= {f"{row['system']} ({row['client']}, {row['form']}), {row['entities']}": row["curve"] for row in rows}
        if curves:
            scale.draw(curves, self.asked.out.with_suffix(".png"))
        self.report.write()

    def along(self, run: Run, name: str, backlog: Backlog) -> Row:
        """The row of a run with its curve."""
        task, found = self.measure(run, backlog)
        return {**row_of(task, found, f"scale, {name}"), "entities": name, "curve": scale.curve(found)}

    def latencies(self) -> None:
        """Rate and latency of `bare` and Unmask, and the broker's own commits at that rate."""
        seconds = QUICK_SECONDS if self.asked.quick else SECONDS
        rates = dict[str, float]()
        for run in self.runs:
            if run.system in ("bare", "unmask") and run.form == "events":
                self.row("latency", run, partial(self.late, run, seconds))
                row = self.report.row(**run._asdict(), part="latency") or {}
                rates[run.system] = row.get("rate_per_s") or rates.get(run.system, 0.0)
        for system, rate in rates.items():
            if rate:
                found = latency.commits(self.bootstrap, rate, min(seconds, 20.0))
                self.report.parts.setdefault("broker_commits", {})[f"at the rate of {system}"] = found
                say(f"the broker's own commits at the rate of {system}: {found}")
        self.report.write()

    def late(self, run: Run, seconds: float) -> Row:
        """The row about the latency of a system. The first rate is half of what it did with the backlog."""
        known = self.report.row(**run._asdict(), part="throughput") or {}
        wall_s, n = known.get("wall_s"), known.get("events")
        first = 0.5 * n / wall_s if wall_s and n else 4_000.0
        return latency.measured(
            run, self.bootstrap, self.folder(run.stream), first_rate=first, seconds=seconds, say=say
        )


def main(words: list[str] | None = None) -> int:
    """Run the benchmark. Exit code 2: an option cannot be used, or there is no broker."""
    try:
        asked = options(words)
        check_folder(asked.out)
        runs_of(asked.systems, asked.clients, asked.forms)
        machine = {"python": platform.python_version(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
        report = Report(asked.out, machine, again=asked.again)
        with broker() as bootstrap:
            bench = Bench(asked, bootstrap, report)
            bench.throughput()
            if asked.scale:
                bench.scaled()
            if asked.latency:
                bench.latencies()
    except UnmaskError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"\n{report.table()}")
    return 0


@contextmanager
def broker() -> Iterator[str]:
    """Address of a broker of our own, which is removed at the end; or of that in KAFKA_BOOTSTRAP_SERVERS."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix="kafka-", dir=FOLDER))
    try:
        server = start_broker(home, log=say)
        try:
            yield server.bootstrap
        finally:
            server.stop()
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
