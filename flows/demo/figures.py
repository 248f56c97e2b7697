"""The figures of a demo: is every event accounted for, do scores agree, how good are they, and what surprises."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from flows.demo.live import LiveRun
from flows.demo.source import Source
from flows.screen import plain
from pipelines.contracts.stream import DAY_MS
from pipelines.lake.audit import Reconciliation, SkewAudit

GAP_OF_AP = 0.1  # of average precision, from the validation period to the live part: worth an explanation
QUEUE_MS = 500.0  # a median latency above this is not that of a scorer that keeps up
BUSY_SHARE = 0.8  # of the rate asked for: a sender below it was held up itself


@dataclass(frozen=True)
class Quality:
    """Alerts and scores against the truth, on the scored events of the live part.

    Args:
        n_frauds: scored events that are fraud.
        precision: share of the alerts that are fraud.
        recall: share of the frauds that alerted.
        average_precision: of the scores.
    """

    n_frauds: int
    precision: float
    recall: float
    average_precision: float


@dataclass(frozen=True)
class Figures:
    """Everything that a demo measured.

    Args:
        broker: name and address.
        live: what was sent and came back.
        books: each event's outcome, by offsets in Kafka.
        skew: live scores against those recomputed from the lake.
        quality: None without a truth.
        validation_ap: average precision on the validation period of the champion's training; None without labels.
        validation_ap_delayed: the same, if the training had known labels only as late as they are known in service.
        backtest: figure by name such as `champion_average_precision`; empty without a truth.
        seconds: how long the demo took.
    """

    broker: str
    live: LiveRun
    books: Reconciliation
    skew: SkewAudit
    quality: Quality | None
    validation_ap: float | None
    validation_ap_delayed: float | None
    backtest: Mapping[str, float]
    seconds: float

    @property
    def n_accounted(self) -> int:
        """Events with an outcome."""
        return self.books.n_scored + self.books.n_refused + self.books.n_duplicates

    @property
    def all_accounted(self) -> bool:
        """Every event sent has exactly one outcome."""
        books = self.books
        return books.is_complete and books.n_events == self.n_accounted == self.live.n_sent

    @property
    def scores_agree(self) -> bool:
        """Every score was recomputed offline, from equal features, and came out the same."""
        return self.skew.holds and self.skew.checked == self.skew.equal == self.books.n_scored

    @property
    def holds(self) -> bool:
        """Nothing is lost and nothing differs."""
        return self.all_accounted and self.scores_agree

    def summary(self) -> dict[str, Any]:
        """For summary.json."""
        quality = self.quality
        return {
            "broker": self.broker,
            "events": self.books.n_events,
            "scored": self.books.n_scored,
            "refused": self.books.n_refused,
            "duplicates": self.books.n_duplicates,
            "alerts": len(self.live.alerts),
            "events_per_second": round(self.books.n_events / self.live.scoring_s, 1),
            "latency_ms": self.live.latency_ms,
            "alert_precision": round(quality.precision, 4) if quality else None,
            "alert_recall": round(quality.recall, 4) if quality else None,
            "average_precision": round(quality.average_precision, 4) if quality else None,
            "validation_average_precision": None if self.validation_ap is None else round(self.validation_ap, 4),
            "validation_average_precision_labels_delayed": (
                None if self.validation_ap_delayed is None else round(self.validation_ap_delayed, 4)
            ),
            "out_of_order": sum(s.out_of_order for s in self.live.scores.values()),
            "skew_audit": {
                "checked": self.skew.checked,
                "equal": self.skew.equal,
                "scored_again": self.skew.n_model_checked,
                "worst_score_difference": self.skew.worst_score_difference,
            },
            "backtest": {name: round(figure, 4) for name, figure in self.backtest.items()},
            "seconds": round(self.seconds, 1),
        }

    def verdict(self) -> str:
        """One sentence: whether all checks hold, and the result."""
        books = self.books
        outcomes = f"{books.n_scored:,} scored, {books.n_refused:,} refused, {books.n_duplicates:,} duplicates"
        if not self.holds:
            return f"The check does not hold: {'; '.join(self._failures(outcomes))}."
        n = len(self.live.alerts)
        right = f", {self.quality.precision:.0%} of them fraud" if self.quality and n else ""
        return (
            f"All {self.live.n_sent:,} events are accounted for ({outcomes}), and scores offline and live agree; "
            f"{n:,} alerts{right}."
        )

    def _failures(self, outcomes: str) -> list[str]:
        said = []
        if not self.all_accounted:
            problems = [f"{n:,} {what.replace('_', ' ')}" for what, n in self.books.n_problems.items() if n]
            problems += [f"{self.books.pending:,} not scored yet"] if self.books.pending else []
            said.append(f"{self.live.n_sent:,} events were sent, {self.n_accounted:,} are accounted for ({outcomes})"
                        + (f": {', '.join(problems)}" if problems else ""))  # fmt: skip
        if not self.scores_agree:
            skew = self.skew
            said.append(
                f"of {self.books.n_scored:,} scores {skew.checked:,} were compared with the lake, {skew.equal:,} have "
                f"equal features, {skew.n_model_checked:,} were recomputed and {skew.n_score_differs:,} of those differ"
                + (f", for example {plain(skew.examples[0])}" if skew.examples else "")
            )
            said += [f"model {plain(m.digest[:12])}: {plain(m.why_not)}" for m in skew.models if m.why_not]
        return said

    def explanations(self, source: Source) -> list[str]:
        """Explanations of surprising figures; only of those in this run."""
        return [words for words in (self._why_ap_fell(source), self._why_latency()) if words]

    def _why_ap_fell(self, source: Source) -> str | None:
        if self.quality is None or self.validation_ap is None:
            return None
        if self.validation_ap - self.quality.average_precision < GAP_OF_AP:
            return None
        days = source.label_delay_ms / DAY_MS
        n_unknown = _n_first_frauds(source)
        delayed = ""
        if self.validation_ap_delayed is not None:
            delayed = f"; with labels that late, the validation period gives {self.validation_ap_delayed:.2f}"
        return (
            f"Average precision was {self.validation_ap:.2f} on the validation period and is "
            f"{self.quality.average_precision:.2f} live. Labels arrive {days:g} days after their events, so the model "
            f"and its features know no fraud of the last {days:g} days{delayed}. And where fraud happens changes: "
            f"for {n_unknown / max(self.quality.n_frauds, 1):.0%} of the live frauds, no earlier fraud of the same "
            f"{' or '.join(source.stream.entities)} was known at that time. The report of the next fine-tuning after "
            "an ingest shows both periods."
        )

    def _why_latency(self) -> str | None:
        live = self.live
        if not live.latency_ms["p50"] > QUEUE_MS:
            return None
        sent, scored = live.n_sent / live.sending_s, live.n_sent / live.scoring_s
        if sent < BUSY_SHARE * live.rate:
            return (
                f"The machine was busy: {live.rate:,.0f} events/s were to be sent, but only {sent:,.0f} events/s could "
                "be. Throughput and latency are those of this machine under other load."
            )
        if live.scoring_s < 1.1 * live.sending_s:
            return None
        return (
            f"Latency is that of a full queue: {sent:,.0f} events/s were sent and {scored:,.0f} events/s were scored, "
            f"so events waited. `unmask demo --rate {max(1, int(scored * 0.5)):d}` shows the latency without a queue."
        )


def quality_of(source: Source, live: LiveRun) -> Quality | None:
    """Alerts and scores against the truth; None without one."""
    stream = source.stream
    if not source.has_truth or stream.labels is None or not live.scores:
        return None
    from sklearn.metrics import average_precision_score, precision_score, recall_score

    ids = source.frame[stream.event_id].cast(pl.String)
    truth_of = dict(zip(ids, source.frame[stream.labels.column], strict=True))
    scores = [s for s in live.scores.values() if truth_of[s.event_id] is not None]
    truth = np.array([truth_of[s.event_id] for s in scores], np.int8)
    alert = np.array([s.alert for s in scores], np.int8)
    return Quality(
        n_frauds=int(truth.sum()),
        precision=float(precision_score(truth, alert, zero_division=0)),
        recall=float(recall_score(truth, alert, zero_division=0)),
        average_precision=float(average_precision_score(truth, [s.score for s in scores])),
    )


def _n_first_frauds(source: Source) -> int:
    """Live frauds of entities none of which had a fraud whose label had arrived by then."""
    stream = source.stream
    assert stream.labels is not None
    frame = source.frame.filter(source.frame[stream.labels.column] == 1)
    times = frame[stream.event_time].dt.epoch("ms").to_numpy()
    known = np.zeros(len(times), bool)
    for entity in stream.entities:
        first: dict[object, int] = {}
        for i, value in enumerate(frame[entity].to_list()):
            known[i] |= first.setdefault(value, int(times[i])) + source.label_delay_ms <= times[i]
    live = (times >= source.live_from_ms) & (times < source.live_until_ms)
    return int((live & ~known).sum())
