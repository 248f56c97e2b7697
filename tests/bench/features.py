"""Events per second of the window features, and of the part that polars can express too, in the same run.

    python -m tests.bench.features [--events 2000000] [--customers 50000]

One thread each, the better of two runs (the first also pays for memory not handed out yet).
polars' windows slide by the event, ours move by panes; polars sees the whole sorted history at once, ours
takes it in batches, in the order of arrival, and could go on. Compared is the time to get the same columns.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence

os.environ["POLARS_MAX_THREADS"] = "1"  # read by polars when it is imported

import numba
import numpy as np
import polars as pl

from pipelines.contracts.stream import Feature
from pipelines.features.layout import FoldInput
from pipelines.features.plan import FeaturePlan
from pipelines.features.windows import Windows

DAY_MS = 86_400_000
WINDOWS = {"1d": DAY_MS, "7d": 7 * DAY_MS, "30d": 30 * DAY_MS}
SHARED_STATS = ("count", "sum", "mean", "std", "min", "max")
SHARED = tuple(
    Feature(f"customer.{stat}.{name}", stat, "customer", None if stat == "count" else "amount", window_ms)
    for name, window_ms in WINDOWS.items()
    for stat in SHARED_STATS
)
FULL = (
    *(Feature(f"customer.count.{name}", "count", "customer", None, ms) for name, ms in WINDOWS.items()),
    *(Feature(f"customer.mean.{name}", "mean", "customer", "amount", ms) for name, ms in WINDOWS.items()),
    *(Feature(f"customer.zscore.{name}", "zscore", "customer", "amount", ms) for name, ms in WINDOWS.items()),
    *(Feature(f"customer.max.{name}", "max", "customer", "amount", ms) for name, ms in WINDOWS.items()),
    Feature("customer.distinct.1d", "distinct", "customer", "terminal", DAY_MS),
    Feature("customer.mean.all", "mean", "customer", "amount", None),
    Feature("customer.std.all", "std", "customer", "amount", None),
    Feature("customer.since_last", "since_last", "customer", None, None),
    *(Feature(f"terminal.count.{name}", "count", "terminal", None, ms) for name, ms in list(WINDOWS.items())[:2]),
    *(Feature(f"terminal.fraud_rate.{name}", "fraud_rate", "terminal", None, ms) for name, ms in WINDOWS.items()),
)


def history(n_events: int, n_customers: int, *, days: int = 180, label_share: float = 0.0) -> FoldInput:
    """A sorted history: customers of very different activity, and one terminal for every 5 of them."""
    random = np.random.default_rng(7)
    n_terminals = max(1, n_customers // 5)
    weights = random.exponential(size=n_customers)
    keys = random.integers(1, 2**64 - 1, n_customers + n_terminals, dtype=np.uint64)
    customer = random.choice(n_customers, n_events, p=weights / weights.sum())
    terminal = n_customers + random.integers(0, n_terminals, n_events)
    entities = np.stack([keys[customer], keys[terminal]], axis=1)
    time_ms = np.sort(random.integers(0, days * DAY_MS, n_events)) + 1_700_000_000_000
    is_event = random.random(n_events) >= label_share
    return FoldInput(
        is_event=is_event,
        clock_ms=time_ms,
        time_ms=np.where(is_event, time_ms, time_ms - 3 * DAY_MS),
        entities=entities,
        numbers=random.lognormal(3.0, 1.0, (n_events, 1)),
        hashed=entities[:, 1:],
        delta=np.where(is_event, 0, 1).astype(np.int8),
        legit=np.zeros(n_events, np.int8),
    )


def best_of_two(run: Callable[[], object]) -> float:
    """Seconds of the faster of two runs."""
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def replay(features: Sequence[Feature], batch: FoldInput, *, rows: int) -> Windows:
    """Fold a history from nothing, in batches of `rows`; the state after it."""
    windows = Windows(
        FeaturePlan.of(
            features,
            entities=("customer", "terminal"),
            numbers=("amount",),
            hashed=("terminal",),
            maturity_ms=7 * DAY_MS,
        )
    )
    for first in range(0, len(batch.is_event), rows):
        windows.fold(batch.slice(first, first + rows))
    return windows


def frame_of(batch: FoldInput) -> pl.DataFrame:
    """What polars gets."""
    at = batch.time_ms.astype("datetime64[ms]")
    return pl.DataFrame({"customer": batch.entities[:, 0], "amount": batch.numbers[:, 0], "at": at})


def rolling(frame: pl.DataFrame) -> list[pl.DataFrame]:
    """The shared features with polars' `rolling`, one pass a window."""
    amount = pl.col("amount")
    return [
        frame.rolling("at", period=name, group_by="customer", closed="left").agg(
            pl.len().alias("count"),
            amount.sum().alias("sum"),
            amount.mean().alias("mean"),
            amount.std(ddof=0).alias("std"),
            amount.min().alias("min"),
            amount.max().alias("max"),
        )
        for name in WINDOWS
    ]


def rolling_by(frame: pl.DataFrame) -> list[pl.DataFrame]:
    """The same with polars' `rolling_*_by` expressions over customers."""
    amount = pl.col("amount")
    one = amount.is_not_null().cast(pl.Int64)
    return [
        frame.select(
            one.rolling_sum_by("at", name, closed="left").over("customer").alias("count"),
            amount.rolling_sum_by("at", name, closed="left").over("customer").alias("sum"),
            amount.rolling_mean_by("at", name, closed="left").over("customer").alias("mean"),
            amount.rolling_std_by("at", name, closed="left", ddof=0).over("customer").alias("std"),
            amount.rolling_min_by("at", name, closed="left").over("customer").alias("min"),
            amount.rolling_max_by("at", name, closed="left").over("customer").alias("max"),
        )
        for name in WINDOWS
    ]


def machine() -> str:
    """The machine, in words."""
    with open("/proc/cpuinfo", encoding="ascii") as lines:
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    versions = f"Python {platform.python_version()}, numba {numba.__version__}, polars {pl.__version__}"
    return f"{model}, {os.cpu_count()} cores, {versions}; one thread"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Throughput of the window features.")
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--customers", type=int, default=50_000)
    chosen = parser.parse_args()
    plain = history(chosen.events, chosen.customers)
    labelled = history(chosen.events, chosen.customers, label_share=0.01)
    frame = frame_of(plain)
    state = replay(FULL, labelled, rows=65_536)
    replay(SHARED, plain.slice(0, 1), rows=1)

    print(machine())
    per = [round(size / n) for size, n in zip(state.bytes_by_entity.values(), state.n_entities, strict=True)]
    held = f"{state.n_entities} entities of {per} bytes, {state.nbytes / 2**20:,.0f} MiB"
    print(f"{chosen.events:,} events of {chosen.customers:,} customers in 180 days")
    print(f"state of {len(FULL)} features at the end: {held}\n")
    print(f"{'what':<48}{'features':>9}{'seconds':>9}{'events/s':>12}{'ratio':>8}")
    rows: list[tuple[str, int, Callable[[], object]]] = [
        (
            "kernel, customers only, 3 windows",
            len(SHARED),
            lambda: replay(SHARED, plain, rows=65_536),
        ),
        ("polars rolling().agg(), the same", len(SHARED), lambda: rolling(frame)),
        ("polars rolling_*_by().over(), the same", len(SHARED), lambda: rolling_by(frame)),
        ("kernel, 2 entities, 1 % labels", len(FULL), lambda: replay(FULL, labelled, rows=65_536)),
        ("kernel, the same, batches of 256", len(FULL), lambda: replay(FULL, labelled, rows=256)),
        (
            "snapshot and restore of that state",
            len(FULL),
            lambda: Windows.restore(state.plan, state.snapshot()),
        ),
    ]
    first: float | None = None
    for name, n_features, run in rows:
        seconds = best_of_two(run)
        first = first or seconds
        rate = f"{chosen.events / seconds:>12,.0f}{seconds / first:>8.2f}" if "snapshot" not in name else ""
        print(f"{name:<48}{n_features:>9}{seconds:>9.2f}{rate}")


if __name__ == "__main__":
    main()
