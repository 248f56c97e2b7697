"""The results: one JSON file that grows row by row, and the table with the ratios."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench.tables import ROOT

Row = dict[str, Any]
FIELDS = ("system", "client", "form", "events", "cpu_s", "events_per_cpu_s", "wall_s", "p50_ms", "p99_ms")


class Report:
    """Rows on disk. A row is kept for the same settings and commit of the code.

    Args:
        again: begin anew.
    """

    def __init__(self, path: Path, machine: Mapping[str, Any], *, again: bool) -> None:
        self.path = path
        self.commit = commit()
        there = json.loads(path.read_text()) if path.exists() and not again else {}
        self.rows: list[Row] = there.get("rows", [])
        self.parts: dict[str, Any] = there.get("parts", {})
        self.machine = dict(machine)

    def row(self, **key: Any) -> Row | None:
        """The row with these fields that this code has measured; not one that failed."""
        wanted = {**key, "commit": self.commit, "why": None}
        return next((row for row in self.rows if all(row.get(name) == value for name, value in wanted.items())), None)

    def add(self, row: Row) -> Row:
        """Add a row, in place of an older one of the same run and part; write the file. Returns the whole row."""
        same = ("system", "client", "form", "stream", "part")
        full = {name: row.get(name) for name in FIELDS} | row | {"commit": self.commit}
        self.rows = [one for one in self.rows if any(one.get(name) != full.get(name) for name in same)]
        self.rows.append(full)
        self.write()
        return full

    def write(self) -> None:
        """Write the file; a reader sees the old one or the new one."""
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps({"machine": self.machine, "rows": self.rows, "parts": self.parts}, indent=1) + "\n")
        draft.replace(self.path)

    def table(self) -> str:
        """The rows of this commit as text, and how Unmask compares."""
        rows = [row for row in self.rows if row["commit"] == self.commit]
        lines = [
            f"{'system':<14}{'client':<14}{'form':<8}{'stream':<8}{'part':<22}{'events':>10}{'events/CPU-s':>14}"
            f"{'us/event':>10}{'wall s':>8}{'p50 ms':>8}{'p99 ms':>8}"
        ]
        for row in rows:
            names = "".join(
                f"{row[name]:<{width}}" for name, width in (("system", 14), ("client", 14), ("form", 8), ("stream", 8))
            )
            if row.get("why"):
                lines.append(f"{names}{row['part']:<22}{row['why']}")
                continue
            rate, wall = row["events_per_cpu_s"], row["wall_s"]
            lines.append(
                f"{names}{row['part']:<22}{row['events']:>10,}{_number(rate, 14, ',.0f')}"
                f"{_number(1e6 / rate if rate else None, 10, '.1f')}{_number(wall, 8, '.1f')}"
                f"{_number(row['p50_ms'], 8, '.1f')}{_number(row['p99_ms'], 8, '.1f')}"
            )
        return "\n".join([*lines, "", *ratios(rows)])


def ratios(rows: list[Row]) -> list[str]:
    """Unmask's events per CPU-second over those of the others, each in words."""
    measured = [row for row in rows if row["part"] == "throughput" and row["events_per_cpu_s"]]
    ours = [row for row in measured if row["system"] == "unmask"]
    lines = []
    for mine in ours:
        for other in measured:
            if other["system"] == "unmask" or other["stream"] != mine["stream"]:
                continue
            if other["system"] in ("bare", "xgboost") and other["client"] != mine["client"]:
                continue
            if other["system"] == "xgboost" and other["form"] != mine["form"]:
                continue
            times = mine["events_per_cpu_s"] / other["events_per_cpu_s"]
            lines.append(
                f"unmask ({mine['client']}, {mine['form']}, {mine['stream']}) / {other['system']} "
                f"({other['client']}, {other['form']}): {times:.2f}"
            )
    return lines


def commit() -> str:
    """The commit of the code, and a digest of what differs from it."""
    head, changed = (
        subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
        for words in (("rev-parse", "--short=12", "HEAD"), ("diff", "HEAD"))
    )
    return (head or "no git") + (f"+{hashlib.sha256(changed.encode()).hexdigest()[:8]}" if changed else "")


def _number(value: float | None, width: int, form: str) -> str:
    return f"{'-' if value is None else format(value, form):>{width}}"
