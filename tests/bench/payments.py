"""Detection on a stream: Unmask and other detectors on a folder of Parquet files, by the share of known labels.

    python -m tests.bench.payments --data FOLDER --stream handbook --train-end 2018-06-30 --valid-days 14 \\
        --test-start 2018-07-01 --test-end 2018-07-31 --labels 0,0.005,0.01,0.05,0.1,0.25,1 --seeds 3 --out FILE
    python -m tests.bench.payments --data FOLDER --stream my.toml ... --quick --out quick.json   # within 3 minutes

The files have one column for each field of the stream file, and its label column (0, 1 or null). `--train-end` is the
last day of training. Labels are known for a random share of the members of the key entity, and only for events before
test start - maturity; everywhere else they are hidden, from label-fed columns too, and events without a label are
unknown (`reports = "both"`, whatever the stream file says). The last `--valid-days` days with
known labels are the validation period. Every event of the test period is scored; its label-fed columns learn, one
maturity late, the labels of the same members. At 1 % and below there are at least 10 draws of members.

All methods get the same columns (categories as one-hot of the 32 most frequent, those without labels no label-fed
column). Unmask runs with its defaults: one trial; three encoders, pretrained without labels, serve all draws. The other
methods with labels get `--trials` trials each, judged by average precision on the validation period, and are then
fitted on all known labels. Each may leave unlabelled rows out or take them as 0, whichever is better on validation. All
known frauds and at most `--max-ordinary` other rows are used, weighted, a third of them in trials. Methods without
labels fit on at most 100,000 rows. The alert threshold is the quantile of the scores that meets the budget on the
training days without known labels (the last maturity), which no method with labels has trained on, or else on the
validation period. `unmask-zero` is the score before fine-tuning, `unmask-scratch` fine-tuned without pretraining.
Intervals: bootstrap over draws and key entities, paired.

Writes FILE (JSON), and beside it a Markdown table and a plot. It may be interrupted: cells are kept in FILE.cells, and
are made again where the data, an option or the code of the method has changed. Exit code 2 if the data or an option
cannot be used.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from flows.streams import shipped
from flows.training_data import budget_of, offline_table
from models.fit.finetune import MOST_ROWS, PER_FRAUD, FinetuneConfig, TrainedModel, finetune
from models.fit.pretrain import PretrainConfig, Pretrained, pretrain
from models.score.budget import Budget, threshold_for
from models.table import Table
from pipelines.contracts.stream import DAY_MS, Stream
from tests.bench import peers, tables
from tests.bench.peers import Matrix, Rows
from tests.bench.tables import BenchError, Row

MIN_DRAWS, FEW_LABELS = 10, 0.01
N_ENCODERS = 3  # pretrainings, with a seed each
WARM_UP_MS = 30 * DAY_MS  # of windows, before the first training row
N_FIT, N_FREQUENT = 100_000, 32
QUICK_ROWS, QUICK_STEPS = 50_000, 80
SHRINK = 10  # events of the global mean in an entity's own mean
MethodsOf = Callable[[float], Mapping[str, Callable[["Draw"], list[Row]]]]
VERSION = 1  # increase it if a cell means something else; other code is recognised by its digest


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
        """What `encoder_of` has made."""
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


# --- the methods: each gives scores of all rows from the first row that is judged ---


def judged(data: Data) -> tuple[slice, slice]:
    """Rows that set the threshold, and rows of the test period."""
    options = data.options
    quantile = data.between(data.known_until_ms, options.train_end_ms)
    if quantile.stop - quantile.start < 200:
        quantile = data.between(data.valid_start_ms, data.known_until_ms)
    return quantile, data.between(options.test_start_ms, options.test_end_ms)


def measure(draw: Draw, method: str, score: Callable[[slice], NDArray[np.floating]], fit_s: float) -> Row:
    """Score the judged rows; a row without data, setting and seed."""
    data = draw.data
    quantile, test = judged(data)
    before = score(quantile)
    began = time.monotonic()
    found = score(test)
    score_s = time.monotonic() - began
    if not np.isfinite(found).all():
        raise BenchError(f"{method}: {int((~np.isfinite(found)).sum())} scores are not finite")
    label, member, at_ms = data.label[test], data.member[test], data.time_ms[test]
    alerts = found > threshold_for(data.budget, before.astype(np.float64), data.time_ms[quantile])
    fraud, value = label == 1, np.nan_to_num(data.amount[test])
    hours = []
    for one in np.unique(member[fraud]):
        mine = member == one
        first = int(at_ms[mine & fraud][0])
        caught = at_ms[mine & alerts & (at_ms >= first)]
        hours.append((int(caught[0]) - first) / 3_600_000 if len(caught) else np.nan)
    alerted = np.isfinite(hours)
    row: Row = {"method": method} | tables.ranking(label, found) | tables.alerted(label, alerts)
    row |= {"fit_s": fit_s, "score_s": score_s, "alert_rate": float(alerts.mean())}
    row |= {
        "value_caught": float(value[fraud & alerts].sum() / max(value[fraud].sum(), 1e-9)),
        "entities_alerted": float(alerted.mean()),
        "hours_to_alert": float(np.median(np.array(hours)[alerted])) if alerted.any() else None,
        "known_frauds": int((draw.known & (data.label == 1))[draw.training].sum()),
        "n_test_anomalies": int(fraud.sum()),
        "resamples": tables.resampled_ap(label, found, np.unique(member, return_inverse=True)[1]),
    }
    return row


def _configs(data: Data, *, pretrained: bool) -> tuple[PretrainConfig, FinetuneConfig]:
    first, second = PretrainConfig(), FinetuneConfig(budget=data.budget)
    if data.options.quick:
        first = PretrainConfig(max_steps=QUICK_STEPS, min_steps=QUICK_STEPS)
        second = FinetuneConfig(budget=data.budget, n_trees=20)
    if not pretrained:
        first = PretrainConfig(max_steps=0, min_steps=0)
    return first, second


def encoder_of(data: Data, seed: int, *, pretrained: bool = True) -> tuple[Pretrained, float]:
    """The encoder, pretrained on the training period, or not trained at all, and the seconds that it took.

    It never sees a label, so `N_ENCODERS` serve all draws: that of a seed is made once.
    """
    made = data.encoders
    key = (seed - 1) % N_ENCODERS + 1, pretrained
    if key not in made:
        draw = Draw(data, 0.0, key[0])
        rows, began = draw.table.take(draw.training), time.monotonic()
        encoder = pretrain(rows, config=_configs(data, pretrained=pretrained)[0], seed=key[0])
        made[key] = encoder, time.monotonic() - began
    return made[key]


def fine_tuned(draw: Draw, encoder: Pretrained) -> TrainedModel:
    """The encoder fine-tuned on the known labels."""
    data, rows = draw.data, draw.training
    label = np.where(draw.known, data.label, 0).astype(np.int8)[rows]
    config = _configs(data, pretrained=True)[1]
    return finetune(encoder, draw.table.take(rows), label=label, known=draw.known[rows], config=config, seed=draw.seed)


def unmask(draw: Draw, *, pretrained: bool) -> list[Row]:
    """Unmask with its defaults, with the label-free score that it starts from; or without pretraining."""
    table = draw.table
    encoder, half_s = encoder_of(draw.data, draw.seed, pretrained=pretrained)
    began = time.monotonic()
    model = fine_tuned(draw, encoder)
    fit_s = half_s + time.monotonic() - began

    def scored(rows: slice) -> NDArray[np.floating]:
        return model.score(np.asarray(table.numeric[rows]), np.asarray(table.categorical[rows]))

    if not pretrained:
        return [measure(draw, "unmask-scratch", scored, fit_s)]
    zero = partial(_zero, encoder, table)
    return [measure(draw, "unmask", scored, fit_s), measure(draw, "unmask-zero", zero, half_s)]


def _zero(encoder: Pretrained, table: Table, rows: slice) -> NDArray[np.floating]:
    return encoder.score(table.take(rows))


def unsupervised(draw: Draw, method: peers.Unsupervised) -> list[Row]:
    """A method without labels, on the columns that no label feeds."""
    numeric = [not column.label_fed for column in draw.table.columns if column.kind == "numeric"]
    free = np.array(numeric + [True] * (draw.matrix.shape[1] - len(numeric)))
    rows = np.arange(draw.training.start, draw.training.stop)
    if len(rows) > N_FIT:
        rows = np.random.default_rng(draw.seed).choice(rows, N_FIT, replace=False)
    began = time.monotonic()
    score = method.fit(draw.matrix[rows][:, free], draw.seed)
    fit_s = time.monotonic() - began
    return [measure(draw, method.name, lambda part: score(draw.matrix[part][:, free]), fit_s)]


def over_own_mean(draw: Draw) -> list[Row]:
    """Amount over the member's own mean."""
    return [measure(draw, "amount / own mean", lambda part: draw.data.over_own_mean[part], 0.0)]


def tuned(draw: Draw, method: peers.Supervised) -> peers.Tuned:
    """A method with labels: trials on the validation period, then all known labels."""
    data, options = draw.data, draw.data.options
    variants = {"left out": False, "as 0": True} if draw.share < 1 else {"none": False}
    start, cut, end = options.train_start_ms, data.valid_start_ms, data.known_until_ms
    fewer = options.max_ordinary // 3
    return peers.fit_tuned(
        method,
        {name: draw.rows(start, cut, unlabelled=use, most=fewer) for name, use in variants.items()},
        {name: draw.rows(start, end, unlabelled=use, most=options.max_ordinary) for name, use in variants.items()},
        draw.rows(cut, end, unlabelled=False, most=fewer),
        trials=options.trials,
        seed=draw.seed,
    )


def supervised(draw: Draw, method: peers.Supervised) -> list[Row]:
    """The row of a method with labels."""
    found = tuned(draw, method)
    row = measure(draw, method.name, lambda part: found.score(draw.matrix[part]), found.fit_s)
    more = {"unlabelled": found.variant, "settings": found.settings, "validation_ap": found.validation_ap}
    return [row | more | {"search_s": found.search_s}]


def methods_of(share: float) -> Mapping[str, Callable[[Draw], list[Row]]]:
    """The methods at a share of labels. The first one gives the row of `unmask-zero` too."""
    found: dict[str, Callable[[Draw], list[Row]]] = {"unmask": partial(unmask, pretrained=True)}
    if share == 0:
        found |= {one.name: partial(unsupervised, method=one) for one in peers.UNSUPERVISED}
        return found | {"amount / own mean": over_own_mean}
    found["unmask-scratch"] = partial(unmask, pretrained=False)
    return found | {one.name: partial(supervised, method=one) for one in peers.SUPERVISED}


# --- data and report ---


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
    moment = frame[at].dt.epoch("ms") if frame[at].dtype.is_temporal() else frame[at].cast(pl.Int64)
    frame = frame.filter(moment < options.test_end_ms)
    if options.quick:
        sizes = frame.group_by(key).len().sort(key).sample(fraction=1.0, shuffle=True, seed=0)
        some = sizes.filter(pl.col("len").cum_sum() <= max(QUICK_ROWS, sizes["len"][0]))[key]
        frame = frame.filter(pl.col(key).is_in(some.implode()))
    time_ms = (frame[at].dt.epoch("ms") if frame[at].dtype.is_temporal() else frame[at].cast(pl.Int64)).to_numpy()
    if options.amount not in stream.numbers:
        raise BenchError(f"--amount {options.amount}: not a number field; choose one of {', '.join(stream.numbers)}")
    if options.train_start_ms == 0 and len(time_ms):
        start = min(WARM_UP_MS, (options.train_end_ms - int(time_ms[0])) // 3) + int(time_ms[0])
        options = replace(options, train_start_ms=start)
    data = Data(
        f"{stream.name} {datetime.fromtimestamp(options.test_start_ms / 1000, UTC):%Y-%m-%d}",
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
            f"training would start on {_day(times[0])}, validation on {_day(times[1])}; the order must be training, "
            "validation, --train-end, --test-start, --test-end. Change the dates or --valid-days"
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


def _protocol(data: Data, counts: Mapping[float, int]) -> dict[str, Any]:
    options, key = data.options, data.stream.key
    quantile, test = judged(data)
    n, n_frauds = test.stop - test.start, int(data.label[test].sum())
    trials, most = options.trials, f"{options.max_ordinary:,}"
    return {
        "stream": data.stream.name,
        "training": _period(options.train_start_ms, options.train_end_ms),
        "labels known": f"until {_day(data.known_until_ms - 1)}, of the stated share of the members of {key}",
        "validation": _period(data.valid_start_ms, data.known_until_ms),
        "test": f"{_period(options.test_start_ms, options.test_end_ms)}: {n:,} events, {n_frauds:,} frauds",
        "draws": ", ".join(f"{100 * share:g} %: {n}" for share, n in counts.items()),
        "trials": f"Unmask: 1, its defaults; other methods with labels: {trials} (the default with unlabelled rows "
        "left out, with them as 0, then random settings)",
        "row caps": f"methods with labels: all known frauds and {most} other rows, weighted (a third in trials); "
        f"without labels: {N_FIT:,}, KNN-z 10,000 of these; Unmask: none for its encoder, {MOST_ROWS:,} other "
        f"rows than frauds for its prior, {FinetuneConfig.ordinary:,} or {PER_FRAUD} for each fraud for its trees",
        "budget": f"{budget_words(data.budget)}; threshold from {quantile.stop - quantile.start:,} events from "
        f"{_day(int(data.time_ms[quantile][0]))} on",
        "value": f"sum of {options.amount}",
        "entities": f"members of {key} with a fraud in the test period, alerted at or after their first one",
        "intervals": f"bootstrap over draws and members of {key}, {tables.N_RESAMPLES} samples, paired",
        "quick": f"a part of the members with {len(data.frame):,} events, short training" if options.quick else "no",
        "spaces": peers.spaces(),
        **tables.machine(),
    }


def budget_words(budget: Budget) -> str:
    """The budget in words."""
    return f"{budget.rate:.2%} of events" if budget.rate else f"{budget.per_day:g} alerts a day"


def run(data: Data, files: str, shares: Sequence[float], n_seeds: int, out: Path, methods_of: MethodsOf) -> None:
    """Measure every cell, label draw by label draw, and write the report after each."""
    options = data.options
    least = 1 if options.quick else MIN_DRAWS
    counts = {share: max(n_seeds, least) if 0 < share <= FEW_LABELS else n_seeds for share in shares}
    seeds = range(1, max(counts.values()) + 1)
    draws = [Draw(data, share, seed) for seed in seeds for share in shares if seed <= counts[share]]
    cells, progress = tables.Cells(out.with_suffix(".cells")), tables.Progress(len(draws))
    ours = tables.code_digest("models", "pipelines/features")
    theirs = tables.code_digest("tests/bench/peers.py", "pipelines/features")
    place = {"version": VERSION, "files": files, "stream": msgspec.json.encode(data.stream).decode()}
    place |= {"options": vars(options)}
    protocol = _protocol(data, counts)
    rows: list[Row] = []
    resamples: dict[tuple[str, str, str, int], list[float]] = {}
    for draw in draws:
        here: list[Row] = []
        for name, method in methods_of(draw.share).items():
            key = place | {"share": draw.share, "seed": draw.seed, "method": name}
            key |= {"code": ours if name.startswith("unmask") else theirs}
            for found in cells.get(key, partial(method, draw)):
                row: Row = {"data": data.name, "setting": draw.setting, "seed": draw.seed, **found}
                resamples[data.name, draw.setting, row["method"], draw.seed] = row.pop("resamples")
                here.append(row)
        rows += here
        progress.cell(f"{draw.setting} of the labels, draw {draw.seed}", here)
        protocol |= {"total_s": round(cells.spent_s), "cells_reused": cells.n_reused}
        ordered = sorted(rows, key=lambda row: (float(row["setting"].removesuffix(" %")), row["seed"]))
        summary, title = tables.summarise(ordered, resamples=resamples), f"Detection on the stream {data.stream.name}"
        plot = tables.curves(title, f"members of {data.stream.key} with known labels")
        tables.write(out, rows=ordered, summary=summary, protocol=protocol, title=title, plot=plot)
        for name in ("table", "matrix"):
            draw.__dict__.pop(name, None)


def _day(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d}"


def _period(start_ms: int, end_ms: int) -> str:
    return f"{_day(start_ms)} .. {_day(end_ms - 1)}"


def _shares(text: str) -> list[float]:
    try:
        return sorted({float(part) for part in text.split(",")})
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} must be shares such as 0,0.05,1") from error


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


def add_draws(parser: argparse.ArgumentParser, *, shares: Sequence[float]) -> None:
    """Add the options of label draws; `check_draws` checks them."""
    parser.add_argument("--labels", type=_shares, default=shares, help="shares of labelled members, such as 0,0.05,1")
    parser.add_argument("--seeds", type=int, default=3, help="label draws; at least 10 at 1 %% and below (default 3)")


def check_draws(asked: argparse.Namespace) -> None:
    """Check the options of label draws.

    Raises:
        BenchError: one cannot be used.
    """
    if asked.seeds < 1:
        raise BenchError("--seeds must be at least 1")
    if not asked.labels or not all(0 <= share <= 1 for share in asked.labels):
        raise BenchError("--labels must be shares between 0 and 1, such as 0,0.05,1")


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


@tables.reported
def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.payments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, quick="some members, 1 draw, 3 label shares, short training")
    add_draws(parser, shares=[0, 0.005, 0.01, 0.05, 0.1, 0.25, 1])
    asked = parser.parse_args(arguments)
    check_draws(asked)
    data, files = data_of(asked)
    shares = asked.labels
    if asked.quick and len(shares) > 3:
        shares = [shares[0], shares[len(shares) // 2], shares[-1]]
    run(data, files, shares, 1 if asked.quick else asked.seeds, asked.out, methods_of)
    out: Path = asked.out
    return out


if __name__ == "__main__":
    sys.exit(main())
