"""Memory and time of the feature table: of the fold that writes it, and of training that reads it.

    python -m tests.bench.feature_table [--events 2000000] [--entities 20000] [--steps 200] [--backfill dask]

The payments stream with labels, one partition, on a local disk; each part in a process of its own. "Own memory" is
anonymous memory, sampled every 100 ms; mapped pages of the table are the kernel's to take back and are given beside it.
With `--backfill` (as UNMASK_BACKFILL) the table is also built by Dask, and compared; no training follows.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

os.environ.setdefault("POLARS_MAX_THREADS", "2")

import numpy as np
import psutil

from flows.backfill import cluster
from flows.training_data import columns_of
from models.fit.pretrain import PretrainConfig, pretrain
from models.table import PickedRows, Table
from pipelines.contracts.stream import DAY_MS
from pipelines.lake.feature_table import feature_table
from pipelines.lake.tables import Lake
from pipelines.lake.training_table import training_table
from tests.pipelines.payments import START_MS, payments_stream

BATCH = 100_000
DAYS = 180
MIB = 1024 * 1024


def fill(lake: Lake, n: int, n_entities: int) -> None:
    """Append n events of so many entities of each kind, and a report of every 200th of them three days later."""
    stream, random = lake.stream, np.random.default_rng(0)
    for first in range(0, n, BATCH):
        m = min(BATCH, n - first)
        at = np.linspace(START_MS + first * DAYS * DAY_MS / n, START_MS + (first + m) * DAYS * DAY_MS / n, m)
        rows = {
            "partition": np.zeros(m, np.int32), "offset": first + np.arange(m), "arrival_ms": at.astype(np.int64),
            "event_id": [f"event-{first + i}" for i in range(m)], "event_time_ms": at.astype(np.int64),
            **{name: [f"{name}-{i}" for i in random.integers(0, n_entities, m)] for name in stream.entities},
            **{name: random.lognormal(3.0, 1.0, m) for name in stream.numbers},
            **{name: random.choice(["a", "b", "c", "d"], m) for name in stream.categories},
        }  # fmt: skip
        frame = lake.frame("events", rows)
        lake.append("events", frame, topic=stream.topic("events"), through={0: first + m - 1})
        told = frame.gather_every(200)
        k, begin = told.height, first // 200
        reports = {
            "partition": np.zeros(k, np.int32), "offset": begin + np.arange(k),
            "arrival_ms": told["arrival_ms"].to_numpy() + 3 * DAY_MS, "event_id": told["event_id"],
            "event_time_ms": told["event_time_ms"], "label": np.ones(k, np.int8),
            "labelled_at_ms": told["arrival_ms"], "source": ["bench"] * k,
            "labelled_by": [None] * k, "label_why": [None] * k,
            **{name: told[name] for name in stream.entities},
        }  # fmt: skip
        labels = lake.frame("labels", reports)
        lake.append("labels", labels, topic=stream.topic("labels"), through={0: begin + k - 1})


def resident(pid: int) -> dict[str, float]:
    """MiB of a process's memory: its own, and mapped pages of files."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return {name: int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}


def children() -> dict[int, tuple[float, float]]:
    """MiB of own memory and CPU seconds of each child process."""
    found = {}
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error, OSError, KeyError):
            spent = child.cpu_times()
            found[child.pid] = resident(child.pid)["RssAnon"], spent.user + spent.system
    return found


@contextmanager
def measured(what: str) -> Iterator[None]:
    """Print how long the block took, and the most memory beyond what there was before it; also of child processes."""
    own = os.getpid()
    before, peak, done = resident(own), resident(own), threading.Event()
    others: dict[int, tuple[float, float]] = {}

    def watch() -> None:
        while not done.wait(0.1):
            now = resident(own)
            peak.update({name: max(peak[name], now[name]) for name in peak})
            for pid, (mib, cpu_s) in children().items():
                others[pid] = max(mib, others.get(pid, (0.0, 0.0))[0]), cpu_s

    watching = threading.Thread(target=watch)
    watching.start()
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    yield
    seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    done.set()
    watching.join()
    more, mapped = (peak[name] - before[name] for name in ("RssAnon", "RssFile"))
    words = f"{what}: {seconds:.1f} s, at most {more:,.0f} MiB of own memory more, {mapped:,.0f} MiB mapped"
    print(f"{words}, {cpu_s:.1f} CPU seconds", flush=True)
    for mib, spent_s in sorted(others.values()):
        print(f"  a child process: at most {mib:,.0f} MiB of own memory, {spent_s:.1f} CPU seconds", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--entities", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--backfill")
    parser.add_argument("--part", choices=("fold", "read", "backfill"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    stream = payments_stream("table")
    if asked.part is None:
        with tempfile.TemporaryDirectory() as folder:
            fill(Lake(Path(folder) / "lake", stream), asked.events, asked.entities)
            for part in ("fold", "backfill" if asked.backfill else "read"):
                more = ["--part", part, "--folder", folder, "--steps", str(asked.steps)]
                more += ["--backfill", asked.backfill] if asked.backfill else []
                subprocess.run([sys.executable, "-m", "tests.bench.feature_table", *more], check=True)
        return
    lake, features = Lake(asked.folder / "lake", stream), asked.folder / "features"
    if asked.part == "fold":
        with measured("fold"):
            table = feature_table(lake, stream, features)
        size = sum(path.stat().st_size for path in (features / table.key).iterdir())
        print(f"table: {len(table):,} rows, {table.numeric.shape[1]} numeric columns, {size / MIB:,.0f} MiB on disk")
        return
    if asked.part == "backfill":
        with measured(f"fold by {asked.backfill}"):
            built = feature_table(lake, stream, asked.folder / "other", workers=partial(cluster, asked.backfill))
        assert np.array_equal(built.hashes, feature_table(lake, stream, features).hashes)
        return
    with measured("training table"):
        found = training_table(lake, stream, features, as_of_ms=2**60)
    numeric, categorical = (PickedRows(m, found.rows) for m in (found.features.numeric, found.features.categorical))
    with measured("model table"):
        rows = Table(columns_of(stream), numeric, categorical, found.time_ms, found.category_names)
    with measured(f"pretrain, {asked.steps} steps"):
        pretrain(rows, config=PretrainConfig(width=64, max_steps=asked.steps, min_steps=asked.steps), seed=0)


if __name__ == "__main__":
    main()
