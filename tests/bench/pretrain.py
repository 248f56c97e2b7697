"""Pretraining speed: rows per second and peak memory, on the GPUs where there are any, or on one CPU thread a process.

python -m tests.bench.pretrain --rows 200000 --steps 200
python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.bench.pretrain     # two processes
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import numpy as np
import torch

from models.fit import workers
from models.fit.pretrain import PretrainConfig, pretrain
from models.table import Column, Table


def table(n: int, seed: int = 0) -> Table:
    """Rows with 24 numbers that depend on each other and 4 categories of 50 values."""
    random = np.random.default_rng(seed)
    base = random.normal(size=(n, 6))
    numeric = np.concatenate([base @ random.normal(size=(6, 18)) + random.normal(size=(n, 18)), base], axis=1)
    categorical = random.integers(1, 51, (n, 4)).astype(np.uint64)
    columns = tuple(Column(f"x{i}", "numeric", of=f"x{i}" if i < 4 else None) for i in range(24))
    columns += tuple(Column(f"c{i}", "categorical", of=f"c{i}") for i in range(4))
    return Table(columns, numeric, categorical, np.arange(n), {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the table (default 200,000)")
    parser.add_argument("--steps", type=int, default=200, help="optimiser steps (default 200)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, on_gpu = table(options.rows), torch.cuda.is_available()
    marks: list[tuple[int, float]] = []
    config = PretrainConfig(max_steps=options.steps, min_steps=options.steps)
    pretrained = pretrain(
        rows, config=config, seed=0, report=lambda metrics, step: marks.append((step, metrics["seconds"]))
    )
    if workers.rank() > 0:
        return
    (first, begin), (last, end) = marks[0], marks[-1]
    found = {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu, 1 thread",
        "processes": workers.count(),
        "rows_per_s": round((last - first) * config.batch / (end - begin)),
        "steps": last,
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "peak_gpu_memory_mb": round(torch.cuda.max_memory_allocated() / 2**20) if on_gpu else None,
        "validation_loss": round(pretrained.metrics["best_validation_loss"], 4),
    }
    began = time.monotonic()
    pretrained.score(rows.take(slice(0, 50_000)))
    found["score_rows_per_s"] = round(min(50_000, options.rows) / (time.monotonic() - began))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
