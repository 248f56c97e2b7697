"""A report as sections of words, plots and tables: logged to a run of MLflow, and shown as one page of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from flows import html
from flows.screen import clean
from models import plots
from models.ship import registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT = "report"  # the page, in the artifacts of a run
Fact = tuple[str, str]  # its name, and what it is


class Plot(NamedTuple):
    """A plot: `name` is that of its file."""

    name: str
    figure: Figure


class Rows(NamedTuple):
    """A table of texts: `name` is that of its file."""

    name: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Args:
        title: heading.
        words: what the plots and tables say, one sentence or more each.
        warnings: what a person must look at.
        plots, tables: in the order in which they are shown.
    """

    title: str
    words: Sequence[str] = ()
    warnings: Sequence[str] = ()
    plots: Sequence[Plot] = field(default_factory=tuple)
    tables: Sequence[Rows] = field(default_factory=tuple)


def log(run: registry.Run, title: str, facts: Sequence[Fact], sections: Sequence[Section]) -> None:
    """Log the plots, the tables, and the page to a run."""
    for section in sections:
        for plot in section.plots:
            run.log_figure(plot.name, plot.figure)
        for table in section.tables:
            columns = list(zip(*table.rows, strict=True)) or [()] * len(table.head)
            run.log_table(table.name, dict(zip(table.head, columns, strict=True)))
    run.log_page(REPORT, page(title, facts, sections))


def page(title: str, facts: Sequence[Fact], sections: Sequence[Section]) -> str:
    """The report as one page of HTML without other files."""
    parts = [f"<h1>{html.text(title)}</h1>", html.facts(facts)]
    for section in sections:
        parts.append(f"<h2>{html.text(section.title)}</h2>")
        parts += [f'<p class="warn">{html.text(words)}</p>' for words in section.warnings]
        parts += [f"<p>{html.text(words)}</p>" for words in section.words]
        if section.plots:
            parts.append(html.figures(("", plots.svg_of(plot.figure)) for plot in section.plots))
        parts += [html.table(table.head, table.rows) for table in section.tables]
    return html.page(title, parts)


def markdown(facts: Sequence[Fact], words: Sequence[str] = ()) -> str:
    """The description of a run: words, then facts. MLflow shows the first lines of it."""
    lines = [f"| {_cell(name)} | {_cell(found)} |" for name, found in facts]
    return "\n\n".join([*words, "\n".join(["| | |", "|---|---|", *lines])])


def _cell(words: str) -> str:
    return escape(clean(words), quote=False).replace("|", r"\|")
