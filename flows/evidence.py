"""Evidence for a promotion: the candidate beside the models before it, on the same matured events and live."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from flows import gate
from flows.lineage import HELD_OUT_FROM, LEARNED_UNTIL, time_of
from flows.serve.model import ColumnsByName, loaded_model, score_table
from flows.settings import Settings, registry_name
from flows.training_data import TrainingData
from models.evaluation import stability_index
from models.fit import leaks
from models.fit.leaks import Alone
from models.paired import Difference, paired
from models.ship import registry
from models.ship.manifest import ArtifactError
from models.table import Table
from pipelines.contracts.stream import Stream
from pipelines.lake.labels import is_mature

MIN_COMPARED = 5  # frauds: with fewer, no comparison with a former model says anything
TOP = 0.01  # share of the events whose scores are the highest
MAX_EXPLAINED = 200  # alerts whose reasons are tried out
MAX_SCORED = 200_000  # newest rows that are scored for the distribution of scores
BATCH, TIMED = 1_024, 15  # rows of a batch whose time is taken, and how often


@dataclass(frozen=True)
class Versus:
    """The candidate and another model on the same events.

    Args:
        average_precision: of both, and the interval of the difference.
        precision: among as many of the highest scores as the budget allows.
        n_alerts: that many.
        frauds: among these events.
        learned: whether the other model was trained on some of them, so that its figures are too good.
        time: of scoring a batch, as a multiple of that of the other model.
    """

    average_precision: Difference
    precision: Difference
    n_alerts: int
    frauds: int
    learned: bool
    time: float


@dataclass(frozen=True)
class Shadow:
    """What the candidate did in shadow, beside the champion on the same live events.

    Args:
        events: scored by both.
        alert_rate, champion_alert_rate: shares of them over the threshold.
        rank_correlation: Spearman's, of the scores of both; None if it is not defined.
    """

    events: int
    alert_rate: float
    champion_alert_rate: float
    rank_correlation: float | None


@dataclass(frozen=True)
class Evidence:
    """Measurements of a candidate.

    Args:
        since_ms, until_ms: event times of the judged events, none of which it was trained on.
        frauds: known frauds among the events with a known label.
        rows: number of all events since then, also without a known label.
        finite: whether each of their scores is a number.
        distinct: number of different scores.
        alert_rate, allowed_rate: share that raises an alert, and share that the budget allows.
        cost: on the known labels, of alerts and missed frauds, of no alert, of only alerts; empty without cost budget.
        bias: expected frauds (the sum of scores) / known frauds; None if the scores are not probabilities.
        reasons: share of the alerts that are none any more once the named fields are as expected; None without alerts.
        drift: population stability index of the scores, from before the period to within it.
        leaks: fields that know the label, and why.
        strongest: the field of the model that predicts the label best alone; None with too few frauds.
        shared: share of the highest scores that are the highest ones of the champion, too; None without a champion.
        formers: by name: champion, reference (the best former champion).
        not_compared: those that could not be compared, and why.
        shadow: None if it has not scored in shadow.
    """

    since_ms: int
    until_ms: int
    frauds: int
    rows: int
    finite: bool
    distinct: int
    alert_rate: float
    allowed_rate: float
    drift: float
    cost: Mapping[str, float] = field(default_factory=dict)
    bias: float | None = None
    reasons: float | None = None
    leaks: tuple[str, ...] = ()
    strongest: Alone | None = None
    shared: float | None = None
    formers: Mapping[str, Versus] = field(default_factory=dict)
    not_compared: Mapping[str, str] = field(default_factory=dict)
    shadow: Shadow | None = None


@dataclass(frozen=True)
class Former:
    """A model to compare with. If this is impossible, `model` is None and `why` is the reason.

    Args:
        learned_until_ms: it was trained on labels of events before this time; None = unknown.
    """

    version: int
    model: ColumnsByName | None
    learned_until_ms: int | None
    why: str = ""


def formers_of(settings: Settings, stream: Stream, champion: tuple[int, Mapping[str, str]]) -> dict[str, Former]:
    """The champion, and the best former champion, named by a tag of the champion if it is another version.

    Raises:
        RegistryError: MLflow does not answer.
    """
    version, tags = champion
    best = tags.get("gate_reference_version", "")
    reference = int(best) if best.isdecimal() else version
    found = {"champion": _former(settings, stream, version)}
    if reference == version:
        return found | {"reference": found["champion"]}
    return found | {"reference": _former(settings, stream, reference)}


def _former(settings: Settings, stream: Stream, version: int) -> Former:
    try:
        found, tags = registry.resolve_version(
            registry_name(stream), version, tracking_uri=settings.tracking_uri(), cache=settings.model_cache
        )
        model = loaded_model(settings, stream, found.digest)
    except (registry.NoVersionError, ArtifactError) as error:  # deleted, or of another format
        return Former(version, None, None, f"version {version} cannot be loaded: {error}")
    return Former(version, model, time_of(tags, LEARNED_UNTIL))


def measure(
    stream: Stream,
    candidate: ColumnsByName,
    tags: Mapping[str, str],
    data: TrainingData,
    entities: Mapping[str, NDArray[np.uint32]],
    formers: Mapping[str, Former],
    *,
    has_labels: bool,
    min_frauds: int,
    shadow: Shadow | None = None,
) -> Evidence:
    """Measure a candidate on the events of `data` that it was not trained on.

    Args:
        tags: of its version; `learned_until` and `held_out_from` say on what it was trained.
        entities: of each event; see `training_data.entities_of`.
        has_labels: whether it was trained on labels, so that its scores are probabilities.
        min_frauds: so many are enough to leave out events that a former model was trained on.
    """
    time_ms = data.table.time_ms
    final = is_mature(time_ms, stream.labels, as_of_ms=data.as_of_ms)  # early labels are those of fast frauds
    judged = np.flatnonzero(data.known & final & (time_ms >= _ms(tags, LEARNED_UNTIL, time_ms)))
    since_ms = _ms(tags, HELD_OUT_FROM, time_ms)
    start = int(np.searchsorted(time_ms, since_ms))
    newest, before = _rows(data.table, start, len(data.table)), _rows(data.table, 0, start)
    scores, truth = score_table(candidate, newest), data.label[judged]
    budget, n_frauds = candidate.own.rules.budget, int((data.label[judged] == 1).sum())
    allowed = gate.allowed_share(budget, newest.time_ms, validation_alert_rate=_rate(tags))
    rows = data.table.take(judged)
    ours = score_table(candidate, rows)
    can_judge = n_frauds >= min_frauds
    used = {column.of or column.name for column in candidate.own.columns}
    return Evidence(
        since_ms=int(time_ms[judged[0]] if len(judged) else newest.time_ms[0]),
        until_ms=int(time_ms[-1]),
        frauds=n_frauds,
        rows=len(newest),
        finite=bool(np.isfinite(scores).all()),
        distinct=len(np.unique(scores)),
        alert_rate=float(np.mean(scores > candidate.threshold)),
        allowed_rate=allowed,
        drift=stability(score_table(candidate, before), scores),
        cost=gate.cost_of(budget, ours, truth, candidate.threshold) if can_judge else {},
        bias=float(ours.sum()) / n_frauds if can_judge and has_labels else None,
        reasons=_true_reasons(candidate, newest, scores),
        leaks=_leaks(used, data, entities) if n_frauds else (),
        strongest=leaks.strongest(rows, truth, used) if can_judge else None,
        shared=_shared(scores, newest, formers.get("champion")),
        formers={
            who: _versus(candidate, ours, former, data, judged, allowed, min(min_frauds, n_frauds))
            for who, former in formers.items()
            if former.model is not None and n_frauds >= MIN_COMPARED
        },
        not_compared={who: former.why for who, former in formers.items() if former.model is None},
        shadow=shadow,
    )


def _versus(
    candidate: ColumnsByName,
    ours: NDArray[np.float32],
    former: Former,
    data: TrainingData,
    judged: NDArray[np.int64],
    allowed: float,
    min_frauds: int,
) -> Versus:
    """Compare on the judged events that the former was not trained on either, or on all if too few frauds are left."""
    assert former.model is not None and data.table.entity is not None  # noqa: PT018
    label, until_ms = data.label[judged], former.learned_until_ms
    later = data.table.time_ms[judged] >= until_ms if until_ms is not None else np.zeros(len(judged), bool)
    use = later if (label[later] == 1).sum() >= min_frauds else np.ones(len(judged), bool)
    rows = data.table.take(judged[use])
    n_alerts = max(1, round(allowed * len(rows)))
    theirs = score_table(former.model, rows)
    found = paired(label[use], ours[use], theirs, data.table.entity[judged[use]], n_alerts=n_alerts)
    return Versus(
        found.average_precision,
        found.precision,
        n_alerts,
        frauds=int((label[use] == 1).sum()),
        learned=not later[use].all(),
        time=_times(candidate, former.model, rows),
    )


def stability(before: NDArray[np.floating], now: NDArray[np.floating], *, n_bins: int = 10) -> float:
    """Population stability index of two samples in deciles of the first; below 0.1 is stable, above 0.25 a shift.

    >>> before = np.arange(100.0)
    >>> stability(before, before) < 1e-9, stability(before, np.full(50, 99.0)) > 1
    (True, True)

    """
    if not (len(before) and len(now)):
        return 0.0
    edges = np.unique(np.quantile(before, np.linspace(0, 1, n_bins + 1)[1:-1]))
    counts = [np.bincount(np.searchsorted(edges, one, side="right"), minlength=len(edges) + 1) for one in (before, now)]
    return stability_index(*counts)


def _shared(scores: NDArray[np.float32], rows: Table, champion: Former | None) -> float | None:
    """Share of the highest `TOP` of the scores that are the champion's highest, too."""
    if champion is None or champion.model is None:
        return None
    n_top = max(1, round(TOP * len(scores)))
    highest = [set(np.argsort(-one, kind="stable")[:n_top]) for one in (scores, score_table(champion.model, rows))]
    return len(highest[0] & highest[1]) / n_top


def _true_reasons(model: ColumnsByName, rows: Table, scores: NDArray[np.float32]) -> float | None:
    """Share of the highest alerts whose score is below the threshold once the named fields are as expected."""
    alerts = np.flatnonzero(scores > model.threshold)
    highest = alerts[np.argsort(-scores[alerts], kind="stable")[:MAX_EXPLAINED]]
    if not len(highest):
        return None
    explained = model.explain(*_cells(rows.take(np.sort(highest))))
    return float(np.mean([one.score_if_all_expected <= model.threshold for one in explained]))


def _times(ours: ColumnsByName, theirs: ColumnsByName, rows: Table) -> float:
    """Time of scoring a batch as a multiple; the two take turns, and the shortest time of each counts."""
    numeric, categorical = _cells(rows.take(slice(0, BATCH)))
    best = [float("inf"), float("inf")]
    for _ in range(TIMED):
        for i, model in enumerate((ours, theirs)):
            began_s = time.perf_counter()
            model.score(numeric, categorical)
            best[i] = min(best[i], time.perf_counter() - began_s)
    return best[0] / best[1]


def _leaks(used: Collection[str], data: TrainingData, entities: Mapping[str, NDArray[np.uint32]]) -> tuple[str, ...]:
    """Those of the fields that know what is to be predicted, and why."""
    found = leaks.find(data.table, label=data.label, known=data.known, entities=entities)
    return tuple(f"{one.field}: {one.why}" for one in found if one.field in used)


def _rows(table: Table, start: int, end: int) -> Table:
    """The newest of the rows from start to end."""
    return table.take(slice(max(start, end - MAX_SCORED), end))


def _cells(rows: Table) -> tuple[NDArray[np.float64], NDArray[np.uint64]]:
    return np.asarray(rows.numeric[:]), np.asarray(rows.categorical[:])


def _ms(tags: Mapping[str, str], name: str, time_ms: NDArray[np.int64]) -> int:
    """A time from the tags; without it, the end of the data, so that nothing is judged that may have been learned."""
    said = time_of(tags, name)
    return int(time_ms[-1]) if said is None else said


def _rate(tags: Mapping[str, str]) -> float:
    return float(tags.get("validation_alert_rate", "nan"))
