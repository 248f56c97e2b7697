"""Events of a stream for the benchmarks: periods, draws of known labels, features, and the options for them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from flows.streams import shipped
from flows.training_data import budget_of, offline_table
from models.fit.pretrain import Pretrained
from models.score.budget import Budget
from models.table import Table
from pipelines.contracts.stream import DAY_MS, Stream
from pipelines.features.offline import times_of
from tests.bench import peers, tables
from tests.bench.peers import Matrix, Rows
from tests.bench.tables import BenchError

WARM_UP_MS = 30 * DAY_MS  # of windows, before the first training row
N_FIT, N_FREQUENT = 100_000, 32
QUICK_ROWS = 50_000
SHRINK = 10  # events of the global mean in an entity's own mean


@dataclass(frozen=True)
class Options:
    """What determines a cell, apart from data and code."""

    train_start_ms: int
    train_end_ms: int
    valid_days: int
    test_start_ms: int
    test_end_ms: int
    amount: str
    trials: int = 6
    max_ordinary: int = 60_000
    quick: bool = False


@dataclass(frozen=True)
class Data:
    """Events in time order until the end of the test period. Arrays have the shape (n,); NaN = no amount."""

    name: str
    stream: Stream
    frame: pl.DataFrame
    time_ms: NDArray[np.int64]
    label: NDArray[np.int8]
    member: NDArray[np.int64]  # number of the key entity
    amount: NDArray[np.float64]
    options: Options

    @property
    def known_until_ms(self) -> int:
        """Labels of events from this time on are not known at the start of the test period."""
        assert self.stream.labels is not None
        return min(self.options.train_end_ms, self.options.test_start_ms - self.stream.labels.maturity_ms)

    @property
    def valid_start_ms(self) -> int:
        """Start of the validation period."""
        return self.known_until_ms - self.options.valid_days * DAY_MS

    def between(self, start_ms: int, end_ms: int) -> slice:
        """Rows of a period."""
        first, last = np.searchsorted(self.time_ms, [start_ms, end_ms])
        return slice(int(first), int(last))

    @cached_property
    def budget(self) -> Budget:
        """The stream's budget; half a percent where that needs known costs."""
        budget = budget_of(self.stream)
        return Budget(rate=0.005) if budget.cost else budget

    @cached_property
    def encoders(self) -> dict[tuple[int, bool], tuple[Pretrained, float]]:
        """What `payments.encoder_of` has made."""
        return {}

    @cached_property
    def over_own_mean(self) -> NDArray[np.float64]:
        """Amount over the mean of the member's earlier amounts, which is shrunk to the global one."""
        amount = np.nan_to_num(self.amount)
        past = pl.DataFrame({"member": self.member, "amount": amount}).select(
            total=pl.col("amount").cum_sum().over("member") - pl.col("amount"), n=pl.int_range(pl.len()).over("member")
        )
        everyone = float(amount[self.between(self.options.train_start_ms, self.options.train_end_ms)].mean())
        own = (past["total"].to_numpy() + SHRINK * everyone) / (past["n"].to_numpy() + SHRINK)
        return amount / np.maximum(own, 1e-9)


@dataclass(frozen=True)
class Draw:
    """The labels of a random share of the members, and what they make of the features."""

    data: Data
    share: float
    seed: int

    @property
    def setting(self) -> str:
        """Name of the label share."""
        return f"{100 * self.share:g} %"

    @cached_property
    def is_labelled(self) -> NDArray[np.bool_]:
        """Events of the members whose labels are known."""
        data = self.data
        members = np.unique(data.member[data.between(data.options.train_start_ms, data.known_until_ms)])
        random = np.random.default_rng((self.seed, round(1e6 * self.share)))
        chosen = random.permutation(members)[: int(np.ceil(self.share * len(members)))]
        return np.isin(data.member, chosen) if self.share < 1 else np.ones(len(data.member), bool)

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """Events whose labels are known when the test period starts."""
        return self.is_labelled & (self.data.time_ms < self.data.known_until_ms)

    @cached_property
    def table(self) -> Table:
        """Features of all events; label-fed ones see only the labels of the draw."""
        data, stream = self.data, self.data.stream
        assert stream.labels is not None
        shown = data.frame[stream.labels.column].set(pl.Series(~self.is_labelled), None)
        return offline_table(data.frame.with_columns(shown), stream)

    @cached_property
    def training(self) -> slice:
        """Training rows, with or without a label."""
        return self.data.between(self.data.options.train_start_ms, self.data.options.train_end_ms)

    @cached_property
    def matrix(self) -> Matrix:
        """Columns for the other methods: numbers, then the most frequent categories as 0 and 1."""
        blocks = [np.asarray(self.table.numeric)]
        for j in range(self.table.categorical.shape[1]):
            column = self.table.category(j)
            found, counts = np.unique(column[self.training], return_counts=True)
            frequent = found[np.argsort(-counts, kind="stable")[:N_FREQUENT]]
            blocks.append((column[:, None] == frequent).astype(np.float64))
        return np.concatenate(blocks, axis=1)

    def rows(self, start_ms: int, end_ms: int, *, unlabelled: bool, most: int) -> Rows:
        """Labelled rows of a period, with the unlabelled ones as 0 if wanted: all frauds, `most` others, weighted."""
        period = self.data.between(start_ms, end_ms)
        at = np.arange(period.start, period.stop)
        if not unlabelled:
            at = at[self.known[at]]
        y = np.where(self.known[at], self.data.label[at], 0).astype(np.int8)
        frauds, others = at[y == 1], at[y == 0]
        n_others = len(others)
        if n_others > most:
            others = np.sort(np.random.default_rng(self.seed).choice(others, most, replace=False))
        kept = np.concatenate([frauds, others])
        weight = np.repeat([1.0, n_others / max(len(others), 1)], [len(frauds), len(others)])
        return Rows(self.matrix[kept], np.repeat(np.array([1, 0], np.int8), [len(frauds), len(others)]), weight)


def judged(data: Data) -> tuple[slice, slice]:
    """Rows that set the threshold, and rows of the test period."""
    options = data.options
    quantile = data.between(data.known_until_ms, options.train_end_ms)
    if quantile.stop - quantile.start < 200:
        quantile = data.between(data.valid_start_ms, data.known_until_ms)
    return quantile, data.between(options.test_start_ms, options.test_end_ms)


def load(folder: Path, stream: Stream, options: Options, *, more: Sequence[str] = ()) -> tuple[Data, str]:
    """The events of a folder until the end of the test period, and a digest of the files.

    Args:
        more: further columns to keep in the frame.

    Raises:
        BenchError: files, columns or periods do not fit.
    """
    if stream.labels is None:
        raise BenchError(f"the stream {stream.name} has no [labels]; add them, with the column of the truth")
    # an event without a label is unknown here, not legitimate
    stream = msgspec.structs.replace(stream, labels=msgspec.structs.replace(stream.labels, reports="both"))
    assert stream.labels is not None
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise BenchError(f"{folder}: no .parquet file")
    wanted = list(dict.fromkeys([*(field.name for field in stream.fields), stream.labels.column, *more]))
    parts = []
    for file in files:
        try:
            parts.append(pl.read_parquet(file, columns=wanted))
        except (pl.exceptions.PolarsError, OSError) as error:
            raise BenchError(f"{file}: cannot be read with the columns {', '.join(wanted)}: {error}") from error
    frame = pl.concat(parts, how="vertical_relaxed")
    at, key, event_id = stream.event_time, stream.key, stream.event_id
    if empty := [name for name in (event_id, at, key) if frame[name].null_count()]:
        raise BenchError(f"{folder}: empty cells in {', '.join(empty)}; every event needs them")
    frame = frame.sort(at, event_id).unique(subset=event_id, keep="first", maintain_order=True)
    frame = frame.filter(times_of(frame, stream) < options.test_end_ms)
    if options.quick:
        sizes = frame.group_by(key).len().sort(key).sample(fraction=1.0, shuffle=True, seed=0)
        some = sizes.filter(pl.col("len").cum_sum() <= max(QUICK_ROWS, sizes["len"][0]))[key]
        frame = frame.filter(pl.col(key).is_in(some.implode()))
    time_ms = times_of(frame, stream)
    if options.amount not in stream.numbers:
        raise BenchError(f"--amount {options.amount}: not a number field; choose one of {', '.join(stream.numbers)}")
    if options.train_start_ms == 0 and len(time_ms):
        start = min(WARM_UP_MS, (options.train_end_ms - int(time_ms[0])) // 3) + int(time_ms[0])
        options = replace(options, train_start_ms=start)
    data = Data(
        f"{stream.name} {day_of(options.test_start_ms)}",
        stream,
        frame,
        time_ms,
        frame[stream.labels.column].fill_null(0).cast(pl.Int8).to_numpy(),
        np.unique(frame[key].cast(pl.String).to_numpy(), return_inverse=True)[1].astype(np.int64),
        frame[options.amount].cast(pl.Float64).fill_null(np.nan).to_numpy(),
        options,
    )
    _check(data)
    return data, tables.files_digest(files)


def _check(data: Data) -> None:
    options = data.options
    times = [options.train_start_ms, data.valid_start_ms, options.train_end_ms, options.test_start_ms + 1]
    if not all(a < b for a, b in zip(times, [*times[1:], options.test_end_ms], strict=True)):
        raise BenchError(
            f"training would start on {day_of(times[0])}, validation on {day_of(times[1])}; the order must be "
            "training, validation, --train-end, --test-start, --test-end. Change the dates or --valid-days"
        )
    for name, start, end in (
        ("training", options.train_start_ms, data.known_until_ms),
        ("test", options.test_start_ms, options.test_end_ms),
    ):
        label = data.label[data.between(start, end)]
        if not 0 < label.sum() < len(label):
            raise BenchError(
                f"the {name} period has {len(label):,} events, {int(label.sum()):,} of them frauds; it needs both kinds"
            )


def day_of(ms: int) -> str:
    """The day of a time, YYYY-MM-DD, UTC."""
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d}"


def period_of(start_ms: int, end_ms: int) -> str:
    """First and last day of a period."""
    return f"{day_of(start_ms)} .. {day_of(end_ms - 1)}"


def add_options(parser: argparse.ArgumentParser, *, quick: str, trials: int = 6) -> None:
    """Add the options of every benchmark on a stream; `options_of` reads them."""
    day = tables.day_ms
    parser.add_argument("--data", type=Path, required=True, help="folder of .parquet files")
    parser.add_argument("--stream", required=True, help="stream file, or the name of a shipped stream")
    parser.add_argument("--train-start", type=day, default=0, help="first day of training (default: after 30 days)")
    parser.add_argument("--train-end", type=day, required=True, help="last day of training, YYYY-MM-DD")
    parser.add_argument("--valid-days", type=int, default=14, help="days of validation (default 14)")
    parser.add_argument("--test-start", type=day, required=True, help="first day of the test period")
    parser.add_argument("--test-end", type=day, required=True, help="last day of the test period")
    parser.add_argument(
        "--trials", type=int, default=trials, help=f"trials of each method with labels (default {trials})"
    )
    parser.add_argument("--max-ordinary", type=int, default=60_000, help="training rows without fraud (default 60,000)")
    parser.add_argument("--amount", default="", help="field of the value (default: the first with a ratio feature)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help=quick)


def options_of(asked: argparse.Namespace, stream: Stream) -> Options:
    """What was asked for.

    Raises:
        BenchError: an option cannot be used.
    """
    if asked.trials < 1 or asked.valid_days < 1 or asked.max_ordinary < 100:
        raise BenchError("--trials and --valid-days must be at least 1, --max-ordinary at least 100")
    tables.check_folder(asked.out)
    peers.check_packages()
    with_ratio = [f.field for f in stream.features if f.stat in ("ratio", "wratio") and f.field]
    return Options(
        asked.train_start,
        asked.train_end + DAY_MS,
        asked.valid_days,
        asked.test_start,
        asked.test_end + DAY_MS,
        asked.amount or next(iter([*with_ratio, *stream.numbers]), ""),
        2 if asked.quick else asked.trials,
        min(asked.max_ordinary, 6_000) if asked.quick else asked.max_ordinary,
        asked.quick,
    )


def data_of(asked: argparse.Namespace, *, more: Sequence[str] = ()) -> tuple[Data, str]:
    """The data that the options ask for; see `load`."""
    stream = shipped.load(asked.stream)
    options = options_of(asked, stream)
    torch.set_num_threads(peers.N_THREADS)
    return load(asked.data, stream, options, more=more)
