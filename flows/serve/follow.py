"""Following scores and alerts with an ordinary consumer, showing them to people, and sending a label back."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import polars as pl
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from flows.screen import clean
from pipelines.contracts.messages import Alert, Score, T, decode, rfc3339
from pipelines.contracts.stream import Stream
from pipelines.errors import UnmaskError
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message, Received
from pipelines.lake.tables import Lake

log = logging.getLogger(__name__)


class UnknownEventError(UnmaskError):
    """The lake does not hold an event with that id."""


def alerts(connection: Connection, stream: Stream, *, follow: bool, last: int) -> Iterator[Alert]:
    """The last alerts of each partition, then, with `follow`, new ones as they come."""
    topic = stream.topic("alerts")
    spans = topics.bounds(connection, [topic])
    # Each transaction leaves a control marker beside its records, hence twice as far back.
    starts = {position: (max(first, end - 2 * last), end) for position, (first, end) in spans.items()}
    kept = [alert for batch in topics.read_between(connection, starts) for alert in readable(batch, Alert)]
    yield from sorted(kept, key=lambda a: a.arrival)[-last:] if last else ()
    if not follow:
        return
    with connection.reader({position: end for position, (_, end) in spans.items()}) as reader:
        while True:
            yield from readable(reader.poll(timeout_ms=500), Alert)


def readable(records: Sequence[Received], kind: type[T]) -> Iterator[T]:
    """The messages of a kind among some records; what is none is skipped, with a warning that names its place."""
    for record in records:
        try:
            yield decode(record.value, kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            log.warning(
                "%s [%d], offset %d, is no %s of Unmask and was skipped",
                record.topic, record.partition, record.offset, kind.__name__.lower(),
            )  # fmt: skip


class Follower:
    """An ordinary read_committed consumer of scores and alerts, in a thread of its own."""

    def __init__(self, connection: Connection, stream: Stream) -> None:
        names = [stream.topic("scores"), stream.topic("alerts")]
        self._alerts_topic = names[1]
        ends = {position: end for position, (_, end) in topics.bounds(connection, names).items()}
        self._reader = connection.reader(ends)
        self._sent_s: dict[str, float] = {}
        self._read_s: dict[str, float] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self.scores: dict[str, Score] = {}
        self.alerts: list[Alert] = []
        self.last_read_s = time.monotonic()
        self.seconds = 0.0
        self.n_sent = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=10)
        self._reader.close()

    def sent(self, event_id: str, wall_s: float) -> None:
        """Note when an event was sent (`time.time()`); of duplicates the first counts."""
        self._sent_s.setdefault(event_id, wall_s)

    def latency_ms(self) -> dict[str, float]:
        """p50 and p99 from sending an event to reading its score."""
        waits = [1000 * (at - self._sent_s[i]) for i, at in self._read_s.items() if i in self._sent_s]
        p50, p99 = np.percentile(waits, [50, 99]) if waits else (float("nan"), float("nan"))
        return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}

    def _run(self) -> None:
        while not self._stopping.is_set():
            records = self._reader.poll()
            now_s = time.time()
            self.alerts += readable([r for r in records if r.topic == self._alerts_topic], Alert)
            for score in readable([r for r in records if r.topic != self._alerts_topic], Score):
                self.scores[score.event_id] = score
                self._read_s[score.event_id] = now_s
            if records:
                self.last_read_s = time.monotonic()


def panel(alert: Alert) -> Panel:
    """An alert for a person: who, how odd, which fields, and what would have made it ordinary."""
    event_id, event_time = clean(alert.event_id), clean(alert.event_time)
    head = Text()
    head.append(f"score {alert.score:.3f}", style="bold red")
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
    title = Text(f"alert {clean(alert.alert_id[:12])}")
    return Panel(Group(head, Text(), reasons, foot), title=title, title_align="left")


def shown(value: float | str | None) -> str:
    """A value for people.

    >>> shown(1234.5678), shown(None), shown("online")
    ('1,234.57', '–', 'online')
    """
    if value is None:
        return "–"
    if isinstance(value, str):
        return clean(value)
    return f"{value:,.2f}" if abs(value) < 1e6 else f"{value:.3g}"


def send_label(connection: Connection, stream: Stream, lake: Lake, *, event_id: str, label: int, source: str) -> None:
    """Write the label record of an event that the lake holds.

    Raises:
        UnknownEventError: the lake does not hold the event (yet).
    """
    events = lake.read("events", columns=["partition", "event_id", "event_time_ms", *stream.entities])
    event = next(events.filter(pl.col("event_id") == event_id).iter_rows(named=True), None)
    if event is None:
        raise UnknownEventError(
            f"{stream.name}: the lake holds no event {event_id!r}; check the id, or run `unmask ingest` if it just came"
        )
    record = {
        stream.event_id: _typed(stream, stream.event_id, event_id),
        stream.event_time: event["event_time_ms"],
        **{e: _typed(stream, e, event[e]) for e in stream.entities if event[e] is not None},
        "label": label,
        "labelled_at": rfc3339(int(time.time() * 1000)),
        "source": source,
    }
    value, key = msgspec.json.encode(record), event[stream.key].encode()
    with connection.writer() as writer:
        writer.send(Message(stream.topic("labels"), value, key, event["partition"]))
        writer.flush()


def _typed(stream: Stream, field: str, text: str) -> int | str:
    return int(text) if stream.field(field).type == "int" else text
