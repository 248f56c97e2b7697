"""A backtest as a table, and as a self-contained HTML page."""

from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from flows import html
from flows.backtesting.result import Backtest, Outcome, day_or_time
from flows.html import table, text
from models.plots import svg_of

_HOURS_A_DAY = 24
_TERMS = (
    "A case is an alert, or a group of alerts of one key. <b>no time</b>: frauds with an alert that nobody reviewed. "
    "<b>no alert</b>: frauds below the threshold. <b>before report</b>: median time from the alert of a caught fraud "
    "to its report."
)
Show = Callable[[Outcome], str]


def headline(found: Backtest) -> str:
    """The result in one sentence: the outcome that catches most."""
    words = f"{found.n_events:,} events from {day_or_time(found.from_ms)} to {day_or_time(found.until_ms)}"
    if not found.has_labels:
        return f"{words}, without final labels"
    words += f", {found.n_frauds:,} of them fraud"
    if not found.n_frauds:
        return words
    best = max(found.outcomes, key=lambda one: one.totals["value_caught" if found.value else "caught"] or 0.0)
    caught, per_day = best.totals["caught"] or 0.0, best.totals["reviewed_per_day"] or 0.0
    return f"{words}; {best.name} catches most: {caught:,.0f} with {per_day:,.1f} reviews a day"


def rows_of(found: Backtest) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table: one row for each model and budget."""
    columns = _columns(found)
    return [name for name, _ in columns], [[show(one) for _, show in columns] for one in found.outcomes]


def _columns(found: Backtest) -> list[tuple[str, Show]]:
    columns: list[tuple[str, Show]] = [
        ("model", lambda one: one.model + (" (SEEN)" if one.n_seen else "")),
        ("budget", lambda one: "own threshold" if one.budget == "model" else one.budget),
        ("alerts", _number("alerts")),
        ("share", _number("alert_rate", ".2%")),
        ("cases", _number("cases")),
        ("reviews/day", _number("reviewed_per_day", ",.1f")),
    ]
    if found.has_labels:
        columns += [
            ("precision", _number("precision", ".1%")),
            ("caught", _number("caught")),
            ("no time", _number("beyond")),
            ("no alert", _number("below")),
            ("recall", _number("recall", ".1%")),
        ]
        if found.value:
            columns += [
                (f"{found.value} caught", _number("value_caught")),
                ("of all", _number("value_recall", ".1%")),
                ("per review", _number("value_per_review", ",.2f")),
            ]
        columns.append(("before report", _lead))
    else:
        columns += [(f"p{q} score", _number(f"score_p{q}", ".3f")) for q in ("50", "99", "99.9")]
    return columns


def _number(name: str, form: str = ",.0f") -> Show:
    def show(one: Outcome) -> str:
        value = one.totals.get(name)
        return "–" if value is None else format(value, form)

    return show


def _lead(one: Outcome) -> str:
    hours = one.totals["lead_hours"]
    if hours is None:
        return "–"
    return f"{hours / _HOURS_A_DAY:,.1f} d" if abs(hours) >= _HOURS_A_DAY else f"{hours:,.1f} h"


def page(found: Backtest, charts: Sequence[tuple[str, Figure]]) -> str:
    """The report as HTML."""
    head, rows = rows_of(found)
    capacity = "all cases" if found.capacity is None else f"the {found.capacity:,} highest cases of each day"
    warned = "".join(f'<p class="warn">{text(note)}</p>' for note in found.notes() if note.startswith("SEEN"))
    parts = [
        f"<h1>Backtest: {text(found.stream)}</h1>",
        f'<p class="soft">Past events from the lake, scored as the live scorer scores them. People review {capacity} '
        "(UTC, by arrival); what they have no time for counts as missed.</p>",
        f'<p class="lead">{text(headline(found))}.</p>{warned}',
        table(head, rows),
        f'<p class="soft">{_TERMS}</p>' if found.has_labels else "",
        f"<h2>Over time</h2>{html.figures((title, svg_of(figure)) for title, figure in charts)}",
        *(_days(one, found) for one in found.outcomes),
        _comparison(found),
        f"<h2>Notes</h2>{html.bullets(found.notes())}",
    ]
    return html.page(f"Unmask: backtest of {found.stream}", parts)


def _days(one: Outcome, found: Backtest) -> str:
    names = ["day", "events", "final", "alerts", "cases", "reviewed"]
    if found.has_labels:
        names += ["judged", "right", "frauds", "caught", "beyond", "below", "reported"]
        names += ["value", "value_caught"] if found.value else []
    rows = [[_cell(row[name]) for name in names] for row in one.days.rows(named=True)]
    shown = table([name.replace("_", " ") for name in names], rows)
    return f"<details><summary>Day by day: {text(one.name)}</summary>{shown}</details>"


def _comparison(found: Backtest) -> str:
    if not found.comparison:
        return ""
    rows = [(name.replace("_", " "), f"{figure:.4f}") for name, figure in found.comparison.items()]
    return f"<h2>Beside baselines</h2>{table(('figure', 'value'), rows)}"


def _cell(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else f"{value}"
