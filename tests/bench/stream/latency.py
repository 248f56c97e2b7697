"""The highest rate at which a system keeps up, and the latency of its scores at half of that."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
from confluent_kafka import Producer

from tests.bench.stream.backlog import N_PARTITIONS, Backlog
from tests.bench.stream.follower import Seen
from tests.bench.stream.plan import Run
from tests.bench.stream.report import Row
from tests.bench.stream.runs import started
from tests.bench.stream.task import Task
from tests.bench.tables import ROOT, BenchError

STEP_UP, STEP_DOWN = 1.25, 0.7
LOW_RATE = 1_000.0
DRAIN_S = 120.0
_GROWTH, _SLACK_MS = 1.5, 100.0  # a lag is flat if it is below the first third's times this, plus this


class Helper:
    """A process that answers lines with lines."""

    def __init__(self, module: str, *words: str) -> None:
        self._name = module
        command = [sys.executable, "-m", f"tests.bench.stream.{module}", *words]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT, text=True
        )
        self._answer()

    def ask(self, line: str) -> str:
        """The answer to a line."""
        self.tell(line)
        return self._answer()

    def tell(self, line: str) -> None:
        """Send a line, and do not wait for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"{self._name} ended")
        return line.strip()

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def helper(module: str, *words: str) -> Iterator[Helper]:
    """A helper that is ended at the end of the block."""
    one = Helper(module, *words)
    try:
        yield one
    finally:
        one.stop()


class Load:
    """Payments at a rate, and the latencies of the scores of that time."""

    def __init__(self, source: Helper, follower: Helper) -> None:
        self._source, self._follower = source, follower
        self.n_sent = 0

    def run(self, rate: float, seconds: float) -> tuple[list[float], list[float]]:
        """Latencies in ms of the first and of the last third of the time; both of the scores that came in it."""
        began = time.time()
        self.n_sent = int(self._source.ask(f"{rate} {seconds}"))
        third = (time.time() - began) / 3
        return self._between(began, began + third), self._between(began + 2 * third, began + 3 * third)

    def measure(self, rate: float, seconds: float) -> list[float]:
        """Latencies in ms of the scores of the time, the first tenth left out."""
        began = time.time()
        self.n_sent = int(self._source.ask(f"{rate} {seconds}"))
        return self._between(began + seconds / 10, time.time())

    def drain(self) -> None:
        """Wait until every event has its score."""
        until = time.monotonic() + DRAIN_S
        while (n := self._seen(0, 0).n) < self.n_sent:
            if time.monotonic() > until:
                raise BenchError(f"{n:,} of {self.n_sent:,} scores came within {DRAIN_S:g} s")
            time.sleep(0.2)

    def _between(self, since: float, until: float) -> list[float]:
        return self._seen(since, until).latencies_ms

    def _seen(self, since: float, until: float) -> Seen:
        return msgspec.json.decode(self._follower.ask(f"{since} {until}"), type=Seen)


def keeps_up(first: list[float], last: list[float]) -> bool:
    """Whether the lag of the last third is no longer than that of the first.

    >>> keeps_up([50.0, 60.0], [58.0, 70.0]), keeps_up([50.0], [900.0]), keeps_up([50.0], [])
    (True, False, False)
    """
    return bool(first) and bool(last) and median(last) <= _GROWTH * median(first) + _SLACK_MS


def measured(
    run: Run,
    bootstrap: str,
    folder: Path,
    *,
    first_rate: float,
    seconds: float,
    most_steps: int,
    say: Callable[[str], None],
) -> Row:
    """The row of a system: the rate at which it keeps up, p50 and p99 at half of it and at `LOW_RATE`.

    Args:
        first_rate: events per second of the first step.
        seconds: time of each step.
        most_steps: most steps of the search; with too few it is a lower bound.
    """
    backlog = Backlog(bootstrap, f"latency-{run.system}-{run.client}-{run.stream}")
    backlog.renew_outputs()
    task = Task(run.system, run.client, run.form, run.stream, backlog.prefix, bootstrap, str(folder), "",
                [0] * N_PARTITIONS, live=True)  # fmt: skip
    where = "record" if run.system == "bare" else "value"
    with (
        helper("source", bootstrap, f"{backlog.prefix}.events") as source,
        helper("follower", bootstrap, f"{backlog.prefix}.scores", where) as follower,
        started(task) as running,
    ):
        load = Load(source, follower)
        load.run(first_rate / 4, min(5.0, seconds))  # warms up
        best = _highest(load, first_rate, seconds, most_steps, say)
        found = load.measure(best / 2, seconds)
        load.drain()
        low = load.measure(LOW_RATE, seconds)
        load.drain()
        running.end()
    if not (found and low):
        raise BenchError(f"{run}: no score came at {best / 2:,.0f} or {LOW_RATE:,.0f} events/s")
    (p50, p99), (low_p50, low_p99) = np.percentile(found, [50, 99]), np.percentile(low, [50, 99])
    said = (
        f"{rate:,.0f} events/s p50 {a:.0f} ms, p99 {b:.0f} ms"
        for rate, a, b in ((best / 2, p50, p99), (LOW_RATE, low_p50, low_p99))
    )
    say(f"  at {'; at '.join(said)}")
    return {
        **run._asdict(),
        "part": "latency",
        "events": len(found),
        "p50_ms": round(float(p50), 1),
        "p99_ms": round(float(p99), 1),
        "p50_ms_at_1000_per_s": round(float(low_p50), 1),
        "p99_ms_at_1000_per_s": round(float(low_p99), 1),
        "keeps_up_per_s": round(best),
        "rate_per_s": round(best / 2),
        "seconds": seconds,
    }


def _highest(load: Load, rate: float, seconds: float, most_steps: int, say: Callable[[str], None]) -> float:
    best = 0.0
    for _ in range(most_steps):
        first, last = load.run(rate, seconds)
        flat = keeps_up(first, last)
        lags = " -> ".join(f"{median(third):,.0f} ms" if third else "no score" for third in (first, last))
        say(f"  {rate:,.0f} events/s for {seconds:g} s: lag {lags}, {'flat' if flat else 'growing'}")
        load.drain()
        if flat:
            best = max(best, rate)
        if (best and not flat) or rate < 10:
            break
        rate *= STEP_UP if flat else STEP_DOWN
    if not best:
        raise BenchError("no rate was found at which it keeps up")
    return best


def commits(bootstrap: str, rate: float, seconds: float) -> dict[str, float]:
    """Time of the broker's smallest transaction (begin, one record, commit) while events come at a rate."""
    backlog = Backlog(bootstrap, "latency-commits")
    backlog.renew_outputs()
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": "commits", "linger.ms": 0, "log_level": 3})
    producer.init_transactions(30)
    found: list[float] = []
    command = [sys.executable, "-m", "tests.bench.stream.source", bootstrap, f"{backlog.prefix}.events"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True) as source:
        assert source.stdin is not None
        assert source.stdout is not None
        source.stdout.readline()
        source.stdin.write(f"{rate} {seconds}\n")
        source.stdin.close()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.perf_counter()
            producer.begin_transaction()
            producer.produce(f"{backlog.prefix}.scores", b"x", partition=0)
            producer.commit_transaction(30)
            found.append(1000 * (time.perf_counter() - began))
        source.wait()
    p50, p99 = np.percentile(found, [50, 99]).tolist()
    return {"rate_per_s": round(rate), "n": len(found), "p50_ms": round(p50, 2), "p99_ms": round(p99, 2)}
