"""The live scorer beside its peers on one real broker: events per CPU-second.

python -m tests.bench.stream --events 300000 --out build/stream.json
python -m tests.bench.stream --quick --systems bare,unmask,xgboost --out build/quick.json
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from flows.local.kafka_server import start_broker
from tests.bench.stream.backlog import Backlog, customers_for, payments_of
from tests.bench.stream.prepared import prepared
from tests.bench.stream.report import Report
from tests.bench.stream.runs import row_of, started
from tests.bench.stream.task import Task
from tests.bench.tables import ROOT, BenchError, check_folder
from tests.detection.draws import simulated

FOLDER = ROOT / "build" / "bench-stream"
SYSTEMS = {
    "bare": [("kafka-python", "events"), ("confluent", "events")],
    "unmask": [("kafka-python", "events")],
    "xgboost": [(client, form) for client in ("kafka-python", "confluent") for form in ("events", "packed")],
}


def say(text: str) -> None:
    """A line of progress."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--again", action="store_true")
    asked = parser.parse_args(words)
    check_folder(asked.out)
    report = Report(asked.out, {"python": platform.python_version(), "cores": os.cpu_count()}, again=asked.again)
    folder = prepared("key", FOLDER, max_steps=1600, frame=lambda: simulated(0))
    with broker() as bootstrap:
        backlog = Backlog(bootstrap, "bench-key")
        say(f"writing {asked.events:,} events")
        backlog.write(payments_of(asked.events, customers_for(asked.events)))
        for system in asked.systems.split(","):
            for client, form in SYSTEMS[system]:
                task = Task(system, client, form, "key", "bench-key", bootstrap, str(folder), "", backlog.ends)
                if asked.profile:
                    task = msgspec.structs.replace(
                        task, profile=str(asked.out.absolute().with_suffix(f".{system}-{client}-{form}.profile.json"))
                    )
                backlog.renew_outputs()
                say(f"{system} {client} {form}")
                try:
                    with started(task) as run:
                        found = run.found()
                    backlog.check(system, form)
                    report.add(row_of(task, found, "throughput"))
                except BenchError as error:
                    print(error)
                    raise
                print(report.rows[-1])
    print(report.table())
    return 0


@contextmanager
def broker() -> Iterator[str]:
    """A broker of our own, removed afterwards."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix="kafka-", dir=FOLDER))
    server = start_broker(home, log=lambda line: None)
    try:
        yield server.bootstrap
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
