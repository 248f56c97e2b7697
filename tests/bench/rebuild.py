"""How fast state is made from the lake, beside the ingest that fills it.

    python -m tests.bench.rebuild [--days 200] [--customers 2000]

The payments stream with labels, one process, on a local disk.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("POLARS_MAX_THREADS", "2")

import polars as pl

from pipelines.contracts.messages import Progress
from pipelines.lake.ingest import Intake
from pipelines.lake.tables import Lake
from pipelines.live.rebuild import snapshot_from_lake
from pipelines.order import EVENT, LABEL, Source, by_kind
from pipelines.play.simulate import payments
from pipelines.record import Received
from tests.pipelines.payments import START, event_message, label_message, payments_stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=200)
    parser.add_argument("--customers", type=int, default=2_000)
    asked = parser.parse_args()
    stream = payments_stream("rebuild")
    frame = payments(seed=1, n_customers=asked.customers, n_terminals=2_000, days=asked.days, start=START)
    frame = frame.with_columns(at=pl.col("time").dt.epoch("ms")).sort("at")
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(Path(folder), stream)
        intake, topics = Intake(stream, lake), (stream.topic("labels"), stream.topic("events"))
        began_s, events, labels = time.perf_counter(), list[Received](), list[Received]()
        for i, row in enumerate(frame.iter_rows(named=True)):
            fields = {name: row[name] for name in ("customer_id", "terminal_id", "amount", *stream.categories)}
            value = event_message(str(i), row["customer_id"], row["at"], **fields)
            events.append(Received(topics[EVENT], 0, i, row["at"], row["customer_id"].encode(), value))
            if i % 200 == 0:
                value = label_message(str(i), row["customer_id"], row["at"], terminal_id=row["terminal_id"])
                key = row["customer_id"].encode()
                labels.append(Received(topics[LABEL], 0, len(labels), row["at"], key, value))
        made_s = time.perf_counter()
        print(f"{len(events):,} events, {len(labels):,} labels made in {made_s - began_s:.1f} s")
        for at in range(0, len(events), 100_000):
            batch = events[at : at + 100_000]
            intake.events(topics[EVENT], batch, {0: batch[-1].offset})
        intake.labels(topics[LABEL], labels, {0: labels[-1].offset})
        filled_s = time.perf_counter()
        print(f"ingest {(len(events) + len(labels)) / (filled_s - made_s):,.0f} records/s")
        ends = {Source(LABEL, 0): len(labels), Source(EVENT, 0): len(events)}
        progress = Progress(
            next_offset=len(events), start=0, n_scored=0, n_refused=0, n_duplicates=0, n_out_of_turn=0, n_partitions=1,
            definition="", model="", owner="", origin=by_kind(dict.fromkeys(ends, 0), 1), frontier=by_kind(ends, 1),
            out_of_turn=[],
        )  # fmt: skip
        for run in ("first (compiles the kernel)", "second"):
            began_s = time.perf_counter()
            snapshot = snapshot_from_lake(
                lake, stream, {0: progress}, first=dict.fromkeys(ends, 0), ends=ends, topic_ids={}, partitions=[0]
            )
            seconds = time.perf_counter() - began_s
            n = sum(snapshot.frontier.values())
            print(f"{run}: {n:,} records folded in {seconds:.1f} s = {n / seconds:,.0f} a second")


if __name__ == "__main__":
    main()
