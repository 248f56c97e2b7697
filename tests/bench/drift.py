"""Drift on simulated payments: false alarms on undisturbed days, planted shifts, quality after training again.

python -m tests.bench.drift --runs 20 --out drift.json      40 minutes
python -m tests.bench.drift --runs 2 --recover 1            5 minutes

Each run simulates other payments, trains the encoder on the first 52 days and looks at the days after them: as they
are, and with one field shifted. For `--recover` runs, a model with labels is trained before the shift and again after
it; the average precision on later days is that of the old model without and with the shift, and of the new one.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from sklearn.metrics import average_precision_score

from flows.streams.shipped import load
from flows.training_data import budget_of, offline_table
from models.drift import Drift, drift
from models.fit.finetune import FinetuneConfig, finetune
from models.fit.pretrain import PretrainConfig, Pretrained, pretrain
from models.table import Table
from pipelines.contracts.stream import DAY_MS
from pipelines.play.simulate import payments

START = datetime(2026, 1, 1, tzinfo=UTC)
DAYS, SHIFT_DAY, CUSTOMERS = 60, 52, 1_000
RECOVER_DAYS, AGAIN_DAY = 90, 75  # trained again on day 75, judged on the days after it
STREAM = load("payments")
Shift = Callable[[pl.Series], pl.Expr]


def _some(share: float, value: Any, name: str) -> Shift:
    return lambda u: pl.when(u < share).then(pl.lit(value)).otherwise(pl.col(name))


def _times(factor: float) -> Shift:
    return lambda u: pl.col("amount") * factor


def _mixed(name: str) -> Shift:
    """The usual values, but of other events."""
    return lambda u: pl.col(name).gather(u.arg_sort())


# By what happens: the field, and its new values.
SHIFTS: Mapping[str, tuple[str, Shift]] = {
    "amounts half as high again": ("amount", _times(1.5)),
    "amounts in another currency": ("amount", _times(0.1)),
    "a third of the amounts missing": ("amount", _some(0.3, None, "amount")),
    "more online": ("channel", _some(0.3, "online", "channel")),
    "channels mixed up": ("channel", _mixed("channel")),
    "a new category": ("category", _some(0.2, "crypto", "category")),
    "categories mixed up": ("category", _mixed("category")),
    "half of the countries missing": ("country", _some(0.5, None, "country")),
    "countries mixed up": ("country", _mixed("country")),
    "a new country": ("country", _some(0.2, "XX", "country")),
}


def shifted(frame: pl.DataFrame, what: str, day: int) -> pl.DataFrame:
    """The payments with one field shifted from a day on."""
    field, values = SHIFTS[what]
    u = pl.Series(np.random.default_rng(0).random(frame.height))
    late = pl.col("time") >= START + timedelta(days=day)
    return frame.with_columns(pl.when(late).then(values(u)).otherwise(pl.col(field)).alias(field))


def rows_of(table: Table, first_day: int, end_day: int) -> slice:
    """Rows of some days."""
    start_ms = int(START.timestamp() * 1000)
    edges = np.searchsorted(table.time_ms, [start_ms + day * DAY_MS for day in (first_day, end_day)])
    return slice(int(edges[0]), int(edges[1]))


def seen(model: Pretrained, table: Table, day: int) -> Drift:
    past, now = table.take(rows_of(table, 0, SHIFT_DAY)), table.take(rows_of(table, day, day + 1))
    return drift(model.expectation, model.rules.coding, model.score, past, now, width_ms=DAY_MS)


def run(seed: int) -> dict[str, Any]:
    """The undisturbed days, and each kind of shift, of one simulation."""
    frame = payments(seed=seed, n_customers=CUSTOMERS, n_terminals=2 * CUSTOMERS, days=DAYS, start=START)
    table = offline_table(frame, STREAM)
    model = pretrain(table.take(rows_of(table, 0, SHIFT_DAY)), config=PretrainConfig(max_steps=400), seed=seed)
    quiet = [seen(model, table, day) for day in range(SHIFT_DAY, DAYS)]
    found = {}
    for what, (field, _) in SHIFTS.items():
        one = seen(model, offline_table(shifted(frame, what, SHIFT_DAY), STREAM), SHIFT_DAY)
        moved = {each.name: each for each in one.moved}[field]
        found[what] = {
            "found": one.has_drifted,
            "first": one.fields[0] if one.fields else None,
            "right": bool(one.fields) and one.fields[0] == field,
            "severity": round(moved.severity, 2),
            "by_stability": moved.stability > moved.stability_limit,
        }
    return {"seed": seed, "quiet": [round(one.moved[0].severity, 2) for one in quiet], "shifts": found}


def recover(seed: int, what: str) -> dict[str, float]:
    """Average precision on the last days, before the shift, with it, and after training again."""
    frame = payments(seed=seed, n_customers=CUSTOMERS, n_terminals=2 * CUSTOMERS, days=RECOVER_DAYS, start=START)
    label = frame["label"].to_numpy().astype(np.int8)
    usual, other = offline_table(frame, STREAM), offline_table(shifted(frame, what, SHIFT_DAY), STREAM)
    last = rows_of(usual, AGAIN_DAY, RECOVER_DAYS)

    def trained(table: Table, until_day: int) -> Any:
        past = rows_of(table, 0, until_day)
        rows, known = table.take(past), np.zeros(past.stop, bool)
        known[: rows_of(table, 0, until_day - 7).stop] = True
        encoder = pretrain(rows, config=PretrainConfig(max_steps=400), seed=seed)
        config = FinetuneConfig(budget=budget_of(STREAM))
        return finetune(encoder, rows, label=label[past], known=known, config=config, seed=seed)

    def precision(model: Any, table: Table) -> float:
        rows = table.take(last)
        return float(average_precision_score(label[last], model.score(rows.numeric[:], rows.categorical[:])))

    old, new = trained(usual, SHIFT_DAY), trained(other, AGAIN_DAY)
    return {"usual": precision(old, usual), "shifted": precision(old, other), "trained again": precision(new, other)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--recover", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    options = parser.parse_args()
    runs = []
    for seed in range(options.seed, options.seed + options.runs):
        runs.append(run(seed))
        right = sum(one["right"] for one in runs[-1]["shifts"].values())
        print(
            f"seed {seed}: highest undisturbed {max(runs[-1]['quiet'])}; right first {right} of {len(SHIFTS)}",
            flush=True,
        )
    kinds = list(SHIFTS)
    planted = [one["shifts"][kinds[i % len(kinds)]] for i, one in enumerate(runs)]
    missed = Counter(what for one in runs for what, each in one["shifts"].items() if not each["right"])
    figures: dict[str, Any] = {
        "planted": {
            "runs": len(planted),
            "found": sum(one["found"] for one in planted),
            "right_first": sum(one["right"] for one in planted),
        },
        "undisturbed": {
            "runs": len(runs),
            "false_alarms": sum(one["quiet"][0] > 1 for one in runs),
            "days": sum(len(one["quiet"]) for one in runs),
            "false_alarms_of_days": sum(severity > 1 for one in runs for severity in one["quiet"]),
            "highest_severity": max(severity for one in runs for severity in one["quiet"]),
        },
        "every_shift": {
            "runs": len(runs) * len(SHIFTS),
            "not_right": dict(missed),
            "only_by_surprise": sum(not one["by_stability"] for each in runs for one in each["shifts"].values()),
        },
        "recover": [recover(seed, kinds[0]) for seed in range(options.seed, options.seed + options.recover)],
    }
    print(json.dumps(figures, indent=2))
    if options.out:
        options.out.write_text(json.dumps(figures | {"details": runs}, indent=2) + "\n")
    return 0 if figures["undisturbed"]["false_alarms"] == 0 and figures["planted"]["right_first"] == len(planted) else 1


if __name__ == "__main__":
    sys.exit(main())
