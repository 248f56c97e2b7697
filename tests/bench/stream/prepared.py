"""What the systems score with, trained once and kept on disk: Unmask's model, XGBoost's trees, ranges for river."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.ship.manifest import FORMAT
from pipelines.contracts.stream import Stream
from pipelines.play.simulate import payments
from tests.bench.stream.streams import FILES, stream_of

N_TREES, DEPTH, N_DAYS = 150, 4, 60
_KNOWN_SHARE = 0.8  # of the rows, the first in time, are trained on


def prepared(kind: str, folder: Path, *, n_customers: int, max_steps: int, say: Callable[[str], None]) -> Path:
    """Folder of a stream with `model/`, `trees.json`, `codes.json` and `limits.json`; trained if it is not there.

    Args:
        n_customers: customers whose simulated payments are trained on.
        max_steps: largest number of steps of pretraining.
    """
    made_from = [FILES[kind], n_customers, max_steps, N_TREES, DEPTH, N_DAYS, FORMAT]
    done = folder / f"{kind}-{hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:12]}"
    if not done.exists():
        say(f"training the models of the stream {kind}; they are kept in {done}")
        draft = done.with_suffix(".draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        start, n_terminals = datetime(2020, 1, 1, tzinfo=UTC), round(1.4 * n_customers)
        frame = payments(seed=0, n_customers=n_customers, n_terminals=n_terminals, days=N_DAYS, start=start)
        _train(stream_of(kind), frame, draft, max_steps)
        draft.rename(done)
    return done


def _train(stream: Stream, frame: pl.DataFrame, folder: Path, max_steps: int) -> None:
    import torch

    from flows.training_data import budget_of, offline_table
    from models.fit.finetune import FinetuneConfig, finetune
    from models.fit.pretrain import PretrainConfig, pretrain
    from models.ship import artifact

    torch.set_num_threads(1)
    assert stream.labels is not None
    table, label = offline_table(frame, stream), frame[stream.labels.column].to_numpy().astype(np.int8)
    n = int(_KNOWN_SHARE * len(table))
    train = table.take(slice(0, n))
    pretrained = pretrain(train, config=PretrainConfig(max_steps=max_steps), seed=0)
    config = FinetuneConfig(budget=budget_of(stream), n_trees=N_TREES, depth=DEPTH)
    model = finetune(pretrained, train, label=label[:n], known=np.ones(n, np.bool_), config=config, seed=0)
    artifact.save(model, folder / "model", lineage={})
    numeric = np.asarray(train.numeric)
    codes = {name: _codes(frame[name][:n]) for name in stream.categories}
    (folder / "codes.json").write_text(json.dumps(codes))
    _boost(np.hstack([numeric, *(_coded(frame[name][:n], codes[name]) for name in codes)]), label[:n], folder)
    low, high = np.nanquantile(numeric, [0.001, 0.999], axis=0)
    limits = [[float(a), float(max(b, a + 1e-6))] for a, b in zip(low, high, strict=True)]
    (folder / "limits.json").write_text(json.dumps(limits))


def _codes(column: pl.Series) -> dict[str, int]:
    return {str(text): code for code, text in enumerate(sorted(column.drop_nulls().unique()))}


def _coded(column: pl.Series, codes: dict[str, int]) -> NDArray[np.float64]:
    found = column.replace_strict(list(codes), list(codes.values()), default=None, return_dtype=pl.Float64)
    return found.fill_null(np.nan).to_numpy()[:, None]


def _boost(x: NDArray[np.float64], label: NDArray[np.int8], folder: Path) -> None:
    import xgboost

    settings = {"objective": "binary:logistic", "max_depth": DEPTH, "eta": 0.1, "nthread": 1, "tree_method": "hist"}
    booster = xgboost.train(settings, xgboost.DMatrix(x.astype(np.float32), label), N_TREES)
    booster.save_model(folder / "trees.json")
