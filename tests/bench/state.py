"""The state of many entities with few events each: bytes by table, resident memory, snapshots, restart of the state.

    python -m tests.bench.state [--entities 100000] [--streams payments,handbook,sparkov,thirty] [--out FILE]

Each stream is folded in a process of its own, in blocks of 2,000 records. The number of events of an entity has a heavy
tail (Pareto, exponent 1.3; half of the entities have one or two events in 30 days); there are a fifth as many entities
of the second kind. Every hundredth event is reported as a fraud.
"""

import argparse
import gc
import json
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from numpy.typing import NDArray

from flows.streams.shipped import load
from pipelines.contracts.block import Block
from pipelines.contracts.stream import DAY_MS, Stream
from pipelines.contracts.stream_file import parse
from pipelines.features.snapshot import SnapshotStore
from pipelines.features.state import State
from pipelines.live.snapshots import STEP_S, Writing
from pipelines.order import EVENT, LABEL

START_MS = 1_760_000_000_000
BLOCK, STEP = 2_000, 500
THIRTY = """
[stream]
name = "thirty"
event_id = "id"
event_time = "at"
entities = ["card", "shop"]
[fields]
id = { type = "int" }
at = { type = "time" }
card = { type = "int" }
shop = { type = "int" }
amount = { type = "number", min = 0, max = 1e6 }
[labels]
maturity = "7d"
[[features]]
entity = "card"
windows = ["1h", "1d", "7d", "30d", "all"]
stats = ["count"]
[[features]]
entity = "card"
field = "amount"
windows = ["1d", "7d", "30d", "all"]
stats = ["mean", "std", "zscore"]
[[features]]
entity = "card"
field = "amount"
windows = ["1d", "7d", "30d"]
stats = ["max"]
[[features]]
entity = "card"
field = "shop"
windows = ["7d"]
stats = ["distinct"]
[[features]]
entity = "card"
stats = ["since_last"]
[[features]]
entity = "shop"
windows = ["1d", "7d"]
stats = ["count"]
[[features]]
entity = "shop"
windows = ["1d", "7d", "30d"]
stats = ["fraud_rate", "fraud_count"]
"""


class History(NamedTuple):
    """n records in order: events, and labels of some of them.

    Shapes: `entities` (n, 2), the others (n,); `event` is the number of the event, also of a label's.
    """

    is_event: NDArray[np.bool_]
    clock_ms: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    event: NDArray[np.int64]
    entities: NDArray[np.uint64]
    amount: NDArray[np.float64]


def history(n_entities: int, *, delay_ms: int, seed: int = 7) -> History:
    """The records of 30 days."""
    random = np.random.default_rng(seed)
    per_entity = np.minimum(1 + random.pareto(1.3, n_entities).astype(np.int64), 3_000)
    keys = random.integers(1, 2**63, n_entities + n_entities // 5, dtype=np.uint64)
    first = random.permutation(np.repeat(np.arange(n_entities), per_entity))
    n = len(first)
    shops = random.exponential(size=n_entities // 5)
    second = n_entities + random.choice(len(shops), n, p=shops / shops.sum())
    time_ms = START_MS + np.sort(random.integers(0, 30 * DAY_MS, n))
    told = np.arange(0, n, 100)
    event = np.concatenate([np.arange(n), told])
    clock_ms = np.concatenate([time_ms, time_ms[told] + delay_ms])
    order = np.argsort(clock_ms, kind="stable")
    order = order[clock_ms[order] <= time_ms[-1]]
    event = event[order]
    entities = np.stack([keys[first[event]], keys[second[event]]], axis=1)
    amount = random.lognormal(3.0, 1.0, n)[event]
    return History(order < n, clock_ms[order], time_ms[event], event, entities, amount)


def block_of(stream: Stream, records: History, rows: slice) -> Block:
    """Some records as the decoder makes them."""
    part = History._make(column[rows] for column in records)
    n, width = len(part.event), len(stream.categories)
    blank = Block.blank(n, n_entities=2, n_numbers=len(stream.numbers), n_categories=width)
    numbers = np.where(part.is_event[:, None], part.amount[:, None], np.nan).repeat(len(stream.numbers), axis=1)
    categories = (part.event[:, None] * 7 + np.arange(width)) % 11 + 1
    return replace(
        blank,
        kind=np.where(part.is_event, EVENT, LABEL).astype(np.int8),
        offset=part.event,
        clock_ms=part.clock_ms,
        time_ms=part.time_ms,
        event_id=np.array([f"e{event}" for event in part.event.tolist()], np.object_),
        entity_hashes=part.entities,
        numbers=numbers,
        category_hashes=np.where(part.is_event[:, None], categories, 0).astype(np.uint64),
        label=np.where(part.is_event, 0, 1).astype(np.int8),
    )


def resident() -> int:
    """Resident memory of this process, bytes."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def folded(state: State, block: Block) -> float:
    """CPU seconds of a fold."""
    began_s = time.process_time()
    state.fold(block)
    return time.process_time() - began_s


def measure(name: str, n_entities: int) -> dict[str, Any]:
    """The row of one stream."""
    stream = parse(THIRTY) if name == "thirty" else load(name)
    records = history(n_entities, delay_ms=10 * DAY_MS)
    n = len(records.event)
    cut = n - min(n // 5, 60 * STEP)
    small = State(stream, 1)
    small.fold(block_of(stream, records, slice(0, 10)))  # compiles the kernel
    small.snapshot()
    before = resident()
    state, seconds = State(stream, 1), 0.0
    for start in range(0, cut, BLOCK):
        seconds += folded(state, block_of(stream, records, slice(start, min(start + BLOCK, cut))))
    held = resident() - before
    row: dict[str, Any] = {
        "stream": name,
        "features": len(state.plan.names),
        "entities": list(state.windows.n_entities),
        "records": cut,
        "fold_us": 1e6 * seconds / cut,
        "bytes_per_entity": [
            size / max(count, 1)
            for size, count in zip(state.windows.bytes_by_entity.values(), state.windows.n_entities, strict=True)
        ],
        "tables": state.windows.bytes_by_table,
        "state_bytes": state.nbytes,
        "resident_bytes": held,
    }
    parts = [block_of(stream, records, slice(start, start + STEP)) for start in range(cut, n, STEP)]
    quiet, busy, turns = [], [], []
    for part in parts[: len(parts) // 2]:
        quiet.append(1e3 * timed(lambda part=part: state.fold(part)))  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as aside:
        store, failures = SnapshotStore(Path(folder)), list[Exception | None]()
        began_s, begin_s = time.perf_counter(), time.thread_time()
        writing = Writing(store, state.copy(), None, aside, {}, failures.append)
        row["begin_ms"] = 1e3 * (time.thread_time() - begin_s)
        left, is_over, most = parts[len(parts) // 2 :], False, held
        while not is_over:
            turn_s = time.thread_time()
            is_over = writing.is_over(step_s=STEP_S)
            turns.append(1e3 * (time.thread_time() - turn_s))
            if left:
                busy.append(1e3 * timed(lambda part=left.pop(0): state.fold(part)))  # type: ignore[misc]
            else:
                time.sleep(0.001)
            most = max(most, psutil.Process().memory_info().rss - before)
        assert failures == [None]
        row["write_s"], row["resident_with_copy_bytes"] = time.perf_counter() - began_s, most
        (path,) = Path(folder).iterdir()
        row["snapshot_bytes"] = path.stat().st_size
        for part in left:
            state.fold(part)
        later = state.copy(writing.base[0] if writing.base else None)
        while not later.is_whole:
            later.step(BLOCK)
        row["changed_bytes"] = sum(array.nbytes for _, array in later.parts())
        began_s = time.perf_counter()
        State.restore(stream, next(store.newest_first())[1])
        row["restore_s"] = time.perf_counter() - began_s
    row["step_ms"] = {
        label: {"p50": float(np.median(steps)), "longest": max(steps)}
        for label, steps in (("alone", quiet), ("beside the writer", busy), ("copying", turns))
    }
    return row


def timed(run: Any) -> float:
    """CPU seconds of this thread in a call: on a busy machine, wall time is that of the others."""
    began_s = time.thread_time()
    run()
    return time.thread_time() - began_s


def table(row: dict[str, Any]) -> str:
    """A row for people."""
    per = ", ".join(f"{size:,.0f}" for size in row["bytes_per_entity"])
    steps = "; ".join(f"{label} {at['p50']:.1f}, {at['longest']:.1f}" for label, at in row["step_ms"].items())
    lines = [
        f"{row['stream']}: {row['features']} features, {row['entities']} entities, {row['records']:,} records",
        f"  bytes per entity          {per}",
        *(f"    {name:<24}{size / 2**20:9.1f} MiB" for name, size in row["tables"].items()),
        f"  state                     {row['state_bytes'] / 2**20:9.1f} MiB",
        f"  resident                  {row['resident_bytes'] / 2**20:9.1f} MiB = "
        f"{row['resident_bytes'] / row['state_bytes']:.2f} x, while a snapshot is written "
        f"{row['resident_with_copy_bytes'] / row['state_bytes']:.2f} x",
        f"  fold                      {row['fold_us']:9.2f} us a record",
        f"  snapshot: begun in        {row['begin_ms']:9.1f} ms of CPU; written in {row['write_s']:.2f} s, "
        f"{row['snapshot_bytes'] / 2**20:.1f} MiB; restored in {row['restore_s']:.2f} s; "
        f"changed since: {row['changed_bytes'] / 2**20:.1f} MiB before compression",
        f"  steps of {STEP} and turns (p50, longest): {steps} ms of CPU",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entities", type=int, default=100_000)
    parser.add_argument("--streams", default="payments,handbook,sparkov,thirty")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    rows = []
    for name in asked.streams.split(","):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measure, (name, asked.entities)))
        print(table(rows[-1]), flush=True)
    if asked.out:
        asked.out.write_text(json.dumps({"rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
