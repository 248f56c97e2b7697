"""Scoring speed: rows per second on one CPU core, with the student and with its teacher, beside XGBoost's own runtime.

    python -m tests.bench.serving --out serving.json
    python -m tests.bench.serving --columns 46 --batch 256

The stream is the demo's simulated payments: 45 days for training, 15 for testing, all labels known. `graph` is the
ONNX model alone, `score` all of it: cells, graph, evidence, calibration. Prints and writes the rates, and the average
precision on the test days with the student and with the teacher in its place.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from flows.streams import shipped
from flows.training_data import offline_table
from models.cells import Cells
from models.fit.finetune import FinetuneConfig, finetune
from models.fit.pretrain import PretrainConfig, label_free_rules, pretrain
from models.score.trees import frequent_choices, inputs
from models.ship import artifact
from models.ship.artifact import ServedModel
from models.table import Table
from tests.detection.draws import simulated

N_TEST_DAYS, ROUNDS = 15, 30


def narrowed(table: Table, n_columns: int) -> Table:
    """The event's fields, and as many of the other columns, from the first."""
    order = sorted(range(len(table.columns)), key=lambda i: (table.columns[i].stat is not None, i))
    kept = sorted(order[:n_columns])
    numbers = [i for i in kept if i < table.d_num]
    texts = [i - table.d_num for i in kept if i >= table.d_num]
    return replace(
        table,
        columns=tuple(table.columns[i] for i in kept),
        numeric=np.asarray(table.numeric)[:, numbers],
        categorical=np.asarray(table.categorical)[:, texts],
    )


def rate(score: Callable[[slice], object], n: int, batch: int) -> float:
    """Rows per second of the fastest of some batches."""
    best = np.inf
    for i in range(ROUNDS + 3):
        start = (i * batch) % (n - batch)
        began = time.perf_counter()
        score(slice(start, start + batch))
        if i >= 3:
            best = min(best, time.perf_counter() - began)
    return batch / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, default=32, help="columns of the model (default 32)")
    parser.add_argument("--batch", type=int, default=1024, help="rows of a call (default 1,024)")
    parser.add_argument("--steps", type=int, default=PretrainConfig().max_steps, help="most steps of pretraining")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    found = measure(options.columns, options.batch, options.steps)
    print(json.dumps(found, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def measure(n_columns: int, batch: int, max_steps: int) -> dict[str, float]:
    """Rates in rows/s and average precisions."""
    import xgboost

    torch.set_num_threads(1)
    frame, stream = simulated(0), shipped.load("payments")
    assert stream.labels is not None
    table = narrowed(offline_table(frame, stream), n_columns)
    label = frame[stream.labels.column].to_numpy().astype(np.int8)
    n = int(np.searchsorted(table.time_ms, table.time_ms[-1] - N_TEST_DAYS * 86_400_000))
    train, test = table.take(slice(0, n)), table.take(slice(n, len(table)))
    known = np.ones(n, np.bool_)
    pretrained = pretrain(train, config=PretrainConfig(max_steps=max_steps), seed=0)
    teacher = pretrained.expectation
    slow = replace(pretrained, student=teacher, rules=label_free_rules(teacher, pretrained.rules.coding, train))
    found: dict[str, float] = {"columns": len(table.columns), "batch": batch, "rows_trained": n}
    numeric, categorical = np.asarray(test.numeric), np.asarray(test.categorical)
    for name, one in (("student", pretrained), ("teacher", slow)):
        found[f"label_free_ap_{name}"] = float(average_precision_score(label[n:], one.score(test)))
        model = finetune(one, train, label=label[:n], known=known, config=FinetuneConfig(), seed=0)
        with TemporaryDirectory() as folder:
            artifact.save(model, Path(folder), lineage={})
            served = artifact.load(Path(folder))
        found[f"ap_{name}"] = float(average_precision_score(label[n:], served.score(numeric, categorical)))
        cells = served.rules.coding.transform(numeric, categorical)
        found[f"graph_rows_per_s_{name}"] = rate(partial(_graph, served, cells), len(test), batch)
        found[f"score_rows_per_s_{name}"] = rate(partial(_score, served, numeric, categorical), len(test), batch)
        found[f"trees_{name}"] = len(model.trees.feature)
    coding = pretrained.rules.coding
    past, later = coding.cells(train), coding.cells(test)
    choices = frequent_choices(past.codes)
    x, judged = inputs(past, choices), inputs(later, choices)
    settings = {"objective": "binary:logistic", "max_depth": 4, "eta": 0.1, "nthread": 1, "tree_method": "exact"}
    booster = xgboost.train(settings, xgboost.DMatrix(x, label[:n]), int(found["trees_student"]) or 100)
    found["ap_xgboost"] = float(average_precision_score(label[n:], booster.inplace_predict(judged)))
    found["rows_per_s_xgboost"] = rate(partial(_boosted, booster, judged), len(test), batch)
    return {name: round(value, 4) for name, value in found.items()}


def _graph(served: ServedModel, cells: Cells, rows: slice) -> object:
    return served.scorer.run(None, cells.take(rows)._asdict())


def _score(served: ServedModel, numeric: NDArray[np.float64], categorical: NDArray[np.uint64], rows: slice) -> object:
    return served.score(numeric[rows], categorical[rows])


def _boosted(booster: Any, x: NDArray[np.float32], rows: slice) -> object:
    return booster.inplace_predict(x[rows])


if __name__ == "__main__":
    main()
