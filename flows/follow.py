"""Reading alerts as a person would, and sending a label back."""

import time
from collections.abc import Iterator

import msgspec
import polars as pl
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pipelines import broker
from pipelines.alerts import Alert, decode, rfc3339
from pipelines.broker import Connection, Message, Reader, Writer
from pipelines.errors import UnmaskError
from pipelines.lake import Lake
from pipelines.stream import Stream


class UnknownEventError(UnmaskError):
    """The lake does not hold an event with that id."""


def alerts(connection: Connection, stream: Stream, *, follow: bool, last: int) -> Iterator[Alert]:
    """The last alerts of each partition, then, with `follow`, new ones as they come."""
    topic = stream.topic("alerts")
    spans = broker.bounds(connection, [topic])
    # Each transaction leaves a control marker beside its records, hence twice as far back.
    starts = {position: (max(first, end - 2 * last), end) for position, (first, end) in spans.items()}
    kept = [decode(r.value, Alert) for batch in broker.read_between(connection, starts) for r in batch]
    yield from sorted(kept, key=lambda a: a.arrival)[-last:] if last else ()
    if not follow:
        return
    with Reader(connection, {position: end for position, (_, end) in spans.items()}) as reader:
        while True:
            for record in reader.poll(timeout_ms=500):
                yield decode(record.value, Alert)


def panel(alert: Alert) -> Panel:
    """An alert for a person: who, how odd, which fields, and what would have made it ordinary."""
    head = Text()
    head.append(f"score {alert.score:.3f}", style="bold red")
    head.append(f"  (threshold {alert.threshold:.3f})   event {alert.event_id}   {alert.event_time}\n")
    head.append("   ".join(f"{name} {value}" for name, value in alert.entities.items()))
    if alert.late_ms:
        head.append(f"   {alert.late_ms / 1000:.0f} s late", style="yellow")
    reasons = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("field", "actual", "expected", "surprise", "score had it been as expected"):
        reasons.add_column(name, justify="left" if name == "field" else "right")
    for r in alert.reasons:
        reasons.add_row(
            r.field, shown(r.actual), shown(r.expected), f"{r.surprise:.1f}", f"{r.score_if_expected:.3f}"
        )
    foot = Text(f"all as expected: {alert.score_if_all_expected:.3f}   model {alert.model[:12]}", style="dim")
    return Panel(Group(head, Text(), reasons, foot), title=f"alert {alert.alert_id[:12]}", title_align="left")


def shown(value: float | str | None) -> str:
    """A value for people.

    >>> shown(1234.5678), shown(None), shown("online")
    ('1,234.57', '–', 'online')
    """
    if value is None:
        return "–"
    if isinstance(value, str):
        # Control characters of an attacker's text must not steer the terminal.
        return "".join(c if c.isprintable() else "�" for c in value)
    return f"{value:,.2f}" if abs(value) < 1e6 else f"{value:.3g}"


def send_label(
    connection: Connection, stream: Stream, lake: Lake, *, event_id: str, label: int, source: str
) -> None:
    """Write the label record of an event that the lake holds.

    Raises:
        UnknownEventError: the lake does not hold the event (yet).
    """
    events = lake.read("events", columns=["partition", "event_id", "event_time_ms", *stream.entities])
    event = next(events.filter(pl.col("event_id") == event_id).iter_rows(named=True), None)
    if event is None:
        raise UnknownEventError(
            f"{stream.name}: the lake holds no event {event_id!r}; check the id, or run `unmask ingest` if it came just now"
        )
    record = {
        stream.event_id: _typed(stream, stream.event_id, event_id),
        stream.event_time: event.time_ms,
        **{
            e: _typed(stream, e, v)
            for e, v in zip(stream.entities, event.entity_ids, strict=True)
            if v is not None
        },
        "label": label,
        "labelled_at": rfc3339(int(time.time() * 1000)),
        "source": source,
    }
    key = event.entity_ids[0]
    assert key is not None
    with Writer(connection) as writer:
        writer.send(
            Message(stream.topic("labels"), msgspec.json.encode(record), key.encode(), event.partition)
        )
        writer.flush()


def _typed(stream: Stream, field: str, text: str) -> int | str:
    return int(text) if stream.field(field).type == "int" else text
