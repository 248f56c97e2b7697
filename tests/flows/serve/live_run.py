"""Scorers of a stream as processes of their own, under load, without MLflow: orders come through the control topic."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

from flows.serve.live_scores import newest_scores
from flows.serve.orders import Operator
from pipelines.contracts.messages import Progress, decode
from pipelines.live.control import Order
from tests.flows.serve.cached import Home
from tests.patience import HANG_S, wait_until
from tests.pipelines.live.kill_load import Load

BEFORE_MS, AFTER_MS = 1_500, 500  # a swap: the new model is loaded before it


class LiveRun:
    """Replicas `a`, `b`, ... of `unmask score`, and a load of `per_s` events."""

    def __init__(self, home: Home, *, replicas: Sequence[str] = ("a", "b"), per_s: int = 500) -> None:
        self.home, self.replicas, self.per_s = home, replicas, per_s
        self.ann = Operator(home.settings, home.stream, by="ann")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.load = Load(home.rig.connection, home.stream, per_s=per_s, seed=7)

    def start(self, replica: str) -> None:
        """Start a replica; its log is `<replica>.log`."""
        command = [sys.executable, "-m", "flows.cli", "score", "--from", "earliest", "--replica", replica]
        with (self.home.folder / f"{replica}.log").open("ab") as log:
            self.processes[replica] = subprocess.Popen(
                [*command, "--stream", str(self.home.stream_file)], env=dict(os.environ), stderr=log
            )

    def stop(self, replica: str) -> None:
        """End a replica as an operator does."""
        process = self.processes.pop(replica)
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0, self.log_of(replica)[-2_000:]

    def log_of(self, replica: str) -> str:
        return (self.home.folder / f"{replica}.log").read_text()

    def status_of(self, replica: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self.home.settings.scorer_status(self.home.stream, replica).read_text())
        except FileNotFoundError:
            return {}
        return found

    def wait_for(self, **wanted: Any) -> None:
        """Until the status of every replica that runs says so."""

        def says_so() -> bool:
            told = [self.status_of(replica) for replica in self.processes]
            return all(one.get(name) == value for one in told for name, value in wanted.items())

        wait_until(
            says_so,
            seen=lambda: [self.status_of(replica).get("scored") for replica in self.processes],
            alive=lambda: all(process.poll() is None for process in self.processes.values()),
        )

    def share_above(self, share: float) -> float:
        """The score that this share of the events so far exceeds."""
        scores = newest_scores(self.home.rig.connection, self.home.stream, most=100_000)["score"].to_numpy()
        return float(np.quantile(scores, 1 - share, method="higher"))

    def wait_until_all_is_out(self) -> None:
        self.home.rig.n_sent = self.load.n_events
        self.home.rig.wait_until_out()

    def gaps_ms(self, *, since_ms: int, until_ms: int) -> tuple[list[int], list[int], list[int]]:
        """Times between commits of a partition: those across a change of the model, those near one, and the others."""
        told: dict[int, list[tuple[int, str]]] = {}
        for record in self.home.rig.published("progress"):
            if since_ms <= record.timestamp_ms <= until_ms:
                model = decode(record.value, Progress).model
                told.setdefault(record.partition, []).append((record.timestamp_ms, model))
        across, near, others = list[int](), list[int](), list[int]()
        for commits in told.values():
            swaps = [at_ms for (_, before), (at_ms, at) in pairwise(commits) if at != before]
            for (before_ms, before), (at_ms, at) in pairwise(commits):
                if at != before:
                    across.append(at_ms - before_ms)
                is_near = any(swap - BEFORE_MS <= at_ms and before_ms <= swap + AFTER_MS for swap in swaps)
                (near if is_near else others).append(at_ms - before_ms)
        return across, near, others

    def orders(self) -> list[tuple[int, Order]]:
        """All orders and when the broker or their sender stamped them, ms."""
        return [(record.timestamp_ms, decode(record.value, Order)) for record in self.home.rig.published("control")]

    def effect_s(self) -> list[float]:
        """For each order of a model: time until every partition had a commit with it, s."""
        first: dict[tuple[int, str], list[int]] = {}
        for record in self.home.rig.published("progress"):
            model = decode(record.value, Progress).model
            first.setdefault((record.partition, model), []).append(record.timestamp_ms)
        found = []
        for at_ms, order in self.orders():
            if order.kind in ("use", "rollback"):
                nexts = [
                    min((stamp for stamp in first.get((p, order.digest), []) if stamp >= at_ms), default=None)
                    for p in range(self.home.rig.n_partitions)
                ]
                known = [stamp for stamp in nexts if stamp is not None]
                if len(known) == len(nexts):
                    found.append((max(known) - at_ms) / 1000)
        return found


@contextmanager
def live_run(home: Home, **options: Any) -> Iterator[LiveRun]:
    """Start the replicas and the load; everything is ended at the end."""
    run = LiveRun(home, **options)
    try:
        for replica in run.replicas:
            run.start(replica)
        run.wait_for(caught_up=True)
        run.load.start()
        yield run
    finally:
        run.load.stopping.set()
        for process in run.processes.values():
            process.kill()
            process.wait()
