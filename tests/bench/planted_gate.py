"""Planted bad models before the gate: does any pass it, and do good ones?

    python -m tests.bench.planted_gate [--planted 20] [--seed 7] [--folder DIR] [--out FILE]

Models of the simulated payments, trained on the first 30 days (tests.bench.planted_models): bad ones of four kinds
(labels flipped, constant, leaking, stale) and good ones are judged beside the usual model, as `unmask promote` does,
on the matured events of the days after it. Every second leaking model is judged while the leak is still there. The
baselines, which are measured at the training, count as reached, so that only the evidence decides. 15 minutes; models
are kept in the folder and used again.

Exit code 1 if a bad model passes.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from flows import evidence, verdict
from flows.evidence import Former
from flows.gate import Comparison, Figures
from flows.lineage import HELD_OUT_FROM, LEARNED_UNTIL
from flows.serve.model import ColumnsByName
from flows.training_data import TrainingData
from models.ship import artifact
from pipelines.contracts.messages import rfc3339
from tests.bench.planted import GOOD, trained
from tests.bench.planted_models import World

DAYS = 50  # of which 30 are history; labels mature after 7
REACHED = {name: Comparison(1.0, 0.0, 100) for name in verdict.BASELINES}


def data_of(world: World) -> TrainingData:
    """All events of a world, with the labels that have matured by its end."""
    table, stream = world.table, world.stream
    assert stream.labels is not None
    end_ms = int(table.time_ms[-1])
    known = table.time_ms < end_ms - stream.labels.maturity_ms
    label = np.where(known, world.label, 0).astype(np.int8)
    return TrainingData(table, label, known, world.frame["event_id"], end_ms, "planted")


def judged(world: World, folder: Path, champion: ColumnsByName) -> dict[str, str]:
    """The checks that a model does not pass, with what was found."""
    data, model = data_of(world), ColumnsByName(artifact.load(folder), world.stream)
    start_ms = int(data.table.time_ms[world.live_from])
    start = rfc3339(start_ms)
    tags = {LEARNED_UNTIL: start, HELD_OUT_FROM: start, "validation_alert_rate": "0.005"}
    entities = {
        name: world.frame[name].fill_null("").rank("dense").cast(pl.UInt32).to_numpy() for name in world.stream.entities
    }
    former = Former(1, champion, start_ms)
    limits = world.stream.promotion
    found = evidence.measure(
        world.stream,
        model,
        tags,
        data,
        entities,
        {"champion": former, "reference": former},
        has_labels=model.own.rules.prior is not None,
        min_frauds=limits.min_frauds,
    )
    checks = verdict.judge(found, Figures(100, 1, 0.005, 0.005, REACHED), limits)
    return {name: one.seen for name, one in checks.items() if not one.holds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planted", type=int, default=20, help="bad models")
    parser.add_argument("--seed", type=int, default=7, help="of the simulated stream and of all models")
    parser.add_argument("--folder", type=Path, help="where trained models are kept; default: a temporary folder")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        world = World.simulated(asked.seed, days=DAYS, max_steps=150)
        models = trained(world, asked.folder or Path(temporary), asked.planted)
        champion = ColumnsByName(artifact.load(models["usual"]), world.stream)
        for name, folder in models.items():
            if name == "usual":
                continue
            still_leaks = name.startswith("leaking") and int(name.split()[1]) % 2 == 0
            failed = judged(world.knowing if still_leaks else world, folder, champion)
            rows.append({"model": name, "is_bad": name not in GOOD, "fails": failed})
            print(f"{name}: {', '.join(failed) or 'passes'}", flush=True)
    passed = [row["model"] for row in rows if not row["fails"]]
    figures = {
        "bad": sum(row["is_bad"] for row in rows),
        "bad_that_passed": [name for name in passed if name not in GOOD],
        "good": sum(not row["is_bad"] for row in rows),
        "good_that_passed": [name for name in passed if name in GOOD],
        "days": DAYS,
        "models": rows,
    }
    print(json.dumps({name: value for name, value in figures.items() if name != "models"}, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(figures, indent=1) + "\n")
    return int(bool(figures["bad_that_passed"]))


if __name__ == "__main__":
    sys.exit(main())
