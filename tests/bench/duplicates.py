"""Soak of the memory of event ids: a replica folds millions of them while its snapshots are written to disk.

    python -m tests.bench.duplicates [--ids 5000000] [--snapshot-every 250000]

Goes through decoding, the merge, `State.fold` and real snapshots, in steps of 2,000 records, without a broker. When so
many ids are held, a tenth more come, and the oldest leave. Then the last snapshot is read back. Ends with exit code 1
where a bound is broken: memory above the start < 600 MB, longest step < 200 ms, not counting the time that the thread
stood in line for a core, which on a busy machine says nothing about us.
"""

import argparse
import gc
import os
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pipelines.contracts.messages import Progress
from pipelines.contracts.stream_file import parse
from pipelines.features.duplicates import Duplicates
from pipelines.features.id_log import hash_ids
from pipelines.features.snapshot import Snapshot
from pipelines.features.state import State
from pipelines.live.replica import Replica
from pipelines.order import EVENT, Mark, Source, by_kind, sources
from pipelines.record import Received

MOST_MB, MOST_STEP_MS = 600.0, 200.0
N_PARTITIONS, STEP, START_MS, MS_PER_EVENT = 4, 2_000, 1_700_000_000_000, 20
STREAM = """
[stream]
name = "soak"
event_id = "id"
event_time = "at"
entities = ["card"]
duplicate_memory = "{memory_ms}ms"
[fields]
id = {{ type = "text" }}
at = {{ type = "time" }}
card = {{ type = "int" }}
amount = {{ type = "number" }}
[[features]]
entity = "card"
field = "amount"
windows = ["1h", "1d", "all"]
stats = ["mean", "std"]
"""


def records_of(start: int, stop: int, next_offset: list[int]) -> list[list[Received]]:
    """Events by partition; after the first million every hundredth repeats one of the million before it."""
    records: list[list[Received]] = [[] for _ in range(N_PARTITIONS)]
    for n in range(start, stop):
        id_ = n - 1 - (n * 7919) % 1_000_000 if n % 100 == 0 and n > 1_000_000 else n
        card, at = id_ % 2_000, START_MS + MS_PER_EVENT * n
        partition = card % N_PARTITIONS
        value = b'{"id":"payment-%09d","at":%d,"card":%d,"amount":9.5}' % (id_, at, card)
        records[partition].append(Received("events", partition, next_offset[partition], at, b"%d" % card, value))
        next_offset[partition] += 1
    return records


def waited_ms() -> float:
    """How long this thread has stood in line for a core, ms."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e6


class Timed:
    """Calls a function and keeps the longest time it took, less the time in line, ms."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.longest_ms = function, 0.0

    def __call__(self, *args: Any) -> Any:
        wall, waited = time.perf_counter(), waited_ms()
        result = self.function(*args)
        self.longest_ms = max(self.longest_ms, 1000 * (time.perf_counter() - wall) - (waited_ms() - waited))
        return result


def soak(n_ids: int, snapshot_every: int, folder: Path) -> bool:
    """Fold, snapshot, print; whether the bounds are kept."""
    stream = parse(STREAM.format(memory_ms=n_ids * MS_PER_EVENT))
    origin = by_kind(dict.fromkeys(sources(N_PARTITIONS, labels=False), 0), N_PARTITIONS)
    progress = {
        p: Progress(
            next_offset=0, start=0, n_scored=0, n_refused=0, n_duplicates=0, n_out_of_turn=0, owner="",
            n_partitions=N_PARTITIONS, definition="", model="", origin=origin, frontier=None, out_of_turn=[],
        )
        for p in range(N_PARTITIONS)
    }  # fmt: skip
    next_offset, pool, writing = [0] * N_PARTITIONS, ThreadPoolExecutor(1), Future[None]()
    writing.set_result(None)
    replica = Replica(State(stream, N_PARTITIONS), progress, {})
    looked_up, copied = Timed(replica.state._seen.first_offsets), Timed(replica.state.snapshot)
    replica.state._seen.first_offsets = looked_up  # type: ignore[method-assign, assignment]
    n, process = round(1.1 * n_ids), psutil.Process()
    steps_ms, whole_ms, n_out, n_duplicates, n_snapshots, path = [], [], 0, 0, 0, folder / "soak.snapshot"
    start_mb = most_mb = 0.0
    began = time.perf_counter()
    for start in range(0, n, STEP):
        records = records_of(start, min(start + STEP, n), next_offset)
        mark = Mark(
            START_MS + MS_PER_EVENT * (start + STEP), {Source(EVENT, p): next_offset[p] for p in range(N_PARTITIONS)}
        )
        wall, waited = time.perf_counter(), waited_ms()
        for partition, received in enumerate(records):
            replica.merge.add(Source(EVENT, partition), received)
        replica.merge.mark(mark)
        for puts in replica.advance():
            n_out += sum(len(put.rows) for put in puts)
            n_duplicates += sum(int(put.rows.is_duplicate.sum()) for put in puts)
        if start // snapshot_every != (start + STEP) // snapshot_every and writing.done():
            writing.result()
            writing = pool.submit(copied().write, path)
            n_snapshots += 1
        whole_ms.append(1000 * (time.perf_counter() - wall))
        steps_ms.append(whole_ms[-1] - (waited_ms() - waited))
        most_mb = max(most_mb, process.memory_info().rss / 1e6 - start_mb)
        if start == 10 * STEP:  # all is compiled; from here on as in `flows.serve.service`
            gc.collect()
            gc.freeze()
            start_mb, most_mb = process.memory_info().rss / 1e6, 0.0
            looked_up.longest_ms = 0.0
            steps_ms.clear()
            whole_ms.clear()
    seconds = time.perf_counter() - began
    writing.result()
    state = replica.state
    print(f"{n:,} events, {n_duplicates:,} of them duplicates; {n_snapshots} snapshots were written while they came")
    print(f"ids remembered {state.remembered}, state {state.nbytes / 1e6:,.0f} MB")
    print(f"memory above the start  {most_mb:8.0f} MB  (at most {MOST_MB:.0f})")
    print(f"longest step            {max(steps_ms):8.0f} ms  (at most {MOST_STEP_MS:.0f})")
    print(f"  with time in line     {max(whole_ms):8.0f} ms")
    print(f"  in the memory of ids  {looked_up.longest_ms:8.0f} ms")
    print(f"  in taking a snapshot  {copied.longest_ms:8.0f} ms")
    print(f"median step             {np.median(steps_ms):8.0f} ms of {STEP:,} events")
    print(f"events/s                {n / seconds:8,.0f}     (decoding, merge, fold and making the events)")
    state.snapshot().write(path)
    wall = time.perf_counter()
    again = State.restore(stream, Snapshot.read(path))
    print(f"read back               {time.perf_counter() - wall:8.1f} s   of {path.stat().st_size / 1e6:,.0f} MB")
    assert again.remembered == state.remembered
    return most_mb < MOST_MB and max(steps_ms) < MOST_STEP_MS


def old_design(texts: list[str]) -> tuple[float, float, float, float]:
    """What stood here before: a dictionary of tuples, copied at each snapshot. us per event, ms of snapshot, bytes."""
    import xxhash

    rss, wall = psutil.Process().memory_info().rss, time.perf_counter()
    seen: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
    longest = 0.0
    for offset, text in enumerate(texts):
        id128, began = xxhash.xxh3_128_digest(text.encode()), time.perf_counter()
        if seen.get(id128) is None:
            seen[id128] = (offset, offset)
        longest = max(longest, time.perf_counter() - began)
    us = 1e6 * (time.perf_counter() - wall) / len(texts)
    n_bytes = (psutil.Process().memory_info().rss - rss) / len(texts)
    wall = time.perf_counter()
    copied = [(0, k, o, c) for k, (o, c) in seen.items()]
    np.frombuffer(b"".join(s[1] for s in copied), np.uint8).reshape(len(copied), 16)
    for place in (0, 2, 3):
        np.array([s[place] for s in copied], np.int64)
    return us, 1e3 * (time.perf_counter() - wall), n_bytes, 1e3 * longest


def new_design(texts: list[str]) -> tuple[float, float, float, float]:
    """The same of what stands here now."""
    memory = Duplicates(10**12, 10**12)
    memory.first_offsets(hash_ids(texts[:1], b""), np.zeros(1, np.int32), np.zeros(1, np.int64), np.zeros(1, np.int64))
    memory = Duplicates(10**12, 10**12)
    rss, wall, longest, at = psutil.Process().memory_info().rss, time.perf_counter(), 0.0, np.arange(len(texts))
    for start in range(0, len(texts), STEP):
        part, began = at[start : start + STEP], time.perf_counter()
        ids = hash_ids(texts[start : start + STEP], b"a key of 16 byte")
        memory.first_offsets(ids, np.zeros(len(part), np.int32), part, part)
        longest = max(longest, time.perf_counter() - began)
    us = 1e6 * (time.perf_counter() - wall) / len(texts)
    n_bytes = (psutil.Process().memory_info().rss - rss) / len(texts)
    wall = time.perf_counter()
    memory.snapshot(len(texts))
    return us, 1e3 * (time.perf_counter() - wall), n_bytes, 1e3 * longest


def compare(n_ids: int) -> None:
    """Both designs with the same ids, one after the other."""
    texts = [f"payment-{n:09d}" for n in range(n_ids)]
    new, old = new_design(texts), old_design(texts)
    print(
        f"\n{n_ids:,} new ids, hashing included{'us/event':>16}{'snapshot, ms':>16}{'bytes/id':>12}{'longest, ms':>14}"
    )
    for name, row in (("dictionary of before", old), ("this table", new)):
        print(f"{name:<38}{row[0]:>10.2f}{row[1]:>16.1f}{row[2]:>12.0f}{row[3]:>14.1f}")
    print(f"{'before / now':<38}{old[0] / new[0]:>10.2f}{'':>16}{old[2] / new[2]:>12.1f}")


def main() -> None:
    """Print the figures; exit code 1 where a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=int, default=5_000_000, help="ids held at once")
    parser.add_argument("--snapshot-every", type=int, default=250_000, help="events between two snapshots")
    asked = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        is_kept = soak(asked.ids, asked.snapshot_every, Path(folder))
    compare(min(asked.ids, 1_000_000))
    print("\nthe bounds are kept" if is_kept else "\nA BOUND IS BROKEN")
    sys.exit(0 if is_kept else 1)


if __name__ == "__main__":
    main()
