"""Single events for a person to look at: the highest scores, hardest misses and false alarms, with their reasons."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from flows import html
from flows.review.data import when
from flows.review.sections import Rows
from models.score.explain import FieldReason
from models.ship.artifact import ServedModel
from models.table import Table

N_LISTED = 15
N_EXPLAINED = 200  # alerts whose reasons are counted


@dataclass(frozen=True)
class Scored:
    """Events with their scores. Shapes: (n,).

    Args:
        model: gave the scores.
        table: the events.
        event_id: their ids.
        score: in [0, 1].
        label: 1 = fraud; None: unknown.
    """

    model: ServedModel
    table: Table
    event_id: pl.Series
    score: NDArray[np.float32]
    label: NDArray[np.int8] | None = None

    @classmethod
    def of(
        cls, model: ServedModel, table: Table, event_id: pl.Series, label: NDArray[np.int8] | None = None
    ) -> "Scored":
        """Score a table."""
        return cls(model, table, event_id, model.score(table.numeric, table.categorical), label)

    @property
    def alert(self) -> NDArray[np.bool_]:
        """Which events are above the threshold."""
        return np.asarray(self.score > np.float32(self.model.threshold))

    def explained(self, rows: NDArray[np.int64]) -> list[list[FieldReason]]:
        """The reasons of some events."""
        chosen = self.table.take(np.sort(rows))
        found = self.model.explain(np.asarray(chosen.numeric[:]), np.asarray(chosen.categorical[:]))
        place = {row: at for at, row in enumerate(np.sort(rows).tolist())}
        return [found[place[row]].reasons for row in rows.tolist()]


def highest(scored: Scored) -> Rows:
    """The highest scores."""
    return _listed("highest_scores", scored, np.argsort(-scored.score, kind="stable")[:N_LISTED])


def misses(scored: Scored) -> Rows:
    """Frauds without an alert, the lowest scores first."""
    assert scored.label is not None
    rows = np.flatnonzero((scored.label == 1) & ~scored.alert)
    return _listed("hardest_misses", scored, rows[np.argsort(scored.score[rows], kind="stable")][:N_LISTED])


def false_alarms(scored: Scored) -> Rows:
    """Alerts that are no fraud, the highest scores first."""
    assert scored.label is not None
    rows = np.flatnonzero((scored.label != 1) & scored.alert)
    return _listed("false_alarms", scored, rows[np.argsort(-scored.score[rows], kind="stable")][:N_LISTED])


def surprising_fields(scored: Scored) -> Rows:
    """How often each field is the strongest reason of an alert, of the highest alerts."""
    alerts = np.flatnonzero(scored.alert)
    alerts = alerts[np.argsort(-scored.score[alerts], kind="stable")][:N_EXPLAINED]
    leading: Counter[str] = Counter()
    surprise: dict[str, list[float]] = {}
    for reasons in scored.explained(alerts) if len(alerts) else ():
        leading.update(reason.field for reason in reasons[:1])
        for reason in reasons:
            surprise.setdefault(reason.field, []).append(reason.surprise)
    rows = [
        (name, f"{leading[name]:,}", f"{len(found):,}", f"{float(np.mean(found)):.1f}")
        for name, found in sorted(surprise.items(), key=lambda one: (-leading[one[0]], -len(one[1])))
    ]
    return Rows("surprising_fields", ("field", "strongest reason", "any reason", "mean surprise (nats)"), rows)


def _listed(name: str, scored: Scored, rows: NDArray[np.int64]) -> Rows:
    head = ("event", "time (UTC)", "score", "reasons: value (expected), score if expected")
    if len(rows) == 0:
        return Rows(name, head, [])
    texts = [_words(reasons) for reasons in scored.explained(rows)]
    ids, times = scored.event_id.gather(rows).to_list(), when(scored.table.time_ms[rows])
    scores = [f"{one:.4f}" for one in scored.score[rows].tolist()]
    return Rows(name, head, list(zip(ids, times, scores, texts, strict=True)))


def _words(reasons: Sequence[FieldReason]) -> str:
    return "; ".join(
        f"{r.field} {html.value(r.actual)} ({html.value(r.expected)}), {r.score_if_expected:.3f}" for r in reasons
    )
