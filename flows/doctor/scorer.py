"""The scorers of a stream on this machine, by their status files; the model in use beside the champion."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.doctor.finding import Finding, error, ok, warning
from flows.doctor.kafka import OPENING_MS
from flows.doctor.sizing import Load
from flows.settings import Settings, SettingsError, registry_name
from models.ship import registry
from pipelines.contracts.stream import Stream
from pipelines.errors import BrokerError, RestoreError
from pipelines.live.recover import Recovery

SECTION = "scorer"
FRESH_S = 30.0  # it is written every half second


def statuses(settings: Settings, stream: Stream) -> dict[str, Mapping[str, Any]]:
    """The readable status files, by replica; "" is the one without a name."""
    first = settings.scorer_status(stream)
    found: dict[str, Mapping[str, Any]] = {}
    for path in (first, *sorted(first.parent.glob(f"{first.stem}-*.json"))):
        if status := _read(path):
            found[path.stem.removeprefix(first.stem).removeprefix("-")] = status
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def measured(settings: Settings, stream: Stream) -> Load:
    """What the scorers of this machine hold: the most numerous kind of entity, and bytes of all for each."""
    found = statuses(settings, stream).values()
    by_kind = [sum(one.get("entities", {}).get(name, 0) for one in found) for name in stream.entities]
    if not any(by_kind):
        return Load()
    n_bytes = sum(one.get("state_bytes", 0) for one in found)
    return Load(entities=max(by_kind), bytes_per_entity=n_bytes / max(by_kind))


def look(settings: Settings, stream: Stream, words: str) -> Iterator[Finding]:
    """Is it alive and healthy, and which models does it refuse?"""
    found = statuses(settings, stream)
    if not found:
        yield warning(SECTION, "status", "no scorer has run on this machine", f"unmask score {words}")
    for replica, status in found.items():
        name = f"scorer {replica}".strip()
        age_s = time.time() - status.get("at", 0.0)
        if age_s > FRESH_S:
            start = f"unmask score {words}" + (f" --replica {replica}" if replica else "")
            yield warning(SECTION, name, f"its status file is {age_s:,.0f} s old: it does not run", start)
            continue
        if status.get("health") != "ok":
            fix = f"see its log; if it does not come back, stop it and unmask recover {words}"
            yield error(SECTION, name, f"health {status.get('health')}", fix)
        else:
            said = f"{status.get('scored', 0):,} scored, {status.get('state_bytes', 0) / 1e6:,.0f} MB of state"
            yield ok(SECTION, name, f"healthy, {said}, model {str(status.get('model'))[:12]}")
        for digest, why in status.get("models_refused", {}).items():
            yield warning(SECTION, name, f"refuses model {digest[:12]}: {why}", f"unmask finetune {words}")


def champion(settings: Settings, stream: Stream, words: str) -> Iterator[Finding]:
    """The champion in MLflow beside the model that each scorer uses."""
    try:
        uri = settings.tracking_uri()
        if not registry.answers(uri):
            return  # the section of servers says so
        found = registry.version_of(registry_name(stream), "champion", tracking_uri=uri)
    except SettingsError:
        return
    if found is None:
        fix = f"unmask ingest, pretrain, finetune, promote; each with {words}"
        yield warning(SECTION, "champion", f"MLflow has none of {registry_name(stream)}", fix)
        return
    version, tags = found
    digest = tags.get("digest", "")
    yield ok(SECTION, "champion", f"version {version}, {digest[:12]}")
    for replica, status in statuses(settings, stream).items():
        uses = str(status.get("model"))
        if time.time() - status.get("at", 0.0) < FRESH_S and uses != digest:
            name = f"scorer {replica}".strip()
            found_words = f"uses {uses[:12]}, not the champion {digest[:12]}: by order, on trial, or refused"
            yield warning(SECTION, name, found_words, f"unmask use-model {digest} {words}")


def start(settings: Settings, stream: Stream, words: str) -> Iterator[Finding]:
    """Whether a scorer could start now, as `unmask recover` sees it."""
    try:
        connection = settings.connection()
        with connection.asking(opening_ms=OPENING_MS) as admin:
            admin.ping()
        recovery = Recovery(connection, stream, snapshots=settings.snapshots(stream), lake=settings.lake(stream))
        plan = recovery.plan()
    except (BrokerError, SettingsError):
        return  # the section of topics says so
    except RestoreError as impossible:
        yield error(SECTION, "start", str(impossible), f"unmask recover {words}")
        return
    if plan is None:
        yield ok(SECTION, "start", "nothing keeps a scorer from starting")
    else:
        found = "; ".join(f"{title} {said}" for title, said in plan.words(recovery.records_per_s())[:1])
        yield error(SECTION, "start", found, f"unmask recover {words}")
