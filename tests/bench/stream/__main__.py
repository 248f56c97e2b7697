"""The live scorer beside its peers on one real broker: events per CPU-second, and with `--latency` how soon.

    python -m tests.bench.stream --out stream.json                          # every system, 300,000 events: 10 min
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

`--replicas` adds up the CPU time of one, two and four scorers that share the partitions: N * read + score is expected.

A row of FILE is kept by a later run with the same options and code; `--again` begins anew. Latency is from the
broker's time stamp of the event to the moment when a read_committed consumer in another process has the score.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from flows.local.kafka_server import start_broker
from pipelines.errors import UnmaskError
from tests.bench import tables
from tests.bench.stream.bench import QUICK_SECONDS, SECONDS, Bench, say
from tests.bench.stream.plan import SYSTEMS, runs_of
from tests.bench.stream.report import Report
from tests.bench.tables import BenchError, check_folder

FOLDER = tables.ROOT / "build" / "bench-stream"
PACKAGES = ("kafka-python", "confluent-kafka", "xgboost-cpu", "onnxruntime", "numba")
N_EVENTS, QUICK_EVENTS = 300_000, 20_000


def options(words: list[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        "python -m tests.bench.stream", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, help=f"default {N_EVENTS:,}; {QUICK_EVENTS:,} with --quick")
    parser.add_argument("--systems", help=f"comma list of {', '.join(SYSTEMS)}; default all")
    parser.add_argument(
        "--clients", default="kafka-python,confluent", help="comma list; default kafka-python,confluent"
    )
    parser.add_argument("--forms", default="events,packed", help="comma list; default events,packed")
    parser.add_argument("--streams", default="key,merged", help="comma list; default key,merged")
    parser.add_argument("--latency", action="store_true", help="rate kept up with, and latency at half of it")
    parser.add_argument("--seconds", type=float, help="time of a step of --latency, default 60; 3 with --quick")
    parser.add_argument("--scale", action="store_true", help="ten times as many entities, ten times the history; a PNG")
    parser.add_argument("--replicas", action="store_true", help="CPU time of 1, 2 and 4 replicas of Unmask; a PNG")
    parser.add_argument("--profile", action="store_true", help="where CPU time goes, to FILE.SYSTEM-...json")
    parser.add_argument(
        "--rounds", type=int, default=1, help="runs of each system, of which the best counts; default 1"
    )
    parser.add_argument("--quick", action="store_true", help="few events, short steps, no river and Quix unless named")
    parser.add_argument("--again", action="store_true", help="measure every row again")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the rows")
    asked = parser.parse_args(words)
    asked.seconds = asked.seconds or (QUICK_SECONDS if asked.quick else SECONDS)
    asked.events = asked.events or (QUICK_EVENTS if asked.quick else N_EVENTS)
    here = [name for name in SYSTEMS if not (asked.quick and SYSTEMS[name].apart)]
    asked.systems = tuple((asked.systems or ",".join(here)).split(","))
    for name in ("clients", "forms", "streams"):
        setattr(asked, name, tuple(getattr(asked, name).split(",")))
    runs_of(asked.systems, asked.clients, asked.forms, asked.streams)
    if asked.events < 1_000 or asked.rounds < 1 or asked.seconds < 1:
        raise BenchError("--events must be at least 1,000, --rounds and --seconds at least 1")
    return asked


def main(words: list[str] | None = None) -> int:
    """Run the benchmark. Exit code 2: an option cannot be used, or there is no broker."""
    try:
        asked = options(words)
        check_folder(asked.out)
        machine = tables.machine() | {name: version(name) for name in PACKAGES}
        report = Report(asked.out, machine, again=asked.again)
        with broker() as bootstrap:
            bench = Bench(asked, bootstrap, report, FOLDER)
            bench.throughput()
            if asked.scale:
                bench.scaled()
            if asked.replicas:
                bench.replicated()
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
