"""How a demo shows its alerts and figures on a terminal."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from flows.demo.figures import Figures
from flows.demo.live import LiveRun
from flows.demo.source import Source
from flows.serve import alert_panel

Row = tuple[str, str]


def alerts(console: Console, live: LiveRun) -> None:
    """A few alerts, from the highest score to the lowest."""
    if not live.alerts:
        return
    console.rule("A few of the alerts")
    for alert in sorted(live.alerts, key=lambda a: -a.score)[:: max(1, len(live.alerts) // 4)][:4]:
        console.print(alert_panel.panel(alert))


def table(console: Console, figures: Figures) -> None:
    """The figures in groups."""
    shown = Table(show_header=False, title="Figures of the live part", title_justify="left")
    shown.add_column()
    shown.add_column(justify="right")
    for title, rows in groups(figures):
        shown.add_row(f"[bold]{title}[/bold]", "")
        for name, value in rows:
            shown.add_row(f"  {name}", value)
        shown.add_section()
    console.print(shown)


def explanations(console: Console, figures: Figures, source: Source) -> None:
    """What may surprise, one paragraph each."""
    for words in figures.explanations(source):
        console.print(f"[bold]Note:[/bold] {words}")


def verdict(console: Console, figures: Figures) -> None:
    """The last word, in one sentence."""
    style = "bold green" if figures.holds else "bold red"
    console.print(figures.verdict(), style=style, soft_wrap=True, highlight=False)


def groups(figures: Figures) -> Iterator[tuple[str, list[Row]]]:
    """Title and rows of each group, rounded and with units."""
    books, live, quality, skew = figures.books, figures.live, figures.quality, figures.skew
    yield (
        "Events",
        [
            ("sent", f"{live.n_sent:,}"),
            ("scored", f"{books.n_scored:,}"),
            ("refused (broken on purpose)", f"{books.n_refused:,}"),
            ("duplicates (sent twice on purpose)", f"{books.n_duplicates:,}"),
            ("out of order", f"{sum(s.out_of_order for s in live.scores.values()):,}"),
        ],
    )
    yield (
        "Speed",
        [
            ("throughput", f"{live.n_sent / live.scoring_s:,.0f} events/s"),
            ("latency, median", _duration(live.latency_ms["p50"])),
            ("latency, 99 % of events within", _duration(live.latency_ms["p99"])),
        ],
    )
    rows = [("alerts", f"{len(live.alerts):,}"), ("share of scored events", _share(len(live.alerts), books.n_scored))]
    if quality is not None:
        rows += [
            ("alerts that are fraud (precision)", f"{quality.precision:.0%}"),
            (f"of {quality.n_frauds:,} frauds alerted (recall)", f"{quality.recall:.0%}"),
        ]
    yield "Alerts", rows
    if quality is not None:
        yield (
            "Average precision (1 is perfect)",
            [
                ("live scores", f"{quality.average_precision:.2f}"),
                *(
                    (name, f"{figure:.2f}")
                    for name, figure in (
                        ("on the validation period", figures.validation_ap),
                        ("the same, labels as late as live", figures.validation_ap_delayed),
                    )
                    if figure is not None
                ),
                *(
                    (f"backtest: {name.removesuffix('_average_precision').replace('_', ' ')}", f"{figure:.2f}")
                    for name, figure in figures.backtest.items()
                    if name.endswith("_average_precision")
                ),
            ],
        )
    yield (
        "Live against offline",
        [
            ("scores with equal features", f"{skew.equal:,} of {skew.checked:,}"),
            ("scores recomputed", f"{skew.n_model_checked:,}"),
            ("largest difference of a score", f"{skew.worst_score_difference:.0e}"),
        ],
    )


def _duration(ms: float) -> str:
    """A duration for people.

    >>> _duration(31.24), _duration(12_345.0)
    ('31 ms', '12.3 s')
    """
    return f"{ms:.0f} ms" if ms < 1_000 else f"{ms / 1_000:.1f} s"


def _share(part: int, whole: int) -> str:
    return f"{part / max(whole, 1):.2%}"
