"""Flow: compare the newest events and scores with those that the champion was trained on, without labels."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.events import emit_event
from prometheus_client import CollectorRegistry, Gauge, write_to_textfile
from pydantic import Field

from flows import encoder, gate, moves, stages
from flows.alone import alone
from flows.condition import Condition, drift_sections
from flows.lineage import AS_OF, LEARNED_UNTIL, lineage, time_of
from flows.retries import retry_unless_mistaken
from flows.review import sections
from flows.serve.model import ColumnsByName, loaded_model, score_table
from flows.settings import Settings, registry_name
from flows.stages import artifact_key, run_log, run_name, stage
from flows.streams.shipped import load
from flows.training_data import TrainingData
from models.drift import Drift, Moved, TooFewEventsError, drift
from models.evaluation import Share
from models.ship import registry
from models.table import Table
from pipelines.contracts.stream import HOUR_MS, Stream
from pipelines.errors import UnmaskError
from pipelines.lake.labels import is_mature

AGAIN_S = 86_400.0  # between two events about the same champion, so that one drift trains one model
DRIFT_EVENT = "unmask.drift"
EVENT_TAG = "drift.event_at"


def resource_of(stream: str) -> str:
    """The resource that an event about a stream names."""
    return f"unmask.stream.{stream}"


class NothingToMonitorError(UnmaskError):
    """There is no champion, or nothing says on what it was trained."""


@flow(name="monitor", flow_run_name=run_name, retries=1, retry_delay_seconds=60)
@retry_unless_mistaken
@alone
def monitor(stream: Path, hours: Annotated[int, Field(ge=1)] = 24) -> Condition:
    """Look for drift in the newest events: which field moved, and whether alerts keep to the budget.

    A drift is an event on the Prefect page, `unmask.drift`; the automation of `unmask deploy` answers it by training.

    Args:
        stream: path of the stream file, or the name of a shipped stream.
        hours: how many of the newest hours, by the time of the events.
    """
    settings, spec = Settings(), load(stream)
    champion = _champion(settings, spec)
    data = stages.read(settings, settings.lake(spec), spec, as_of=None)
    found = _compare(settings, spec, champion, data, hours)
    _publish(settings, spec, champion, found)
    return found


@dataclass(frozen=True)
class Champion:
    """The model that serves, its tags, and the end of its training data."""

    version: int
    tags: dict[str, str]
    model: ColumnsByName
    trained_until_ms: int


@stage("find the champion")
def _champion(settings: Settings, stream: Stream) -> Champion:
    uri, name = settings.tracking_uri(), registry_name(stream)
    if healed := moves.heal_alias(settings, stream):
        run_log().warning(healed)
    found = registry.version_of(name, "champion", tracking_uri=uri)
    if found is None:
        raise NothingToMonitorError(f"{name} has no champion in MLflow at {uri}; run `unmask promote` first")
    version, tags = found
    where, _ = registry.resolve_version(name, version, tracking_uri=uri, cache=settings.model_cache)
    until_ms = time_of(tags, AS_OF)
    if until_ms is None:
        said = tags.get(AS_OF, "")
        raise NothingToMonitorError(f"tag {AS_OF} of version {version} is {said!r}; run `unmask finetune` again")
    run_log().info(f"version {version}, model {where.digest[:12]}")
    model = loaded_model(settings, stream, where.digest)
    return Champion(version, tags, model.with_threshold(moves.threshold_of(settings, stream, where.digest)), until_ms)


@stage("compare with the reference")
def _compare(settings: Settings, stream: Stream, champion: Champion, data: TrainingData, hours: int) -> Condition:
    table, model = data.table, champion.model
    end_ms = int(table.time_ms[-1])
    start = int(np.searchsorted(table.time_ms, end_ms - hours * HOUR_MS, side="right"))
    trained = int(np.searchsorted(table.time_ms, champion.trained_until_ms, side="right"))
    now, past = table.take(slice(start, len(table))), table.take(slice(0, min(start, trained)))
    run_id = champion.tags.get("encoder.run") or None
    pretrained = encoder.fetch(settings, encoder.find(settings, stream, run_id=run_id))
    seen: Drift | None = None
    why = ""
    try:
        seen = drift(
            pretrained.expectation,
            pretrained.rules.coding,
            lambda rows: score_table(model, rows),
            past,
            now,
            width_ms=hours * HOUR_MS,
        )
    except TooFewEventsError as error:
        why = str(error)
    alerts = score_table(model, now) > model.threshold
    mature = is_mature(table.time_ms, stream.labels, as_of_ms=data.as_of_ms)
    held_out = int(np.searchsorted(table.time_ms, _held_out(champion)))
    found = Condition(
        model.digest,
        seen,
        why,
        alert_rate=float(alerts.mean()),
        allowed_rate=_allowed(champion, now),
        reviewed=_reviewed(model, data, trained, len(table), mature),
        reviewed_before=_reviewed(model, data, held_out, trained, mature),
    )
    run_log().info(found.words)
    return found


def _held_out(champion: Champion) -> int:
    """Start of the labels that were held out when the champion was trained."""
    said = time_of(champion.tags, LEARNED_UNTIL)
    return champion.trained_until_ms if said is None else said


def _allowed(champion: Champion, rows: Table) -> float | None:
    """Share of alerts that is expected: by the order of an operator, or by the budget of the model."""
    if champion.model.ordered_threshold is not None:
        return champion.model.alert_rate
    validated = float(champion.tags.get("validation_alert_rate") or "nan")
    found = gate.allowed_share(champion.model.own.rules.budget, rows.time_ms, validation_alert_rate=validated)
    return None if np.isnan(found) else found


def _reviewed(model: ColumnsByName, data: TrainingData, start: int, end: int, mature: NDArray[np.bool_]) -> Share:
    """Frauds among the alerts with a final label of some rows."""
    rows = start + np.flatnonzero((data.known & mature)[start:end])
    alerts = rows[score_table(model, data.table.take(rows)) > model.threshold]
    return Share(int((data.label[alerts] == 1).sum()), len(alerts))


@stage("publish the condition")
def _publish(settings: Settings, stream: Stream, champion: Champion, found: Condition) -> None:
    """A report, gauges, a point on each curve in MLflow; a drift is an event on the Prefect page."""
    folder = settings.monitor_folder(stream)
    folder.mkdir(parents=True, exist_ok=True)
    facts, parts = drift_sections(stream, champion.version, found)
    (folder / "drift.html").write_text(sections.page(f"Drift: {stream.name}", facts, parts), encoding="utf-8")
    _write_gauges(folder / "drift.prom", stream, found)
    run = registry.resume_run(
        f"{stream.name}/monitor",
        "model.digest",
        found.model,
        tracking_uri=settings.tracking_uri(),
        run_name=f"version {champion.version}",
        tags=lineage(stream, settings.lake(stream)),
    )
    run.log_metrics(_figures(found), step=int(time.time() // 60))
    sections.log(run, f"Drift: {stream.name}", facts, parts)
    run.describe(sections.markdown(facts, [f"{found.words}."]))
    rows = [] if found.drift is None else [_row(one) for one in found.drift.moved]
    create_table_artifact(key=artifact_key(stream.name, "drift"), table=rows, description=found.words)
    words = f"{found.words}. [Curves and report in MLflow]({run.url})"
    create_markdown_artifact(key=artifact_key(stream.name, "monitor"), markdown=words)
    if found.needs_training and run.is_due(EVENT_TAG, every_s=AGAIN_S):
        payload = {"words": found.words, "model": found.model, "version": champion.version}
        resource = {"prefect.resource.id": resource_of(stream.name), "prefect.resource.name": stream.name}
        emit_event(DRIFT_EVENT, resource=resource, payload=payload)
        run.note_time(EVENT_TAG)  # after it: told twice is better than never
        run_log().warning("drift: %s", found.words)
    run.end("FINISHED")


def _figures(found: Condition) -> dict[str, float]:
    """The curves in MLflow."""
    figures = {"alerts/rate": found.alert_rate, "drifted": float(found.needs_training)}
    if found.allowed_rate:
        figures["alerts/rate_over_budget"] = found.alert_rate / found.allowed_rate
    if found.reviewed.n:
        figures["alerts/precision"] = found.reviewed.value
    for one in found.drift.moved if found.drift else ():
        figures[f"severity/{one.name}"] = one.severity
        figures[f"stability/{one.name}"] = one.stability
        if one.surprise is not None:
            figures[f"surprise/{one.name}"] = one.surprise
        if one.distance is not None:
            figures[f"distance/{one.name}"] = one.distance
    return figures


def _write_gauges(path: Path, stream: Stream, found: Condition) -> None:
    """The figures as a file for the textfile collector of Prometheus' node_exporter."""
    registry_of_file = CollectorRegistry()
    kinds = {
        "severity": "How far a field has moved, as a multiple of the limit.",
        "stability": "Population stability index of a field.",
        "surprise": "How much more surprising a field is to the encoder, nats.",
        "distance": "Wasserstein distance of a field, standard deviations.",
    }
    gauges = {
        kind: Gauge(f"unmask_drift_{kind}", words, ["stream", "field"], registry=registry_of_file)
        for kind, words in kinds.items()
    }
    alerts = {
        "rate": "Share of the newest events that raise an alert.",
        "rate_over_budget": "The same as a multiple of the budget.",
        "precision": "Share of the reviewed alerts that are frauds.",
    }
    gauges |= {
        f"alerts/{name}": Gauge(f"unmask_alert_{name}", words, ["stream"], registry=registry_of_file)
        for name, words in alerts.items()
    }
    for name, value in _figures(found).items():
        kind, _, field = name.partition("/")
        if name in gauges:
            gauges[name].labels(stream.name).set(value)
        elif kind in gauges:
            gauges[kind].labels(stream.name, field).set(value)
    seen = Gauge(
        "unmask_drift",
        "Whether a field, the score or the precision of alerts has moved.",
        ["stream"],
        registry=registry_of_file,
    )
    seen.labels(stream.name).set(float(found.needs_training))
    write_to_textfile(str(path), registry_of_file)


def _row(one: Moved) -> dict[str, object]:
    """A row of the table on the Prefect page."""
    found = {"field": one.name, "has moved": one.has_moved, "severity": one.severity, "stability": one.stability}
    found |= {"surprise, nats": one.surprise, "distance, sd": one.distance}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}
