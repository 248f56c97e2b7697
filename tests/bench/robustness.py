"""What a model on a stream loses when fields are missing, frauds are new or only alerts are reviewed; are reasons true?

    python -m tests.bench.robustness --data FOLDER --stream handbook --train-end 2018-05-31 \\
        --test-start 2018-06-01 --test-end 2018-06-30 --scenario fraud_scenario --out FILE
    python -m tests.bench.robustness --data FOLDER --stream my.toml ... --quick --out quick.json   # within 2 minutes

The data, the periods and the columns are those of `tests.bench.payments`, with the labels of all members. One seed.

- *Missing fields*: each field is dropped at scoring, with the columns that are computed from it; and each input column
  of the model alone. Nothing may fail.
- *New frauds* (`--scenario COLUMN`, 0 = legitimate): the labels of one kind of fraud are hidden everywhere, from
  label-fed columns too. Which share of these frauds is alerted in the test period?
- *Selective labels*: labels exist only for events that the label-free score would have alerted on, and for a random
  share of all others.
- *Reasons*: alerts with all named fields as expected, with three random ones, and with three random ones that are not
  named (`below`: share that raises no alert any more). Odd values planted in a field, or in the columns of a history,
  such as a customer's counts over all windows (those of another event, one of the largest): which share is alerted, and
  of those, how often the field or the history is the first reason (`first`), and `below` with it as expected.

The encoder is pretrained once, without labels. Writes FILE (JSON), and beside it Markdown tables. Exit code 2 if the
data or an option cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from models.fit.finetune import TrainedModel
from models.fit.pretrain import Pretrained
from models.score.budget import threshold_for
from models.score.explain import as_expected, groups
from models.ship import artifact
from pipelines.contracts.stream import Stream
from tests.bench import events, payments, peers, tables
from tests.bench.events import Data, Draw
from tests.bench.tables import Row

PEERS = ("XGBoost exact", "LightGBM", "LR-ple")
REVIEWED = (0.0, 0.001, 0.01, 0.05)  # random shares of the events whose labels are known besides the alerts
MOST_EXPLAINED = 300  # alerts, and events with a planted value
N_LARGEST = 50
ENOUGH = 0.95  # of the average precision with all labels
Score = Callable[[slice], NDArray[np.floating]]


@dataclass(frozen=True)
class Shown(Draw):
    """A draw in which the labels of certain events are known, **shape (n,)**."""

    shown: NDArray[np.bool_]

    @cached_property
    def is_labelled(self) -> NDArray[np.bool_]:
        return self.shown


def dropped(stream: Stream, field: str) -> NDArray[np.int64]:
    """The model's columns that are missing when a field of the event is.

    >>> from flows.streams import shipped
    >>> len(dropped(shipped.load("handbook"), "amount"))
    20
    """
    fed = {f.name for f in stream.features if field in (f.entity, f.field)} | {field}
    return np.flatnonzero([column.name in fed for column in stream.columns])


def average_precision(draw: Draw, score: Score) -> float:
    """Average precision in the test period."""
    test = events.judged(draw.data)[1]
    return float(average_precision_score(draw.data.label[test], score(test)))


def recall(draw: Draw, score: Score, wanted: NDArray[np.bool_]) -> dict[str, float]:
    """Share of the wanted frauds of the test period that are alerted.

    `recall` is at the threshold of the budget. Other frauds may use the budget up, so `recall_apart` is at the
    threshold above which the same share of the legitimate events lies.
    """
    before, test = events.judged(draw.data)
    found, those = score(test), wanted[test]
    threshold = threshold_for(draw.data.budget, score(before).astype(np.float64), draw.data.time_ms[before])
    apart = np.quantile(found[draw.data.label[test] == 0], 1 - float((found > threshold).mean()))
    return {"recall": float((found[those] > threshold).mean()), "recall_apart": float((found[those] > apart).mean())}


def scorer(draw: Draw, model: TrainedModel, without: NDArray[np.int64] | None = None) -> Score:
    """Scores of a period, with some columns missing."""
    table = draw.table
    gone = np.zeros(0, np.int64) if without is None else without

    def score(rows: slice) -> NDArray[np.floating]:
        numeric, categorical = np.array(table.numeric[rows]), np.array(table.categorical[rows])
        numeric[:, gone[gone < table.d_num]] = np.nan
        categorical[:, gone[gone >= table.d_num] - table.d_num] = 0
        return model.score(numeric, categorical)

    return score


def missing_fields(draw: Draw, model: TrainedModel) -> Iterator[Row]:
    """One row for each field that an event may lack."""
    stream, whole = draw.data.stream, average_precision(draw, scorer(draw, model))
    yield {"table": "missing", "field": "none", "columns": 0, "average_precision": whole, "loss": 0.0}
    for field in dict.fromkeys((*stream.numbers, *stream.categories, *stream.entities[1:])):
        gone = dropped(stream, field)
        found = average_precision(draw, scorer(draw, model, gone))
        yield {"table": "missing", "field": field, "columns": len(gone), "average_precision": found} | {
            "loss": whole - found
        }
    for at, column in enumerate(stream.columns):
        found = average_precision(draw, scorer(draw, model, np.array([at])))
        row = {"column": column.name, "average_precision": found, "loss": whole - found}
        yield {"table": "missing column"} | row


def new_frauds(data: Data, encoder: Pretrained, model: TrainedModel, whole: Draw, column: str) -> Iterator[Row]:
    """Rows of each method for each kind of fraud: recall with its labels hidden and, for Unmask, known."""
    scenario = data.frame[column].fill_null(0).to_numpy()
    for kind in np.unique(scenario[data.label == 1]):
        wanted = (scenario == kind) & (data.label == 1)
        test = events.judged(data)[1]
        draw = Shown(data, 0.5, whole.seed, ~wanted)
        methods: dict[str, Score] = {
            "unmask, its labels known": scorer(whole, model),
            "unmask": scorer(draw, payments.fine_tuned(draw, encoder)),
            "unmask without labels": lambda rows: encoder.score(whole.table.take(rows)),
        }
        for peer in (one for one in peers.SUPERVISED if one.name in PEERS):
            methods[peer.name] = partial(_of_peer, draw, payments.tuned(draw, peer))
        for name, score in methods.items():
            rates = recall(draw, score, wanted) | {"n_frauds": int(wanted[test].sum())}
            yield {"table": "new frauds", "scenario": str(kind), "method": name} | rates


def _of_peer(draw: Draw, tuned: peers.Tuned, rows: slice) -> NDArray[np.floating]:
    return tuned.score(draw.matrix[rows])


def selective_labels(data: Data, encoder: Pretrained, model: TrainedModel, whole: Draw) -> Iterator[Row]:
    """Rows for each share of random reviews, and one for all labels."""
    score = encoder.score(whole.table)
    seen = data.between(data.options.train_start_ms, data.known_until_ms)
    threshold = threshold_for(data.budget, score[seen].astype(np.float64), data.time_ms[seen])
    alerted = (score > threshold) & (data.time_ms >= data.options.train_start_ms)  # before, histories are too short
    random = np.random.default_rng(whole.seed).random(len(score))
    full = average_precision(whole, scorer(whole, model))
    for share in REVIEWED:
        draw = Shown(data, 0.5, whole.seed, alerted | (random < share))
        found = average_precision(draw, scorer(draw, payments.fine_tuned(draw, encoder)))
        yield _selective(draw, f"alerts + {100 * share:g} %", found, full)
    zero = average_precision(whole, lambda rows: score[rows])
    yield _selective(Shown(data, 0.5, whole.seed, np.zeros(len(score), bool)), "none", zero, full)
    yield _selective(whole, "all", full, full)


def _selective(draw: Draw, labels: str, found: float, full: float) -> Row:
    counts = {"known": int(draw.known.sum()), "known_frauds": int((draw.known & (draw.data.label == 1)).sum())}
    return {"table": "selective", "labels": labels} | counts | {"average_precision": found, "of_full": found / full}


def reasons(whole: Draw, model: TrainedModel) -> Iterator[Row]:
    """Rows about the explanations of alerts, and of odd values planted in each field of the event."""
    with TemporaryDirectory() as folder:
        artifact.save(model, Path(folder), lineage={})
        served = artifact.load(Path(folder))
    data, random = whole.data, np.random.default_rng(whole.seed)
    test = events.judged(data)[1]
    rows = np.arange(test.start, test.stop)
    numeric, categorical = np.asarray(whole.table.numeric[rows]), np.asarray(whole.table.categorical[rows])
    scores = served.score(numeric, categorical)
    alerts = np.flatnonzero(scores > served.threshold)
    if len(alerts) > MOST_EXPLAINED:
        alerts = np.sort(random.choice(alerts, MOST_EXPLAINED, replace=False))
    found = served.explain(numeric[alerts], categorical[alerts])
    all_named = np.array([one.score_if_all_expected for one in found]) <= served.threshold
    yield _reasons("alerts, all named fields", len(alerts), all_named)
    parts = groups(served.columns, served.rules.coding.context)
    names = [{served.columns[i].name for i in part.columns} for part in parts]
    for what, spared in (("three random fields", False), ("three random fields that are no reasons", True)):
        named = [{reason.field for reason in one.reasons} if spared else set() for one in found]
        free = [[g for g, columns in enumerate(names) if not columns & those] for those in named]
        three = [random.choice(some, min(3, len(some)), replace=False).tolist() for some in free]
        as_usual = as_expected(served.rules, served.expect, numeric[alerts], categorical[alerts], three)
        yield _reasons(f"alerts, {what}", len(alerts), served.score(*as_usual) <= served.threshold)
    quiet = rows[(scores <= served.threshold) & (data.label[rows] == 0)]
    _, first = np.unique(data.member[quiet], return_index=True)  # one of each member: planted values meet no other
    quiet = np.sort(random.permutation(quiet[first])[:MOST_EXPLAINED])
    for part, columns in zip(parts, names, strict=True):
        if part.name in (*data.stream.numbers, *data.stream.categories):
            frame = with_odd(data.frame, part.name, quiet, random)
            planted = Draw(replace(data, frame=frame), whole.share, whole.seed).table
            odd = np.array(planted.numeric[quiet]), np.asarray(planted.categorical[quiet])
        elif max(part.columns) < served.rules.coding.d_num:
            odd = np.array(whole.table.numeric[quiet]), np.asarray(whole.table.categorical[quiet])
            odd[0][:, part.columns] = largest(numeric[:, part.columns], len(quiet), random)
        else:
            continue
        alerted = served.score(*odd) > served.threshold
        explained = served.explain(odd[0][alerted], odd[1][alerted])
        right = np.array([one.reasons[0].field in columns for one in explained])
        below = np.array([one.reasons[0].score_if_expected <= served.threshold for one in explained])
        share = {"alerted": float(alerted.mean()), "first": float(right.mean()) if len(right) else None}
        yield _reasons(f"planted: {part.name}", len(explained), below) | share


def largest(values: NDArray[np.float64], n: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Rows drawn from those that have one of the `N_LARGEST` largest values of a column that is drawn.

    >>> largest(np.arange(200.0)[:, None], 4, np.random.default_rng(0)).min() >= 150
    np.True_
    """
    column = random.integers(0, values.shape[1], n)
    ranked = np.argsort(np.nan_to_num(values, nan=-np.inf), axis=0)[-N_LARGEST:]
    return np.asarray(values[ranked[random.integers(0, len(ranked), n), column]])


def with_odd(frame: pl.DataFrame, field: str, rows: NDArray[np.int64], random: np.random.Generator) -> pl.DataFrame:
    """Events with odd values of a field in some rows: a number times 10 to 30, or one of the rarest texts."""
    column = frame[field]
    if column.dtype.is_numeric():
        odd = pl.Series(field, column.gather(rows).to_numpy() * random.uniform(10, 30, len(rows))).cast(pl.Float64)
        return frame.with_columns(column.cast(pl.Float64).scatter(rows, odd))
    rare = column.drop_nulls().value_counts().sort("count", field)[field].head(5)
    return frame.with_columns(column.scatter(rows, rare.gather(random.integers(0, len(rare), len(rows)))))


def _reasons(what: str, n: int, below: NDArray[np.bool_]) -> Row:
    share = float(below.mean()) if len(below) else None
    return {"table": "reasons", "rows": what, "n": n, "below": share, "alerted": None, "first": None}


def run(data: Data, column: str | None, seed: int, out: Path) -> None:
    """Measure everything, and write the report after each table."""
    whole = Draw(data, 1.0, seed)
    encoder, _ = payments.encoder_of(data, seed)
    model = payments.fine_tuned(whole, encoder)
    parts = [reasons(whole, model), missing_fields(whole, model), selective_labels(data, encoder, model, whole)]
    if column is not None:
        parts.insert(2, new_frauds(data, encoder, model, whole, column))
    rows: list[Row] = []
    for part in parts:
        for row in part:
            rows.append(row)
            print(row, flush=True)
            write(data, rows, seed, out)


def write(data: Data, rows: Sequence[Row], seed: int, out: Path) -> None:
    """Write `out` (JSON), and beside it the same as Markdown (.md)."""
    options, title = data.options, f"Robustness on the stream {data.stream.name}"
    budget = payments.budget_words(data.budget)
    protocol: dict[str, Any] = {"options": vars(options), "budget": budget, "seed": seed, **tables.machine()}
    out.write_text(json.dumps({"title": title, "protocol": protocol, "rows": list(rows)}, indent=1), encoding="utf-8")
    lines = [f"# {title}", "", f"Budget: {budget}. Seed {seed}."]
    for table in dict.fromkeys(row["table"] for row in rows):
        here = [{k: v for k, v in row.items() if k != "table"} for row in rows if row["table"] == table]
        lines += ["", f"## {table}", "", tables.line(here[0]), tables.line("---" for _ in here[0])]
        lines += [tables.line(f"{v:.3f}" if isinstance(v, float) else v for v in row.values()) for row in here]
        if table == "selective":
            enough = [row["labels"] for row in here if row["of_full"] >= ENOUGH]
            lines += ["", f"At least {ENOUGH:.0%} of the average precision with all labels: {', '.join(enough)}."]
    out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


@tables.reported
def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.robustness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    events.add_options(parser, quick="some members, short training", trials=2)
    parser.add_argument(
        "--scenario", help="column of the files with the kind of fraud (default: no table of new frauds)"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of training and of random reviews (default 1)")
    asked = parser.parse_args(arguments)
    data, _ = events.data_of(asked, more=[asked.scenario] if asked.scenario else [])
    run(data, asked.scenario, asked.seed, asked.out)
    out: Path = asked.out
    return out


if __name__ == "__main__":
    sys.exit(main())
