"""The report of `unmask try`: a self-contained HTML page."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from html import escape

from flows.offline import charts
from flows.offline.check import span_words
from flows.offline.tryout import Figures, Tried
from flows.screen import clean
from pipelines.contracts.messages import Alert, Reason

N_CARDS = 12
N_LISTED = 100
MAX_SHOWN = 48  # maximum characters of a text in the tables of reasons
_STYLE = """
:root { --ink: #1d2733; --soft: #5d6b7a; --line: #dfe5ec; --blue: #0072b2; --red: #c2410c; --pale: #f5f8fb }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink); margin: 0; background: #fff }
main { max-width: 1080px; margin: 0 auto; padding: 28px 24px 60px }
h1 { font-size: 25px; margin: 0 0 2px } h2 { font-size: 18px; margin: 34px 0 8px } p { margin: 6px 0 }
.soft { color: var(--soft) } .lead { font-size: 17px; margin: 10px 0 16px }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px }
.tile { background: var(--pale); border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px }
.tile b { display: block; font-size: 23px; line-height: 1.25 } .tile span { color: var(--soft); font-size: 13px }
p.warn { background: #fff4e5; border-left: 4px solid #e69f00; border-radius: 4px; padding: 8px 12px; margin: 0 0 14px }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 18px; align-items: start }
figure { margin: 0 } figcaption { font-weight: 600; font-size: 14px } figure svg { width: 100%; height: auto }
table { border-collapse: collapse; width: 100%; font-size: 14px }
th { text-align: left; color: var(--soft); font-weight: 600 } td, th { padding: 4px 8px 4px 0; vertical-align: top }
tr + tr td { border-top: 1px solid var(--line) } .n { text-align: right; font-variant-numeric: tabular-nums }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); gap: 14px }
.card { border: 1px solid var(--line); border-left: 4px solid var(--blue); border-radius: 8px; padding: 10px 14px }
.card.right { border-left-color: var(--red) } .card h3 { font-size: 15px; margin: 0; display: flex; gap: 8px }
.card h3 span { margin-left: auto; font-weight: 400; color: var(--soft) } .card table { margin-top: 6px }
.tag { background: var(--red); color: #fff; border-radius: 4px; padding: 0 6px; font-size: 12px; font-weight: 600 }
.bar { display: inline-block; height: 9px; border-radius: 2px; background: var(--blue); min-width: 2px }
.bar.off { background: #c3ccd6 } td:first-child { white-space: nowrap } .card { overflow-x: auto }
.card table { font-size: 13px } .card td, .card th { padding-right: 7px }
code { background: var(--pale); border: 1px solid var(--line); border-radius: 4px; padding: 0 4px; font-size: 13px }
summary { cursor: pointer; color: var(--blue); margin: 12px 0 6px } li { margin: 4px 0 }
"""


def headline(tried: Tried) -> str:
    """The result in one sentence: the number of alerts and, if there are labels, their precision and recall."""
    beyond = f", the budget allows {tried.allowed_rate:.2%}" if tried.has_drifted else ""
    words = f"{tried.n_alerts:,} of {len(tried.score):,} scored events raise an alert ({tried.alert_rate:.2%}{beyond})"
    if tried.figures is None:
        return f"{words}; the file has no labels for them, so check the reasons of the alerts"
    found = tried.figures
    right = f"{found.precision:.0%} of the labelled alerts are fraud"
    return f"{words}: {right}, and {found.recall:.0%} of the frauds are found"


def page(tried: Tried, *, file: str, stream_file: str, notes: Sequence[str]) -> str:
    """The report as HTML.

    Args:
        tried: result of `try_file`.
        file, stream_file: names of the two files.
        notes: notes of `check` about the file.
    """
    parts = [
        _head(tried, file),
        _warning(tried),
        _tiles(tried),
        _charts(tried),
        _figures(tried, tried.figures) if tried.figures else "",
        _alerts(tried),
        _learned(tried),
        _refused(tried),
        _unknown(tried, notes),
        _next(file, stream_file),
    ]
    title = escape(f"Unmask: {tried.stream.name}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _head(tried: Tried, file: str) -> str:
    learned = f"{_day(tried.begin_ms)} to {_day(tried.split_ms)}"
    return (
        f"<h1>Unmask report: {_text(file)}</h1>"
        f'<p class="soft">The model was trained on the first {tried.n_learned:,} events ({learned}) and scored the '
        f"{len(tried.score):,} events after them, to {_day(tried.end_ms)}, as in live scoring. It took "
        f"{_took(tried)}.</p>"
        f'<p class="lead">{_text(headline(tried))}.</p>'
    )


def _warning(tried: Tried) -> str:
    if not tried.has_drifted:
        return ""
    return (
        f'<p class="warn">{tried.alert_rate:.1%} of the scored events raise an alert; the budget allows '
        f"{tried.allowed_rate:.1%}. The events have changed since the training period. In live scoring, train more "
        "often. Here, check only the first alerts, or train on more of the file: "
        "<code>--train-share 0.9</code>.</p>"
    )


def _took(tried: Tried) -> str:
    return span_words(round(1000 * sum(tried.seconds.values())))


def _tiles(tried: Tried) -> str:
    model = "fine-tuned on labels" if tried.has_head else "without labels"
    tiles = [
        (f"{tried.accepted.sum():,}", f"of {len(tried.accepted):,} rows accepted"),
        (f"{tried.n_learned:,}", f"training events, {model}"),
        (f"{tried.n_alerts:,}", f"alerts, {tried.alert_rate:.2%} of the scored events"),
    ]
    if tried.figures:
        tiles += [
            (f"{tried.figures.precision:.0%}", "precision: alerts that are fraud"),
            (f"{tried.figures.recall:.0%}", "recall: frauds with an alert"),
        ]
    else:
        tiles.append((f"{len({_key(tried, a) for _, a in tried.alerts}):,}", f"different {tried.stream.key} in alerts"))
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{a}</b><span>{_text(b)}</span></div>' for a, b in tiles)
        + "</div>"
    )


def _charts(tried: Tried) -> str:
    drawn = [("Scores", charts.score_histogram(tried)), ("Alerts over time", charts.alerts_over_time(tried))]
    shown = (f"<figure><figcaption>{title}</figcaption>{svg}</figure>" for title, svg in drawn)
    return f'<h2>Scores and alerts</h2><div class="two">{"".join(shown)}</div>'


def _figures(tried: Tried, found: Figures) -> str:
    rows = [
        ("frauds among the scored events with a label", f"{found.frauds:,} of {found.rows:,} ({found.prevalence:.2%})"),
        ("precision of the alerts", f"{found.precision:.1%}"),
        ("recall of the alerts", f"{found.recall:.1%}"),
        ("average precision of this model", f"{found.average_precision:.3f}"),
        ("average precision without labels", f"{found.label_free:.3f}"),
        ("average precision of random scores", f"{found.prevalence:.4f}"),
    ]
    curve = f"<figure><figcaption>Precision and recall</figcaption>{charts.precision_and_recall(tried)}</figure>"
    return f'<h2>Accuracy</h2><div class="two"><div>{_table(("figure", "value"), rows)}</div>{curve}</div>'


def _alerts(tried: Tried) -> str:
    if not tried.alerts:
        return "<h2>Alerts</h2><p>No scored event is above the threshold.</p>"
    frauds = {int(row) for row, label in zip(tried.row, tried.label, strict=True) if label == 1}
    first = _varied(tried.alerts)
    cards = "".join(_card(tried, row, alert, row in frauds) for row, alert in first)
    rest = [one for one in tried.alerts if one not in first][:N_LISTED]
    more = ""
    if rest:
        lines = [
            (
                f"{row:,}",
                _when(a.event_time),
                _key(tried, a),
                f"{a.score:.4f}",
                _reasons_line(a.reasons),
                "fraud" if row in frauds else "",
            )
            for row, a in rest
        ]
        table = _table(("row", "time (UTC)", tried.stream.key, "score", "reasons", ""), lines)
        more = f"<details><summary>The next {len(rest):,} alerts</summary>{table}</details>"
    return (
        f"<h2>Alerts and their reasons</h2>{_leading(tried)}"
        '<p class="soft">The highest alerts of each kind. For each field: the actual value, the value that the model '
        "expected from the other fields and the history, the surprise (0 = as expected), and the score with the "
        "expected value.</p>"
        f'<div class="cards">{cards}</div>{more}'
    )


def _leading(tried: Tried) -> str:
    """Number of alerts by their strongest reason."""
    counts = Counter(_lead(alert) for _, alert in tried.alerts).most_common(8)
    listed = ", ".join(f"<b>{_text(name)}</b> {n:,}" for name, n in counts)
    return f"<p>By their strongest reason: {listed}.</p>"


def _varied(alerts: Sequence[tuple[int, Alert]]) -> list[tuple[int, Alert]]:
    """The highest alerts, taken in turn from each strongest reason."""
    by_field: dict[str, list[tuple[int, Alert]]] = {}
    for one in alerts:
        by_field.setdefault(_lead(one[1]), []).append(one)
    places = sorted((place, -one[1].score, one[0]) for group in by_field.values() for place, one in enumerate(group))
    chosen = {row for _, _, row in places[:N_CARDS]}
    return [one for one in alerts if one[0] in chosen]


def _lead(alert: Alert) -> str:
    return alert.reasons[0].field if alert.reasons else "none"


def _card(tried: Tried, row: int, alert: Alert, is_fraud: bool) -> str:
    tag = '<em class="tag">fraud</em>' if is_fraud else ""
    others = ", ".join(f"{n} {v}" for n, v in alert.entities.items() if n != tried.stream.key and v)
    rows = [
        (r.field, _value(r.actual), _value(r.expected), f"{r.surprise:.1f}", f"{r.score_if_expected:.3f}")
        for r in alert.reasons
    ]
    return (
        f'<div class="card{" right" if is_fraud else ""}"><h3>{_text(f"{tried.stream.key} {_key(tried, alert)}")} {tag}'
        f"<span>score {alert.score:.4f}</span></h3>"
        f'<div class="soft">row {row:,}, {_when(alert.event_time)} UTC{_text(f", {others}" if others else "")}</div>'
        + _table(("field", "actual", "expected", "surprise", "score if expected"), rows)
        + "</div>"
    )


def _learned(tried: Tried) -> str:
    most = max((one.gain for one in tried.learned), default=1.0)
    rows = "".join(
        f"<tr><td>{_text(one.name)}</td><td><i class='bar{'' if one.is_predictable else ' off'}' "
        f"style='width:{max(one.gain, 0) / max(most, 1e-9) * 220:.0f}px'></i></td>"
        f"<td>{'' if one.is_predictable else 'hardly; its values are never a surprise'}</td></tr>"
        for one in tried.learned
    )
    history = ", ".join(tried.stream.entities)
    return (
        "<h2>What the model has learned</h2>"
        f"<p>The model predicts each field of an event from the others and from {len(tried.stream.features)} window "
        f"features of {_text(history)}. The better a field can be predicted, the more a deviation counts.</p>"
        f"<table><tr><th>field</th><th>how predictable</th><th></th></tr>{rows}</table>"
    )


def _refused(tried: Tried) -> str:
    again = (
        f"<p>Duplicates (rows that repeat an event id; not scored): {tried.n_duplicates:,}.</p>"
        if tried.n_duplicates
        else ""
    )
    if not tried.refused:
        return f"<h2>Refused rows</h2><p>None: every row satisfies the contract of the stream file.</p>{again}"
    rows = [(r.rule, r.field, f"{r.n_rows:,}", f"row {r.row:,}: {r.detail}", r.fix) for r in tried.refused]
    return "<h2>Refused rows</h2>" + _table(("rule", "field", "rows", "example", "how to fix"), rows) + again


def _unknown(tried: Tried, notes: Sequence[str]) -> str:
    found = "".join(f"<li>{_text(one)}</li>" for one in (*_limits(tried), *notes))
    return f"<h2>Limits of this result</h2><ul>{found}</ul>"


def _limits(tried: Tried) -> Iterator[str]:
    learned = span_words(tried.split_ms - tried.begin_ms)
    yield f"The training period is {learned}. Slower changes, such as seasons, are unknown to the model."
    if tried.new_share >= 0.001:
        yield (
            f"{tried.new_share:.1%} of the scored events are of a {tried.stream.key} that does not occur in the "
            "training period. For them the model knows only the usual behaviour of others."
        )
    if not tried.has_head:
        why = "the file has no label column"
        if tried.stream.labels:
            why = f"{tried.n_known_frauds:,} frauds were known by then"
        yield (
            f"The score does not use labels, because {why}. It ranks events by how unusual they are; it is not a "
            "probability."
        )
    weak = [one.name for one in tried.learned if not one.is_predictable]
    if weak:
        yield f"These fields could not be predicted, so their values alone raise no alert: {', '.join(weak)}."
    yield "The rows were sorted by time. In live scoring, events and labels can be late or out of order."


def _next(file: str, stream_file: str) -> str:
    return (
        "<h2>Next steps</h2><p>Change types, windows or the alert budget in "
        f"<code>{_text(stream_file)}</code> and run <code>unmask try {_text(stream_file)} {_text(file)}</code> again. "
        "Then send events to Kafka and run the flows with the same stream file; see the README.</p>"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _reasons_line(reasons: Sequence[Reason]) -> str:
    return "; ".join(f"{r.field} {_value(r.actual)} (expected {_value(r.expected)})" for r in reasons)


def _key(tried: Tried, alert: Alert) -> str:
    return alert.entities.get(tried.stream.key) or ""


def _value(value: float | str | None) -> str:
    if value is None:
        return "missing"
    if isinstance(value, str):
        return value if len(value) <= MAX_SHOWN else f"{value[: MAX_SHOWN - 1]}…"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _when(stamp: str) -> str:
    return stamp[:16].replace("T", " ")


def _day(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d}"


def _text(text: str) -> str:
    """Escape untrusted text for HTML."""
    return escape(clean(text))
