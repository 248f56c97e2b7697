"""What the benchmarks of detection share: cells kept on disk, metrics, means with intervals, reports."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from pipelines.errors import UnmaskError

ROOT = Path(__file__).parents[2]
ROW_KEYS = (
    "data",
    "setting",
    "method",
    "seed",
    "auc_roc",
    "average_precision",
    "precision_at_budget",
    "recall_at_budget",
    "fit_s",
    "score_s",
)
WITH_INTERVAL = (
    "auc_roc",
    "average_precision",
    "precision_at_budget",
    "recall_at_budget",
    "value_caught",
    "entities_alerted",
    "hours_to_alert",
)
N_RESAMPLES = 200
FEW = 20  # test anomalies below which a data set is listed but not averaged
Row = dict[str, Any]


P = ParamSpec("P")


class BenchError(UnmaskError):
    """A benchmark cannot start; the message says what to change."""


def reported(main: Callable[P, Path]) -> Callable[P, int]:
    """Make the main function of a benchmark, which returns the path of its JSON file, return an exit code.

    It prints the Markdown report beside that file. Exit code 2: the data or an option cannot be used.
    """

    @wraps(main)
    def run(*args: P.args, **options: P.kwargs) -> int:
        try:
            out = main(*args, **options)
        except UnmaskError as error:
            print(error, file=sys.stderr)
            return 2
        print(f"\n{out.with_suffix('.md').read_text(encoding='utf-8')}")
        return 0

    return run


def check_folder(out: Path) -> None:
    """Raises BenchError if the folder of a file to write does not exist."""
    if not out.absolute().parent.is_dir():
        raise BenchError(f"{out.absolute().parent}: no such folder; create it, or choose another --out")


def day_ms(text: str) -> int:
    """Start of a day in UTC, ms since 1970: the type of a command-line option."""
    try:
        day = date.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no day such as 2018-06-30 ({error})") from error
    return round(datetime.combine(day, datetime.min.time(), UTC).timestamp() * 1000)


class Cells:
    """Finished cells on disk: a benchmark that was interrupted goes on where it was.

    The name of a cell is a digest of what determines it, so another option, other data or other code begins anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.n_reused, self.spent_s = 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: Mapping[str, Any], make: Callable[[], list[Row]]) -> list[Row]:
        """Rows of a cell, made if they are not there yet. `spent_s` grows by the time it took, even if it is reused."""
        path = self.folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]}.json"
        if path.exists():
            self.n_reused += 1
            found = json.loads(path.read_text(encoding="utf-8"))
            self.spent_s += found["seconds"]
            return found["rows"]
        began = time.monotonic()
        rows = make()
        seconds = time.monotonic() - began
        self.spent_s += seconds
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps({"key": key, "rows": rows, "seconds": seconds}), encoding="utf-8")
        draft.replace(path)
        return rows


class Progress:
    """One line for each cell, with the time so far and an estimate of what is left."""

    def __init__(self, n_cells: int) -> None:
        self.n_cells, self.done, self.began = n_cells, 0, time.monotonic()

    def cell(self, name: str, rows: Sequence[Row]) -> None:
        """Report a cell that is done."""
        self.done += 1
        spent = time.monotonic() - self.began
        left = spent / self.done * (self.n_cells - self.done)
        figures = "  ".join(f"{row['method']} {row['average_precision']:.3f}" for row in rows)
        print(f"[{self.done}/{self.n_cells} {spent / 60:.1f} min, {left / 60:.1f} left] {name}: {figures}", flush=True)


def code_digest(*parts: str) -> str:
    """Digest of the source files below some paths of the repository.

    >>> len(code_digest("tests/bench/tables.py"))
    16
    """
    files = sorted(
        f for part in parts for f in ((ROOT / part).rglob("*.py") if (ROOT / part).is_dir() else [ROOT / part])
    )
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def files_digest(files: Iterable[Path]) -> str:
    """Digest of names, sizes and times of data files."""
    found = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def ranking(label: NDArray[np.int8], score: NDArray[np.floating]) -> dict[str, float]:
    """Area under ROC and average precision."""
    return {
        "auc_roc": float(roc_auc_score(label, score)),
        "average_precision": float(average_precision_score(label, score)),
    }


def alerted(label: NDArray[np.int8], alerts: NDArray[np.bool_]) -> dict[str, float]:
    """Precision and recall of alerts; precision is 0 without alerts."""
    return {
        "precision_at_budget": float(label[alerts].mean()) if alerts.any() else 0.0,
        "recall_at_budget": float(label[alerts].sum() / label.sum()),
    }


def resampled_ap(
    label: NDArray[np.int8], score: NDArray[np.floating], entity: NDArray[np.int64], *, n: int = N_RESAMPLES
) -> list[float]:
    """Average precision in bootstrap samples of entities; the samples are the same for every method.

    Args:
        label, score, entity: **shape (m,)**; `entity` numbers the entities from 0.
        n: number of samples.
    """
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # of rows with equal scores
    positive, of = label[order] == 1, entity[order]
    random, n_entities = np.random.default_rng(0), int(entity.max()) + 1
    found = []
    for _ in range(n):
        times = np.bincount(random.integers(0, n_entities, n_entities), minlength=n_entities)[of]
        seen, caught = np.cumsum(times)[last], np.cumsum(times * positive)[last]
        gained = np.diff(caught, prepend=0)
        found.append(float((gained * caught / np.maximum(seen, 1)).sum() / max(caught[-1], 1)))
    return found


def summarise(
    rows: Sequence[Row],
    *,
    resamples: Mapping[tuple[str, str, str, int], Sequence[float]] | None = None,
    baseline: str = "unmask",
) -> list[dict[str, Any]]:
    """Mean, 95 % interval and mean rank of each method in each setting, and its distance to `baseline`.

    Data sets with fewer than `FEW` anomalies in the test part (`n_test_anomalies`) are left out. Means are over the
    seeds of a data set, then over data sets. Intervals are bootstrap ones: seeds are drawn with replacement, and,
    where `resamples` has them, with the average precision in a sample of the entities. Differences are paired.
    """
    kept = [row for row in rows if row.get("n_test_anomalies", FEW) >= FEW] or rows
    found = []
    for setting in dict.fromkeys(row["setting"] for row in kept):
        here = [row for row in kept if row["setting"] == setting]
        cells: dict[tuple[str, int], dict[str, Row]] = {(row["data"], row["seed"]): {} for row in here}
        for row in here:
            cells[row["data"], row["seed"]][row["method"]] = row
        ranks: dict[str, list[float]] = defaultdict(list)
        for cell in cells.values():
            for name, row in cell.items():
                others = [other["average_precision"] for other in cell.values()]
                ap = row["average_precision"]
                ranks[name].append(1 + sum(o > ap for o in others) + (sum(o == ap for o in others) - 1) / 2)
        for method in dict.fromkeys(row["method"] for row in here):
            mine = {cell: by[method] for cell, by in cells.items() if method in by}
            both = [cell for cell in mine if baseline in cells[cell]]
            entry: dict[str, Any] = {"setting": setting, "method": method, "n": len(mine)}
            for name in _figures(mine.values()):
                entry[name] = _mean({cell: row[name] for cell, row in mine.items() if row.get(name) is not None})
            for name in WITH_INTERVAL:
                drawn = resamples if name == "average_precision" else None
                spread = {c: _drawn(row, drawn, name) for c, row in mine.items() if row.get(name) is not None}
                if spread:
                    entry[f"{name}_low"], entry[f"{name}_high"] = _interval(spread)
            if both and method != baseline:
                apart = {
                    cell: _drawn(cells[cell][baseline], resamples, "average_precision")
                    - _drawn(mine[cell], resamples, "average_precision")
                    for cell in both
                }
                entry["ahead"] = _mean(
                    {c: cells[c][baseline]["average_precision"] - mine[c]["average_precision"] for c in both}
                )
                entry["ahead_low"], entry["ahead_high"] = _interval(apart)
            entry["mean_rank"] = float(np.mean(ranks[method]))
            found.append(entry)
    return found


def _figures(rows: Iterable[Row]) -> list[str]:
    skipped = {"data", "setting", "method", "seed", "n_test_anomalies"}
    first = next(iter(rows))
    return [name for name, value in first.items() if name not in skipped and isinstance(value, float | int | None)]


def _mean(by_cell: Mapping[tuple[str, int], float]) -> float | None:
    by_data: dict[str, list[float]] = defaultdict(list)
    for (data, _), value in by_cell.items():
        by_data[data].append(value)
    return float(np.mean([np.mean(values) for values in by_data.values()])) if by_data else None


def _drawn(
    row: Row, resamples: Mapping[tuple[str, str, str, int], Sequence[float]] | None, name: str
) -> NDArray[np.float64]:
    key = (row["data"], row["setting"], row["method"], row["seed"])
    return np.asarray(resamples[key]) if resamples and key in resamples else np.full(N_RESAMPLES, row[name])


def _interval(by_cell: Mapping[tuple[str, int], NDArray[np.float64]]) -> tuple[float, float]:
    by_data: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for (data, _), values in sorted(by_cell.items()):
        by_data[data].append(values)
    random, means = np.random.default_rng(0), []
    for of_data in by_data.values():
        stacked = np.stack(of_data)  # (seeds, resamples)
        picked = random.integers(0, len(stacked), (len(stacked), stacked.shape[1]))
        means.append(np.take_along_axis(stacked, picked, axis=0).mean(axis=0))
    low, high = np.quantile(np.mean(means, axis=0), [0.025, 0.975])
    return float(low), float(high)


def write(
    out: Path,
    *,
    rows: Sequence[Row],
    summary: Sequence[Mapping[str, Any]],
    protocol: Mapping[str, Any],
    title: str,
    plot: Callable[[Sequence[Mapping[str, Any]]], Figure],
) -> None:
    """Write `out` (JSON), and beside it the same as Markdown (.md) and as a plot (.png)."""
    ordered = [{key: row[key] for key in (*ROW_KEYS, *(k for k in row if k not in ROW_KEYS))} for row in rows]
    found = {"title": title, "protocol": protocol, "rows": ordered, "summary": list(summary)}
    draft = out.with_suffix(".draft")
    draft.write_text(json.dumps(found, indent=1), encoding="utf-8")
    draft.replace(out)
    out.with_suffix(".md").write_text(markdown(title, rows, summary, protocol), encoding="utf-8")
    plot(summary).savefig(out.with_suffix(".png"))


def markdown(title: str, rows: Sequence[Row], summary: Sequence[Mapping[str, Any]], protocol: Mapping[str, Any]) -> str:
    """A table for each setting, methods by mean rank, and one of the average precision on each data set."""
    lines = [f"# {title}", ""]
    lines += [f"- {name}: {value}" for name, value in protocol.items() if isinstance(value, str | int | float)]
    extra = [
        name
        for name in ("value_caught", "entities_alerted", "hours_to_alert")
        if any(entry.get(name) is not None for entry in summary)
    ]
    for setting in dict.fromkeys(entry["setting"] for entry in summary):
        here = sorted((e for e in summary if e["setting"] == setting), key=lambda e: e["mean_rank"])
        names = ["method", "rank", "AP", "95 %", "Unmask ahead by", "95 %", "ROC", "precision at budget"]
        names += ["recall at budget", *(name.replace("_", " ") for name in extra), "fit s", "score s"]
        lines += ["", f"## {setting}", "", line(names), line(["---"] * len(names))]
        for e in here:
            ahead = ["", ""]
            if "ahead" in e:
                ahead = [f"{e['ahead']:+.3f}", f"{e['ahead_low']:+.3f} .. {e['ahead_high']:+.3f}"]
            cells = [e["method"], f"{e['mean_rank']:.1f}", f"{e['average_precision']:.3f}"]
            cells += [f"{e['average_precision_low']:.3f} .. {e['average_precision_high']:.3f}", *ahead]
            cells += [f"{e['auc_roc']:.3f}", f"{e['precision_at_budget']:.3f}", f"{e['recall_at_budget']:.3f}"]
            cells += ["" if e.get(name) is None else f"{e[name]:.3g}" for name in extra]
            lines.append(line([*cells, f"{e['fit_s']:.1f}", f"{e['score_s']:.1f}"]))
    data = list(dict.fromkeys(row["data"] for row in rows))
    if len(data) > 1:
        few = {row["data"] for row in rows if row.get("n_test_anomalies", FEW) < FEW}
        names = [f"{name} (not averaged)" if name in few else name for name in data]
        lines += ["", "## Average precision by data set", "", line(["setting", "method", *names])]
        lines.append(line(["---"] * (2 + len(data))))
        for e in summary:
            cells = []
            for name in data:
                values = [
                    r["average_precision"]
                    for r in rows
                    if (r["data"], r["setting"], r["method"]) == (name, e["setting"], e["method"])
                ]
                cells.append(f"{np.mean(values):.3f}" if values else "")
            lines.append(line([e["setting"], e["method"], *cells]))
    return "\n".join(lines) + "\n"


def line(cells: Iterable[object]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def curves(title: str, xlabel: str) -> Callable[[Sequence[Mapping[str, Any]]], Figure]:
    """A plot of the mean average precision of each method over the settings, with its interval."""

    def plot(summary: Sequence[Mapping[str, Any]]) -> Figure:
        figure = Figure(figsize=(9.0, 5.5), dpi=120, layout="constrained")
        axes = figure.subplots()
        settings = list(dict.fromkeys(entry["setting"] for entry in summary))
        methods = list(dict.fromkeys(entry["method"] for entry in summary))
        for k, method in enumerate(methods):
            mine = [entry for entry in summary if entry["method"] == method]
            at = np.array([settings.index(entry["setting"]) for entry in mine]) + 0.04 * (k - len(methods) / 2)
            mean, low, high = (
                np.array([entry[f"average_precision{end}"] for entry in mine]) for end in ("", "_low", "_high")
            )
            ours = method.startswith("unmask")
            axes.errorbar(
                at,
                mean,
                yerr=np.clip([mean - low, high - mean], 0, None),
                label=method,
                marker="o" if ours else "s",
                markersize=6 if ours else 4,
                linewidth=2.2 if ours else 1.0,
                color=f"C{k % 10}",
                linestyle="-" if ours else "--" if k >= 10 else ":",
            )
        axes.set_xticks(range(len(settings)), settings)
        axes.set(xlabel=xlabel, ylabel="average precision", title=title)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure

    return plot


def machine() -> dict[str, Any]:
    """The machine and the number of threads."""
    return {"cores": os.cpu_count() or 1, "threads": os.environ.get("OMP_NUM_THREADS", "all")}
