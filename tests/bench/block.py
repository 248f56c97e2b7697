"""Interpreter time of one event from the broker's bytes to the messages about it, by stage, without a broker.

    python -m tests.bench.block [--events 40000] [--partitions 4]

CPU seconds of this process, the better of two runs after one that compiles. `merge` takes records in hand, `fold`
releases, decodes and folds them and fills the outboxes, `publish` scores with a plain function and encodes what goes
out; `ingest` is the lake's way (CPU time of all threads).
"""

import argparse
import gc
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pipelines.contracts.messages import Progress
from pipelines.contracts.stream import Stream
from pipelines.features.state import State
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message, TransactionalWriter
from pipelines.lake.ingest import Intake
from pipelines.lake.tables import Lake
from pipelines.live.lane import Lane, LaneSetting
from pipelines.live.replica import Replica
from pipelines.live.serving import Serving
from pipelines.order import EVENT, Mark, Source, by_kind, sources
from pipelines.record import Received
from tests.pipelines.live.live_scorer import Linear
from tests.pipelines.payments import START_MS, event_message, payments_stream

STEP, MS_PER_EVENT = 2_000, 500


class _Nowhere(TransactionalWriter):
    def commit(self, messages: Iterable[Message], *, before_commit: Callable[[], None] | None = None) -> None:
        list(messages)

    def abort(self, messages: Iterable[Message]) -> None:
        list(messages)

    def close(self) -> None:
        pass


class _BenchLane(Lane):
    def _open(self, asked: Connection | None = None) -> _Nowhere:
        return _Nowhere()


def events_of(stream: Stream, n: int, n_partitions: int) -> list[list[Received]]:
    """Payments in steps of `STEP`."""
    rng, ends, topic = random.Random(1), [0] * n_partitions, stream.topic("events")
    steps: list[list[Received]] = []
    for i in range(n):
        customer = rng.randrange(2_000)
        partition, at = customer % n_partitions, START_MS + i * MS_PER_EVENT
        fields = {name: rng.choice(("a", "bb", "ccc")) for name in stream.categories}
        fields |= {"terminal_id": f"t{rng.randrange(500)}"}
        value = event_message(f"e{i:08d}", f"c{customer}", at, amount=round(rng.random() * 200, 2), **fields)
        if i % STEP == 0:
            steps.append([])
        steps[-1].append(Received(topic, partition, ends[partition], at, f"c{customer}".encode(), value))
        ends[partition] += 1
    return steps


def live(stream: Stream, steps: list[list[Received]], n_partitions: int) -> dict[str, float]:
    """CPU seconds by stage."""
    origin = by_kind(dict.fromkeys(sources(n_partitions, labels=True), 0), n_partitions)
    progress = Progress(
        next_offset=0, start=0, n_scored=0, n_refused=0, n_duplicates=0, n_out_of_turn=0, n_partitions=n_partitions,
        definition="", model="", owner="", origin=origin, frontier=None, out_of_turn=[],
    )  # fmt: skip
    model = Linear(stream)
    model.threshold = 2.0  # no alerts
    setting = LaneSetting(Connection("nowhere"), stream, Serving(model), "", "")
    lanes = [_BenchLane(setting, p) for p in range(n_partitions)]
    for lane in lanes:
        lane.progress = progress
    replica = Replica(State(stream, n_partitions), dict.fromkeys(range(n_partitions), progress), {})
    spent, ends = {"merge": 0.0, "fold": 0.0, "publish": 0.0}, [0] * n_partitions
    for step in steps:
        by_partition: list[list[Received]] = [[] for _ in range(n_partitions)]
        for record in step:
            by_partition[record.partition].append(record)
            ends[record.partition] = record.offset + 1
        mark = Mark(step[-1].timestamp_ms + 1, {Source(EVENT, p): end for p, end in enumerate(ends)})
        began = time.process_time()
        for p, records in enumerate(by_partition):
            replica.merge.add(Source(EVENT, p), records)
        replica.merge.mark(mark)
        merged = time.process_time()
        for puts in replica.advance():
            for lane, put in zip(lanes, puts, strict=True):
                lane.outbox.put(put)
        folded = time.process_time()
        for lane in lanes:
            while len(lane.outbox) and (batch := lane.outbox.take()):
                lane._publish(batch)
        spent["merge"] += merged - began
        spent["fold"] += folded - merged
        spent["publish"] += time.process_time() - folded
    assert sum(lane.progress.n_scored for lane in lanes if lane.progress) == sum(map(len, steps))
    return spent


def ingest(stream: Stream, steps: list[list[Received]]) -> dict[str, float]:
    """CPU seconds of writing the events to a lake."""
    records = [record for step in steps for record in step]
    with tempfile.TemporaryDirectory() as folder:
        intake, began = Intake(stream, Lake(Path(folder), stream)), time.process_time()
        intake.events(stream.topic("events"), records, {r.partition: r.offset for r in records})
        return {"ingest": time.process_time() - began}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=40_000)
    parser.add_argument("--partitions", type=int, default=4)
    asked = parser.parse_args()
    stream = payments_stream("bench")
    steps = events_of(stream, asked.events, asked.partitions)
    gc.freeze()  # as the scorer does before its loop
    runs = [live(stream, steps, asked.partitions) | ingest(stream, steps) for _ in range(3)][1:]
    print(
        f"{asked.events:,} events, {asked.partitions} partitions, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    best = {stage: 1e6 * min(run[stage] for run in runs) / asked.events for stage in runs[0]}
    best["merge + fold + publish"] = best["merge"] + best["fold"] + best["publish"]
    for stage, microseconds in best.items():
        print(f"{stage:<24}{microseconds:8.2f} us an event")


if __name__ == "__main__":
    main()
