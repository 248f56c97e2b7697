"""Pretraining speed: rows per second and peak memory, on the GPUs where there are any, or on one CPU thread a process.

    python -m tests.bench.pretrain --rows 200000 --steps 200 --out pretrain.json
    python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.bench.pretrain     # two processes

`share_of_peak` is the rate of floating-point operations of the steps divided by that of a large matrix product on the
same device in the same precision.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

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


def operations_per_step(rows: Table) -> float:
    """Floating-point operations of a step: of a run of 40 steps less those of one of 20, which checks as often."""
    counts = []
    for steps in (20, 40):
        with FlopCounterMode(display=False) as counter:
            pretrain(rows, config=PretrainConfig(max_steps=steps, min_steps=steps), seed=0)
        counts.append(counter.get_total_flops())
    return (counts[1] - counts[0]) / 20


def peak_rate(device: torch.device, n: int = 4096) -> float:
    """Floating-point operations per second of a product of two matrices, bfloat16 on a GPU; the best of five."""
    one = torch.ones(n, n, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        float((one @ one)[0, 0])  # waits for the GPU
        seconds.append(time.perf_counter() - began)
    return 2 * n**3 / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the table (default 200,000)")
    parser.add_argument("--steps", type=int, default=200, help="optimiser steps (default 200)")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
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
    found: dict[str, Any] = {
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
    if workers.count() == 1:
        rate = found["rows_per_s"] / config.batch * operations_per_step(rows.take(slice(0, 20_000)))
        found["share_of_peak"] = round(rate / peak_rate(workers.device()), 3)
    print(json.dumps(found, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
