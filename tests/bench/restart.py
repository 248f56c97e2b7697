"""A restart with many entities in the state, on a real broker: time to the first new score, and until the lag is gone.

    python -m tests.bench.restart [--entities 1000000] [--rate 1000] [--out FILE]

A scorer with a linear model (`merged`, 35 features, two entities) folds one event of each entity and writes a snapshot.
Then it is killed twice. The first time, events wait and no others come: the rate at which it works them off is its
capacity. The second time, events come at `--rate` throughout. Load is rate / capacity; the lag of a score is below 1 s
again after outage * load / (1 - load) at best, counted from the first new score.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka import Producer

from pipelines.kafka.connection import Connection
from pipelines.live.scorer import Scorer
from pipelines.live.serving import Serving
from pipelines.live.setting import ScorerSetting
from tests.bench.stream.__main__ import broker
from tests.bench.stream.backlog import N_PARTITIONS, Backlog
from tests.bench.stream.follower import Seen
from tests.bench.stream.latency import Helper, helper
from tests.bench.stream.streams import stream_of
from tests.bench.tables import BenchError
from tests.pipelines.live.live_scorer import Linear
from tests.pipelines.live.rig import Alone

PREFIX, WAIT_S, OUTAGE_S = "restart", 600.0, 20.0
BAR_S, BAR_RATIO = 60.0, 1.2


def score(bootstrap: str, folder: Path, start: str) -> None:
    """Score until killed, with a line for each snapshot that was written."""
    stream = stream_of("merged", PREFIX)
    model = Linear(stream)
    model.threshold = 2.0  # no alerts
    setting = ScorerSetting(stream, Connection(bootstrap), folder, snapshot_every=timedelta(seconds=10))
    scorer = Scorer(setting, Serving(model), start="latest" if start == "latest" else None, member=Alone(N_PARTITIONS))
    noted = [0]

    def note() -> bool:
        if scorer.counters.n_snapshots > noted[0]:
            noted[0] = scorer.counters.n_snapshots
            print(scorer.n_bytes["state"], sum(scorer.entities.values()), flush=True)
        return False

    scorer.run(note)


class Scoring:
    """The process of a scorer."""

    def __init__(self, bootstrap: str, folder: Path, *, start: str = "") -> None:
        self.began_s = time.monotonic()
        command = [sys.executable, "-m", "tests.bench.restart", "--score", bootstrap, str(folder), start]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def snapshot(self, n_entities: int) -> tuple[int, int]:
        """State bytes and entities, once a snapshot of so many was written."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            n_bytes, n_held = map(int, line.split())
            if n_held >= n_entities:
                return n_bytes, n_held
        raise BenchError(f"the scorer ended with {self.process.wait()}")

    @property
    def resident(self) -> int:
        """Resident memory, bytes."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def scoring(bootstrap: str, folder: Path, *, start: str = "") -> Iterator[Scoring]:
    """A scorer that is killed at the end of the block."""
    one = Scoring(bootstrap, folder, start=start)
    try:
        yield one
    finally:
        one.kill()


def send_one_of_each(bootstrap: str, n_entities: int) -> None:
    """One event of each of so many customers, at a fifth as many terminals."""
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 20, "log_level": 3})
    backlog = Backlog(bootstrap, PREFIX)
    now_ms = int(time.time() * 1000)
    for i in range(n_entities):
        key = b"k%d" % i
        value = b'{"event_id":"h%d","time":%d,"customer_id":"k%d","terminal_id":"t%d","amount":%d.5}' % (
            i, now_ms - 1000 * (n_entities - i) // 50, i, i % max(1, n_entities // 5), i % 97,
        )  # fmt: skip
        while True:
            try:
                producer.produce(f"{PREFIX}.events", value, key, backlog.partition_of(key))
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush(60)
    backlog.renew_outputs()


def seen(follower: Helper, last_s: float = 0.0) -> tuple[int, list[float]]:
    """Number of scores, and latencies in ms of those of the last moments."""
    now = time.time()
    found = json.loads(follower.ask(f"{now - last_s} {now}"), object_hook=lambda row: Seen(**row))
    return found.n, found.latencies_ms


def wait(done: Callable[[], bool], what: str, *, deadline_s: float = WAIT_S) -> float:
    """Wait; returns when it was done."""
    until = time.monotonic() + deadline_s
    while not done():
        if time.monotonic() > until:
            raise BenchError(f"{what} took more than {deadline_s:g} s")
        time.sleep(0.05)
    return time.monotonic()


def measure(bootstrap: str, n_entities: int, rate: float) -> dict[str, Any]:
    """The row."""
    began_s = time.monotonic()
    send_one_of_each(bootstrap, n_entities)
    sent_s = time.monotonic()
    row: dict[str, Any] = {"entities": n_entities, "rate_per_s": rate, "sent_s": sent_s - began_s}
    with (
        tempfile.TemporaryDirectory() as name,
        helper("source", bootstrap, f"{PREFIX}.events") as source,
        helper("follower", bootstrap, f"{PREFIX}.scores", "value") as follower,
    ):
        folder = Path(name)
        with scoring(bootstrap, folder, start="latest") as first:
            row["state_bytes"], row["entities_held"] = first.snapshot(n_entities + n_entities // 5)
            row["fold_and_snapshot_s"], row["resident_bytes"] = time.monotonic() - sent_s, first.resident
            n_sent = int(source.ask(f"{rate} 3"))
            wait(lambda: seen(follower)[0] >= n_sent, "scoring")
        n_waiting = int(source.ask(f"{8 * rate} 8")) - n_sent
        with scoring(bootstrap, folder) as second:
            first_s = wait(lambda: seen(follower)[0] > n_sent, "the first restart")
            row["first_score_s_without_load"] = first_s - second.began_s
            last_s = wait(lambda: seen(follower)[0] >= n_sent + n_waiting, "working off")
            row["capacity_per_s"] = n_waiting / (last_s - first_s)
            n_sent += n_waiting
        killed_s = time.monotonic()
        n_sent = int(source.ask(f"{rate} {OUTAGE_S}"))
        with scoring(bootstrap, folder) as third:
            before = seen(follower)[0]
            source.tell(f"{rate} {WAIT_S}")
            first_s = wait(lambda: seen(follower)[0] > before, "the restart under load")
            flat_s = wait(lambda: 0.0 < max(seen(follower, 0.3)[1], default=0.0) < 1000.0, "the lag")
            row["first_score_s"], row["outage_s"] = first_s - third.began_s, first_s - killed_s
            row["lag_gone_s"] = flat_s - first_s
        load = rate / row["capacity_per_s"]
        row["load"] = load
        row["at_best_s"] = row["outage_s"] * load / (1 - load)
        row["snapshot_bytes"] = max(path.stat().st_size for path in folder.glob("*.snapshot"))
    return row


def main(words: list[str] | None = None) -> int:
    """Print and write the row; exit code 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entities", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=1_000.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--score", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    if asked.score:
        score(asked.score[0], Path(asked.score[1]), asked.score[2])
        return 0
    with broker() as bootstrap:
        row = measure(bootstrap, asked.entities, asked.rate)
    for name, value in row.items():
        print(f"{name:<28}{value:>16,.2f}")
    if asked.out:
        asked.out.write_text(json.dumps({"rows": [row]}, indent=1))
    holds = row["first_score_s"] <= BAR_S and row["lag_gone_s"] <= max(1.0, BAR_RATIO * row["at_best_s"])
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
