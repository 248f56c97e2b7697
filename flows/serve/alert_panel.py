"""Display alerts on a terminal: an alert or a review as a panel, anything else as one line."""

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from flows.screen import clean
from pipelines.contracts.delays import ScoringDelayed
from pipelines.contracts.messages import Alert, AlertOverflow, AlertRecord, AlertUpdate, Review, SuppressedAlert


def shown_record(record: AlertRecord) -> Panel | Text:
    """A panel for an alert or a review, a line for anything else."""
    if isinstance(record, Alert | Review):
        return panel(record)
    if isinstance(record, ScoringDelayed):
        return delay_line(record)
    if isinstance(record, SuppressedAlert):
        return suppressed_line(record)
    return update_line(record) if isinstance(record, AlertUpdate) else overflow_line(record)


def delay_line(delay: ScoringDelayed) -> Text:
    """One line: scores of a partition come late, or no longer."""
    line = Text(f"partition {delay.partition}: ")
    if delay.recovered:
        line.append("scores come in time again", style="bold green")
        return line.append(f"   {clean(delay.at)}   at most {delay.highest_lag_ms / 1000:,.0f} s late")
    line.append(f"scores come {delay.lag_ms / 1000:,.0f} s late", style="bold yellow")
    return line.append(f"   {clean(delay.at)}   events since {clean(delay.since)}")


def suppressed_line(alert: SuppressedAlert) -> Text:
    """One line: the score, whose alerts are suppressed, until when, by whom and why."""
    of = alert.suppression
    line = Text(f"suppressed alert {clean(alert.alert_id[:12])}: {clean(of.entity)} {clean(of.id)}   ")
    line.append(f"score {alert.score:.3f}", style="yellow")
    line.append(f"   event {clean(alert.event_id)}   {clean(alert.event_time)}")
    return line.append(f"   until {clean(of.until)} by {clean(of.by)}: {clean(of.why)}", style="dim")


def update_line(update: AlertUpdate) -> Text:
    """One line: the entity, the count and the highest score of a group, and its last event."""
    entity = "   ".join(f"{clean(name)} {shown(value)}" for name, value in update.entities.items())
    line = Text(f"alert {clean(update.group_id[:12])}: {entity}   ")
    line.append(f"{update.count:,} alerts, highest score {update.highest_score:.3f}", style="bold red")
    last = f"   last event {clean(update.event_id)}   {clean(update.event_time)}"
    return line.append(last + ("   closed" if update.closed else ""))


def overflow_line(overflow: AlertOverflow) -> Text:
    """One line: how many alerts are beyond the cap, and the highest score among them."""
    line = Text(f"beyond the cap of {clean(overflow.day)}: ")
    line.append(f"{len(overflow.events):,} alerts, highest score {overflow.highest_score:.3f}", style="bold yellow")
    return line.append(f"   partition {overflow.partition}   {overflow.n_overflow:,} that day")


def panel(alert: Alert | Review) -> Panel:
    """A panel with score, entities, unexpected fields, and the score with their expected values."""
    event_id, event_time = clean(alert.event_id), clean(alert.event_time)
    head = Text()
    head.append(f"score {alert.score:.3f}", style="bold red" if alert.alert else "bold")
    head.append(f"  (threshold {alert.threshold:.3f})   event {event_id}   {event_time}\n")
    head.append("   ".join(f"{clean(name)} {shown(value)}" for name, value in alert.entities.items()))
    if alert.late_ms:
        head.append(f"   {alert.late_ms / 1000:.0f} s late", style="yellow")
    reasons = Table(box=None, pad_edge=False, header_style="bold")
    reasons.add_column("field", overflow="fold")
    for name in ("actual", "expected", "surprise", "score if expected"):
        reasons.add_column(name, justify="right", no_wrap=True)
    for r in alert.reasons:
        cells = (clean(r.field), shown(r.actual), shown(r.expected), f"{r.surprise:.1f}", f"{r.score_if_expected:.3f}")
        reasons.add_row(*map(Text, cells))
    foot = Text(f"all as expected: {alert.score_if_all_expected:.3f}   model {clean(alert.model[:12])}", style="dim")
    title = f"alert {alert.alert_id[:12]}" if isinstance(alert, Alert) else f"random review {alert.review_id[:12]}"
    return Panel(Group(head, Text(), reasons, foot), title=Text(clean(title)), title_align="left")


def shown(value: float | str | None) -> str:
    """Format a value for display.

    >>> shown(1234.5678), shown(None), shown("online")
    ('1,234.57', '–', 'online')
    """
    if value is None:
        return "–"
    if isinstance(value, str):
        return clean(value)
    return f"{value:,.2f}" if abs(value) < 1e6 else f"{value:.3g}"
