"""Moves of the champion that flows make: recorded in the control topic, which scorers obey, and done in MLflow."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from flows.settings import Settings, registry_name
from models.errors import ModelError
from models.ship import registry
from pipelines.contracts.stream import Stream
from pipelines.errors import UnmaskError
from pipelines.live.control import Order, Orders, order_of
from pipelines.live.moves import give
from pipelines.live.wanted import OrderedThreshold, Wanted


def evidence_digest(findings: Mapping[str, Any]) -> str:
    """SHA-256 of findings as JSON with sorted keys; a promotion names it.

    >>> evidence_digest({"b": 1, "a": 2}) == evidence_digest({"a": 2, "b": 1})
    True
    """
    return hashlib.sha256(json.dumps(findings, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def promote(
    settings: Settings,
    stream: Stream,
    digest: str,
    version: int,
    *,
    by: str,
    why: str,
    evidence: str,
    run: str | None = None,
    forced: bool = False,
) -> Order:
    """Make a version the champion: in the control topic, so that scorers use it, and in MLflow; returns the record.

    The alias moves when the record is stored and before it becomes visible: without Kafka or without MLflow, nothing
    changes. If the process is killed between the two, the alias has moved and the record is missing: scorers follow
    the alias and record that, and the next call adds the record of the promotion.

    Args:
        digest, version: of the model.
        evidence: SHA-256 of what the gate found, see `evidence_digest`.
        run: MLflow run of the promotion.
        forced: the gate was against it. This also lifts the refusal of a model that did not pass its trial.

    Raises:
        UnmaskError: the model did not pass its trial live, or Kafka or the control topic is missing.
        ModelError: MLflow does not answer.
    """
    name, uri = registry_name(stream), settings.tracking_uri()
    former = registry.version_of(name, "champion", tracking_uri=uri)
    before = former[1].get("digest") if former else None

    def decide(wanted: Wanted) -> Order:
        if digest in wanted.refused and not forced:
            raise UnmaskError(
                f"version {version} was returned by the scorers: {wanted.refused[digest]}. Force the promotion if it "
                "is to serve all the same"
            )
        marks = {"version": version, "evidence": evidence, "run": run, "forced": forced, "before": before}
        return order_of("promote", digest, why=why, by=by, **marks)

    def move_alias() -> None:
        registry.set_alias(name, "champion", version, tracking_uri=uri)

    made = give(settings.connection(), stream, decide, before_commit=move_alias)
    assert made is not None
    return made


def is_promoted(settings: Settings, stream: Stream, digest: str) -> bool:
    """Whether a promotion of this model is recorded, and scorers use it.

    Raises:
        UnmaskError: Kafka does not answer.
    """
    past = _orders(settings, stream)
    return Wanted.by(past).digest == digest and any(one.kind == "promote" and one.digest == digest for one in past)


def threshold_of(settings: Settings, stream: Stream, digest: str) -> OrderedThreshold | None:
    """The threshold that an operator has ordered for a model; None without one, or without Kafka."""
    try:
        return Wanted.by(_orders(settings, stream)).thresholds.get(digest)
    except UnmaskError:
        return None


def heal_alias(settings: Settings, stream: Stream) -> str | None:
    """Move the champion alias to the model in use, if scorers have left what it points to; in words.

    They leave a model that did not pass its trial, and one that was rolled back while MLflow was not available.
    Without Kafka nothing is known of it, and nothing is done.
    """
    try:
        wanted = Wanted.by(_orders(settings, stream))
    except UnmaskError:
        return None
    found = registry.version_of(registry_name(stream), "champion", tracking_uri=settings.tracking_uri())
    alias = found[1].get("digest") if found else None
    if wanted.digest is None or alias in (None, wanted.digest) or alias != wanted.alias:
        return None
    used = f"scorers use {wanted.digest[:12]} instead of {str(alias)[:12]}"
    return f"{used}. {align_alias(settings, stream, wanted.digest)}"


def _orders(settings: Settings, stream: Stream) -> list[Order]:
    orders = Orders(settings.connection(), stream)
    try:
        return orders.past()
    finally:
        orders.close()


def given_up(settings: Settings, stream: Stream, digest: str) -> str | None:
    """By whom and why a model was given up after it had been used; None if it was not, or is in use again.

    Raises:
        UnmaskError: Kafka does not answer.
    """
    wanted, found = Wanted(), None
    for order in _orders(settings, stream):
        after = wanted.after(order)
        if wanted.digest == digest != after.digest:
            found = f"it was given up by {order.by} at {order.at} ({order.kind}: {order.why})"
        elif after.digest == digest:
            found = None
        wanted = after
    return found


def return_model(settings: Settings, stream: Stream, bad: str, *, by: str, why: str) -> str:
    """Give a model up: scorers go back to the one before it, and never follow it again. Returns what was done.

    Where another model is in use already, this one is only refused from now on. A repeated call changes nothing.

    Raises:
        UnmaskError: no model before it is known, or Kafka or the control topic is missing.
    """

    def decide(wanted: Wanted) -> Order | None:
        if bad in wanted.refused:
            return None
        used = wanted.rollback_to if wanted.digest in (bad, None) else wanted.digest
        if used is None:
            raise UnmaskError(
                f"no model used before {bad[:12]} is known, so none can replace it; name one: `unmask use-model DIGEST`"
            )
        return order_of("return", used, why=why, by=by, refused=bad)

    made = give(settings.connection(), stream, decide)
    if made is None:
        healed = heal_alias(settings, stream)
        return f"model {bad[:12]} was returned before." + (f" {healed}" if healed else "")
    return f"model {bad[:12]} is returned, {made.digest[:12]} is used. {align_alias(settings, stream, made.digest)}"


def align_alias(settings: Settings, stream: Stream, digest: str) -> str:
    """Move the champion alias to a model where MLflow is available, for training, the gate and backtests; in words."""
    name, uri = registry_name(stream), settings.tracking_uri_or_nowhere()
    try:
        version = registry.version_with(name, digest, tracking_uri=uri)
        if version is None:
            return "MLflow does not have this model: its champion alias stays."
        registry.set_alias(name, "champion", version, tracking_uri=uri)
    except ModelError as error:
        return f"The champion alias in MLflow stays: {error}."
    return f"Version {version} is the champion in MLflow."
