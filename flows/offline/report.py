"""The report of `unmask try`: a self-contained HTML page."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from flows import html
from flows.html import table, text, value
from flows.offline import charts
from flows.offline.check import span_words
from flows.offline.tryout import Figures, Tried
from pipelines.contracts.messages import Alert, Reason

N_CARDS = 12
N_LISTED = 100


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
    return html.page(f"Unmask: {tried.stream.name}", parts)


def _head(tried: Tried, file: str) -> str:
    learned = f"{_day(tried.begin_ms)} to {_day(tried.split_ms)}"
    return (
        f"<h1>Unmask report: {text(file)}</h1>"
        f'<p class="soft">The model was trained on the first {tried.n_learned:,} events ({learned}) and scored the '
        f"{len(tried.score):,} events after them, to {_day(tried.end_ms)}, as in live scoring. It took "
        f"{_took(tried)}.</p>"
        f'<p class="lead">{text(headline(tried))}.</p>'
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
    return html.tiles(tiles)


def _charts(tried: Tried) -> str:
    drawn = [("Scores", charts.score_histogram(tried)), ("Alerts over time", charts.alerts_over_time(tried))]
    return f"<h2>Scores and alerts</h2>{html.figures(drawn)}"


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
    return f'<h2>Accuracy</h2><div class="two"><div>{table(("figure", "value"), rows)}</div>{curve}</div>'


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
        listed = table(("row", "time (UTC)", tried.stream.key, "score", "reasons", ""), lines)
        more = f"<details><summary>The next {len(rest):,} alerts</summary>{listed}</details>"
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
    listed = ", ".join(f"<b>{text(name)}</b> {n:,}" for name, n in counts)
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
        (r.field, value(r.actual), value(r.expected), f"{r.surprise:.1f}", f"{r.score_if_expected:.3f}")
        for r in alert.reasons
    ]
    return (
        f'<div class="card{" right" if is_fraud else ""}"><h3>{text(f"{tried.stream.key} {_key(tried, alert)}")} {tag}'
        f"<span>score {alert.score:.4f}</span></h3>"
        f'<div class="soft">row {row:,}, {_when(alert.event_time)} UTC{text(f", {others}" if others else "")}</div>'
        + table(("field", "actual", "expected", "surprise", "score if expected"), rows)
        + "</div>"
    )


def _learned(tried: Tried) -> str:
    most = max((one.gain for one in tried.learned), default=1.0)
    rows = "".join(
        f"<tr><td>{text(one.name)}</td><td><i class='bar{'' if one.is_predictable else ' off'}' "
        f"style='width:{max(one.gain, 0) / max(most, 1e-9) * 220:.0f}px'></i></td>"
        f"<td>{'' if one.is_predictable else 'hardly; its values are never a surprise'}</td></tr>"
        for one in tried.learned
    )
    history = ", ".join(tried.stream.entities)
    return (
        "<h2>What the model has learned</h2>"
        f"<p>The model predicts each field of an event from the others and from {len(tried.stream.features)} window "
        f"features of {text(history)}. The better a field can be predicted, the more a deviation counts.</p>"
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
    return "<h2>Refused rows</h2>" + table(("rule", "field", "rows", "example", "how to fix"), rows) + again


def _unknown(tried: Tried, notes: Sequence[str]) -> str:
    return f"<h2>Limits of this result</h2>{html.bullets((*_limits(tried), *notes))}"


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
        f"<code>{text(stream_file)}</code> and run <code>unmask try {text(stream_file)} {text(file)}</code> again. "
        "Then send events to Kafka and run the flows with the same stream file; see the README.</p>"
    )


def _reasons_line(reasons: Sequence[Reason]) -> str:
    return "; ".join(f"{r.field} {value(r.actual)} (expected {value(r.expected)})" for r in reasons)


def _key(tried: Tried, alert: Alert) -> str:
    return alert.entities.get(tried.stream.key) or ""


def _when(stamp: str) -> str:
    return stamp[:16].replace("T", " ")


def _day(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d}"
