"""Detection on plain tables: Unmask and other detectors on a folder of .npz files, with few, many or no labels.

    python -m tests.bench.detection --data FOLDER --seeds 3 --out detection.json
    python -m tests.bench.detection --data FOLDER --out quick.json --quick     # within 3 minutes

Each file has `X` (rows, features) and `y` (0 normal, 1 anomaly). At most 20,000 rows are used (stratified, at least 30
anomalies kept), 70 % of them for training (stratified, a new split for each seed). Settings: `contaminated` (the
training rows as they are, no labels), `one-class` (only normal training rows), and labels for 1, 5, 10 and 100 % of
the training anomalies (rounded up). Unmask gets unlabelled rows as unknown, the other methods with labels get them as
0, as ADBench does; with all labels known, both get 0. Unmask always runs with its defaults: one trial. The other
methods with labels get `--trials` trials on a quarter of the training rows, if at least 4 anomalies are labelled;
without labels they run with their defaults. Budget: `--budget` of the test rows with the highest scores raise an alert.

Writes FILE (JSON), and beside it a Markdown table and a plot. It may be interrupted: cells are kept in FILE.cells, and
are made again where the data, an option or the code has changed. Exit code 2 if the data or an option cannot be used.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from models.detector import TableDetector
from tests.bench import peers, tables
from tests.bench.peers import Matrix, Rows
from tests.bench.tables import BenchError, Row

SETTINGS = ("contaminated", "one-class", "1 %", "5 %", "10 %", "100 %")
UNKNOWN = -1
VERSION = 1  # increase it if a cell means something else; other code is recognised by its digest
VALIDATION, MIN_TO_CHOOSE, MIN_KEPT, QUICK_STEPS = 0.25, 4, 30, 60


@dataclass(frozen=True)
class Options:
    """What determines a cell, apart from data and code."""

    max_rows: int = 20_000
    trials: int = 4
    budget: float = 0.05


@dataclass(frozen=True)
class Split:
    """A training and a test part."""

    x: Matrix
    y: NDArray[np.int8]
    test_x: Matrix
    test_y: NDArray[np.int8]


def load(path: Path, *, max_rows: int) -> tuple[Matrix, NDArray[np.int8]]:
    """Features and labels of a file, at most `max_rows` rows.

    Raises:
        BenchError: it is not a file of `X` and `y`.
    """
    try:
        with np.load(path, allow_pickle=False) as found:
            x, y = np.asarray(found["X"], np.float64), np.asarray(found["y"])
    except (KeyError, ValueError, OSError) as error:
        raise BenchError(f"{path}: cannot be read ({error}); it must have numeric arrays X and y") from error
    if x.ndim != 2 or y.shape != (len(x),) or not np.isin(y, (0, 1)).all() or not 10 <= y.sum() <= len(y) - 10:
        raise BenchError(
            f"{path}: X has shape {x.shape} and y {y.shape}; X must be (n, d) and y (n,), with at least 10 rows of 0 "
            "and 10 of 1"
        )
    y = y.astype(np.int8)
    if len(x) > max_rows:
        random = np.random.default_rng(0)
        n_kept = min(int(y.sum()), max(MIN_KEPT, round(max_rows * y.mean())), max_rows // 2)
        parts = [
            random.choice(np.flatnonzero(y == value), n, replace=False)
            for value, n in ((1, n_kept), (0, max_rows - n_kept))
        ]
        kept = np.sort(np.concatenate(parts))
        x, y = x[kept], y[kept]
    return x, y


def split(x: Matrix, y: NDArray[np.int8], seed: int) -> Split:
    """70 % for training, stratified."""
    x, test_x, y, test_y = train_test_split(x, y, test_size=0.3, stratify=y, random_state=seed)
    return Split(x, y, test_x, test_y)


def given_labels(y: NDArray[np.int8], setting: str, seed: int) -> NDArray[np.int8]:
    """Labels of the training rows in a setting: 1, 0 or `UNKNOWN`.

    >>> given_labels(np.int8([0, 1, 1]), "100 %", 0)
    array([0, 1, 1], dtype=int8)
    """
    share = float(setting.removesuffix(" %")) / 100
    if share == 1:
        return y.copy()
    anomalies = np.flatnonzero(y == 1)
    known = np.random.default_rng((seed, round(1000 * share))).permutation(anomalies)
    label = np.full(len(y), UNKNOWN, np.int8)
    label[known[: int(np.ceil(share * len(anomalies)))]] = 1
    return label


def unmask(x: Matrix, y: NDArray[np.int8] | None, *, clean: bool, seed: int, options: Options) -> peers.Scorer:
    """Unmask with its defaults."""
    return TableDetector(contaminated=not clean, random_state=seed).fit(x, y).anomaly_score


def measure(name: str, part: Split, fit: Callable[[], peers.Scorer], options: Options, more: Row | None = None) -> Row:
    """Fit and score; a row without data, setting and seed."""
    began = time.monotonic()
    score = fit()
    fitted = time.monotonic()
    found = np.asarray(score(part.test_x), np.float64)
    scored = time.monotonic()
    if not np.isfinite(found).all():
        raise BenchError(f"{name}: {int((~np.isfinite(found)).sum())} scores are not finite")
    n_alerts = max(1, int(options.budget * len(found)))
    alerts = found > np.partition(found, len(found) - n_alerts - 1)[len(found) - n_alerts - 1]
    row: Row = {"method": name} | tables.ranking(part.test_y, found) | tables.alerted(part.test_y, alerts)
    row |= {"fit_s": fitted - began, "score_s": scored - fitted, "n_test_anomalies": int(part.test_y.sum())}
    return row | (more or {})


def cell(part: Split, setting: str, method: str, seed: int, options: Options) -> list[Row]:
    """One method in one setting."""
    if setting in ("contaminated", "one-class"):
        clean = setting == "one-class"
        x = part.x[part.y == 0] if clean else part.x
        if method == "unmask":
            return [measure(method, part, lambda: unmask(x, None, clean=clean, seed=seed, options=options), options)]
        peer = next(one for one in peers.UNSUPERVISED if one.name == method)
        return [measure(method, part, lambda: peer.fit(x, seed), options)]
    label = given_labels(part.y, setting, seed)
    if method == "unmask":
        return [measure(method, part, lambda: unmask(part.x, label, clean=False, seed=seed, options=options), options)]
    supervised = next(one for one in peers.SUPERVISED if one.name == method)
    rows = Rows(part.x, np.maximum(label, 0), np.ones(len(label)))
    trial, valid = rows, None
    if rows.y.sum() >= MIN_TO_CHOOSE and options.trials > 1:
        at, held = train_test_split(np.arange(len(label)), test_size=VALIDATION, stratify=rows.y, random_state=seed)
        trial, valid = _take(rows, at), _take(rows, held)
    tuned = peers.fit_tuned(supervised, {"as 0": trial}, {"as 0": rows}, valid, trials=options.trials, seed=seed)
    row = measure(method, part, lambda: tuned.score, options, {"settings": tuned.settings})
    return [row | {"fit_s": tuned.fit_s, "search_s": tuned.search_s, "validation_ap": tuned.validation_ap}]


def _take(rows: Rows, at: NDArray[np.int64]) -> Rows:
    return Rows(rows.x[at], rows.y[at], rows.weight[at])


def methods_of(setting: str) -> list[str]:
    """Names of the methods of a setting."""
    group: Sequence[Any] = peers.UNSUPERVISED if setting in SETTINGS[:2] else peers.SUPERVISED
    return ["unmask", *(one.name for one in group)]


def run(files: Sequence[Path], seeds: Sequence[int], settings: Sequence[str], options: Options, out: Path) -> None:
    """Measure every cell and write the report after each."""
    data = {file.stem: load(file, max_rows=options.max_rows) for file in files}
    cells, progress = tables.Cells(out.with_suffix(".cells")), tables.Progress(len(files) * len(seeds) * len(settings))
    code = {
        "unmask": tables.code_digest("models"),
        "peers": tables.code_digest("tests/bench/peers.py"),
    }
    protocol: dict[str, Any] = {
        "rows": f"at most {options.max_rows:,} per data set, 70 % for training",
        "seeds": ", ".join(map(str, seeds)),
        "unlabelled rows": "Unmask: unknown; other methods with labels: 0. With 100 % of the labels both get 0",
        "trials": f"Unmask: 1, its defaults; other methods with labels: {options.trials} (the default and random "
        f"ones), or the default alone if fewer than {MIN_TO_CHOOSE} anomalies are labelled",
        "budget": f"{options.budget:.1%} of the test rows",
        "intervals": "bootstrap over seeds: they show seed noise, not that between data sets",
        "not averaged": f"data sets with fewer than {tables.FEW} anomalies in the test part",
        "spaces": peers.spaces(),
        **tables.machine(),
    }
    rows: list[Row] = []
    for seed in seeds:
        for file in files:
            part = split(*data[file.stem], seed)
            for setting in settings:
                here: list[Row] = []
                for method in methods_of(setting):
                    key = {"data": file.name, "files": tables.files_digest([file]), "setting": setting, "seed": seed}
                    version = code["unmask" if method == "unmask" else "peers"]
                    key |= {"method": method, "options": vars(options), "code": version, "version": VERSION}
                    place = {"data": file.stem, "setting": setting, "seed": seed}
                    found = cells.get(key, partial(cell, part, setting, method, seed, options))
                    here += [place | row for row in found]
                rows += here
                progress.cell(f"{file.stem}, {setting}, seed {seed}", here)
            protocol |= {"total_s": round(cells.spent_s), "cells_reused": cells.n_reused}
            summary = tables.summarise(rows)
            title = "Detection on plain tables"
            plot = tables.curves(title, "labels")
            tables.write(out, rows=rows, summary=summary, protocol=protocol, title=title, plot=plot)


@tables.reported
def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.detection",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of .npz files with X and y")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--seeds", type=int, default=3, help="number of splits and label draws: 1, 2, ... (default 3)")
    parser.add_argument("--trials", type=int, default=4, help="trials of each method with labels (default 4)")
    parser.add_argument("--max-rows", type=int, default=20_000, help="rows used of a file (default 20,000)")
    parser.add_argument("--budget", type=float, default=0.05, help="share of test rows alerted (default 0.05)")
    parser.add_argument("--only", default="", help="only files whose name contains this text")
    parser.add_argument("--quick", action="store_true", help="1,500 rows, 1 seed, 4 settings")
    asked = parser.parse_args(arguments)
    files = sorted(file for file in asked.data.glob("*.npz") if asked.only in file.name)
    if not files:
        raise BenchError(f"{asked.data}: no .npz file{f' with {asked.only!r} in its name' if asked.only else ''}")
    if asked.seeds < 1 or asked.trials < 1 or asked.max_rows < 100 or not 0 < asked.budget < 1:
        raise BenchError("--seeds and --trials must be at least 1, --max-rows at least 100, --budget within (0, 1)")
    tables.check_folder(asked.out)
    peers.check_packages()
    options = Options(asked.max_rows, asked.trials, asked.budget)
    settings, n_seeds = list(SETTINGS), asked.seeds
    if asked.quick:
        settings, n_seeds = ["contaminated", "one-class", "5 %", "100 %"], 1
        options = replace(options, max_rows=min(1_500, asked.max_rows), trials=1)
    torch.set_num_threads(peers.N_THREADS)
    run(files, range(1, n_seeds + 1), settings, options, asked.out)
    out: Path = asked.out
    return out


if __name__ == "__main__":
    sys.exit(main())
