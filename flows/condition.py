"""How the champion is doing, in figures and as a report."""

from dataclasses import dataclass

from flows.review.sections import Fact, Plot, Rows, Section
from models import plots
from models.drift import Drift, Moved
from models.evaluation import Share
from pipelines.contracts.messages import rfc3339
from pipelines.contracts.stream import Stream

WORSE = 0.5  # the precision of alerts has fallen if it is surely below this part of the earlier one


@dataclass(frozen=True)
class Condition:
    """How the champion is doing.

    Args:
        drift: which fields have moved; None if there are too few events to tell.
        why: that is why.
        alert_rate: share of the newest events that raise an alert.
        allowed_rate: share that its budget allows; None if it does not say.
        reviewed: frauds among the newest alerts with a known label.
        reviewed_before: the same of alerts in the reference.
    """

    model: str
    drift: Drift | None
    why: str
    alert_rate: float
    allowed_rate: float | None
    reviewed: Share
    reviewed_before: Share

    @property
    def is_worse(self) -> bool:
        """Whether fewer of the alerts are frauds than before, beyond chance."""
        now, before = self.reviewed, self.reviewed_before
        return now.n > 0 and before.n > 0 and now.high < WORSE * before.low

    @property
    def needs_training(self) -> bool:
        """Whether something has moved, or the alerts are worse."""
        return self.is_worse or (self.drift is not None and self.drift.has_drifted)

    @property
    def words(self) -> str:
        """The condition in one sentence."""
        if self.is_worse:
            return f"{self.reviewed.k} of {self.reviewed.n} reviewed alerts are frauds, which is fewer than before"
        if self.drift is None:
            return self.why
        if not self.drift.has_drifted:
            return f"no field has moved in the newest {self.drift.events:,} events"
        names = ", ".join(self.drift.fields) or "only the score"
        return f"moved in the newest {self.drift.events:,} events, the farthest first: {names}"


def drift_sections(stream: Stream, version: int, found: Condition) -> tuple[list[Fact], list[Section]]:
    """The report: what moved, and what alerts do."""
    seen = found.drift
    facts = [("stream", stream.name), ("champion", f"version {version}, model {found.model[:12]}")]
    alerts = Section("Alerts", [_alert_words(found)])
    if seen is None:
        return facts, [Section("Fields", [f"Not judged: {found.why}."]), alerts]
    facts += [
        ("newest events", f"{seen.events:,}, {rfc3339(seen.since_ms)} to {rfc3339(seen.until_ms)}"),
        ("reference", f"{seen.reference:,}, {rfc3339(seen.reference_since_ms)} to {rfc3339(seen.reference_until_ms)}"),
    ]
    head = ("field", "severity", "stability index", "limit", "surprise, nats", "limit", "distance, sd")
    rows = [[one.name, f"{one.severity:.2f}", *_cells(one)] for one in seen.moved]
    words = (
        "Severity is the farther of two figures, each as a multiple of its limit: the population stability index of "
        "the values, and how much more or less surprising they are to the encoder, which knows the other fields and "
        "the history. Above 1 the field has moved farther than days of the reference differ. The distance is that of "
        "Wasserstein."
    )
    fields = Section(
        "Fields",
        [words],
        [f"{found.words}."] if found.needs_training else [],
        [Plot("drift", plots.severities([(one.name, one.severity) for one in seen.moved]))],
        [Rows("drift", head, rows)],
    )
    return facts, [fields, alerts]


def _cells(one: Moved) -> list[str]:
    surprise = ("", "") if one.surprise is None else (f"{one.surprise:+.3f}", f"{one.surprise_limit:.3f}")
    distance = "" if one.distance is None else f"{one.distance:.3f}"
    return [f"{one.stability:.3f}", f"{one.stability_limit:.3f}", *surprise, distance]


def _alert_words(found: Condition) -> str:
    words = f"{found.alert_rate:.3%} of the newest events raise an alert"
    if found.allowed_rate:
        words += f"; the budget is {found.allowed_rate:.3%}"
    for one, when in ((found.reviewed, "since the training"), (found.reviewed_before, "held out in the training")):
        words += f"; of {one.n:,} alerts with a known label {when}, {one.k:,} are frauds"
        words += f" ({one.value:.0%})" if one.n else ""
    return f"{words}."
