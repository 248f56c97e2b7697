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
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.fit.finetune import MOST_ROWS, PER_FRAUD, FinetuneConfig, TrainedModel, finetune
from models.fit.pretrain import PretrainConfig, Pretrained, pretrain
from models.score.budget import Budget, threshold_for
from models.table import Table
from tests.bench import peers, tables
from tests.bench.events import N_FIT, Data, Draw, add_options, data_of, day_of, judged, period_of
from tests.bench.tables import BenchError, Row

MIN_DRAWS, FEW_LABELS = 10, 0.01
N_ENCODERS = 3  # pretrainings, with a seed each
QUICK_STEPS = 80
MethodsOf = Callable[[float], Mapping[str, Callable[[Draw], list[Row]]]]
VERSION = 1  # increase it if a cell means something else; other code is recognised by its digest


# --- the methods: each gives scores of all rows from the first row that is judged ---


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


# --- the report ---


def _protocol(data: Data, counts: Mapping[float, int]) -> dict[str, Any]:
    options, key = data.options, data.stream.key
    quantile, test = judged(data)
    n, n_frauds = test.stop - test.start, int(data.label[test].sum())
    trials, most = options.trials, f"{options.max_ordinary:,}"
    return {
        "stream": data.stream.name,
        "training": period_of(options.train_start_ms, options.train_end_ms),
        "labels known": f"until {day_of(data.known_until_ms - 1)}, of the stated share of the members of {key}",
        "validation": period_of(data.valid_start_ms, data.known_until_ms),
        "test": f"{period_of(options.test_start_ms, options.test_end_ms)}: {n:,} events, {n_frauds:,} frauds",
        "draws": ", ".join(f"{100 * share:g} %: {n}" for share, n in counts.items()),
        "trials": f"Unmask: 1, its defaults; other methods with labels: {trials} (the default with unlabelled rows "
        "left out, with them as 0, then random settings)",
        "row caps": f"methods with labels: all known frauds and {most} other rows, weighted (a third in trials); "
        f"without labels: {N_FIT:,}, KNN-z 10,000 of these; Unmask: none for its encoder, {MOST_ROWS:,} other "
        f"rows than frauds for its prior, {FinetuneConfig.ordinary:,} or {PER_FRAUD} for each fraud for its trees",
        "budget": f"{budget_words(data.budget)}; threshold from {quantile.stop - quantile.start:,} events from "
        f"{day_of(int(data.time_ms[quantile][0]))} on",
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


def _shares(text: str) -> list[float]:
    try:
        return sorted({float(part) for part in text.split(",")})
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} must be shares such as 0,0.05,1") from error


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
