"""A backtest on the terminal, and as a file."""

import json
import math
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.backtesting import report
from flows.backtesting.charts import charts
from flows.backtesting.result import Backtest
from flows.screen import clean, json_line


def show(found: Backtest, out: Console, *, as_json: bool) -> None:
    """Print the result as a table with notes, or as one JSON object."""
    if as_json:
        sys.stdout.write(json_line(json.dumps(_finite(found.said()))) + "\n")
        return

    def line(words: str) -> None:
        out.print(clean(words), markup=False, emoji=False, highlight=False, soft_wrap=True)

    line(f"{report.headline(found)}.")
    head, rows = report.rows_of(found)
    table = Table(box=None, pad_edge=False, header_style="bold")  # a column for each outcome: there are few
    for at, column in enumerate([head, *rows]):
        table.add_column(
            Text(clean("\n".join(column[:2]), keep="\n"), justify="right" if at else "left"), justify="right"
        )
    table.columns[0].justify = "left"
    for figures in zip(head[2:], *(row[2:] for row in rows), strict=True):
        table.add_row(*(Text(clean(figure)) for figure in figures))
    out.print(table)
    for note in found.notes():
        line(note)
    for name, figure in found.comparison.items():
        line(f"{name.replace('_', ' '):40s} {figure:.4f}")
    line(f"Plots, days and the report: {found.url}")


def write(found: Backtest, path: Path) -> None:
    """Write the HTML page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report.page(found, list(charts(found).values())), encoding="utf-8")


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
