"""Reproduces a published score: the state before its event, its features, the score and the reasons; and compares."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.compute as pc

from pipelines.contracts.block import Block
from pipelines.contracts.messages import Alert, Reason, Review, Score, SuppressedAlert
from pipelines.contracts.stream import Stream
from pipelines.contracts.suppression import Suppression
from pipelines.errors import RestoreError
from pipelines.features.bucket import Place
from pipelines.features.snapshot import SnapshotStore, frontier_of
from pipelines.features.state import State
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.progress import read_progress
from pipelines.lake.audit import SCORE_TOLERANCE, NoModelError
from pipelines.lake.replay import fold_lake
from pipelines.lake.tables import Lake
from pipelines.live.alert_records import Cell, alert_of, features_of
from pipelines.live.shards import place_of, shards_of
from pipelines.live.takeover import widened
from pipelines.model import Model
from pipelines.operate.published import Published, is_at
from pipelines.order import EVENT, Key, Source

log = logging.getLogger(__name__)
OnProgress = Callable[[int, int], None]
Models = Callable[[str, float | None], Model]


class FeatureValue(msgspec.Struct, frozen=True):
    """A model input: recomputed, and as the alert names it (None if there is no alert with it)."""

    name: str
    recomputed: Cell
    published: Cell


class Reproduction(msgspec.Struct, frozen=True, kw_only=True):
    """A published score and what was recomputed of it.

    - `score`, `reasons`: recomputed; None if the model is not available, or without an alert (reasons).
    - `state_from`: what the state was built from; `n_folded` records were folded after that.
    - `suppressed`: why there is no full alert.
    - `differs`: what is not as published, in words; `why_not`: why something could not be recomputed or compared.
    """

    event_id: str
    partition: int
    offset: int
    model: str
    published_score: float
    published_features_hash: str
    is_alert: bool
    state_from: str = ""
    n_folded: int = 0
    features: list[FeatureValue] = []
    features_hash: str | None = None
    score: float | None = None
    threshold: float | None = None
    reasons: list[Reason] | None = None
    published_reasons: list[Reason] | None = None
    differs: list[str] = []
    why_not: list[str] = []
    suppressed: Suppression | None = None

    @property
    def verdict(self) -> str:
        """ "equal", "differs", or "not reproduced" if something could not be recomputed and nothing differs."""
        return "differs" if self.differs else "not reproduced" if self.why_not else "equal"


def reproduce(
    connection: Connection,
    stream: Stream,
    lake: Lake,
    snapshots: Path | Place,
    found: Published,
    *,
    models: Models,
    progress: OnProgress | None = None,
) -> Reproduction:
    """Fold the lake up to the event of a score, and recompute its features, the score and the reasons of its alert.

    The lake has the score, hence all records before its event.

    Args:
        snapshots: where the scorer's snapshots lie: the newest one before the event saves the records before it.
        models: returns a model by its digest, with the threshold of the alert (None: its own); raises `NoModelError`.
        progress: called with the number of records folded and the total.

    Raises:
        LakeError: the lake cannot be read.
    """
    lake = lake.snapshot()
    where = is_at(found.partition, found.offset)
    rows = lake.read("events", where=where)
    if not rows.height:
        why = "the lake has the score but not the event: it was removed from the lake, or ingested with other rules"
        return _reproduction(found, why_not=[why])
    event = rows.row(0, named=True)
    place = _place(lake, event, where)
    state, state_from = _state_before(connection, stream, snapshots, found, place)
    block, n_folded = _fold_to(lake, stream, state, found, place, progress)
    if block is None or not block.is_scored[0]:
        what = "is a duplicate" if block is not None else "was not reached"
        again = _reproduction(found, differs=[f"in the lake, the event {what}, but it was scored"])
    else:
        again = _compared(connection, stream, found, event, block, models)
    return msgspec.structs.replace(again, state_from=state_from, n_folded=n_folded)


def _reproduction(found: Published, **more: Any) -> Reproduction:
    alert = _explained(found)
    return Reproduction(
        event_id=found.event_id,
        partition=found.partition,
        offset=found.offset,
        model=found.model,
        published_score=found.score,
        published_features_hash=found.features_hash,
        is_alert=found.is_alert,
        published_reasons=alert.reasons if alert else None,
        suppressed=found.alert.suppression if isinstance(found.alert, SuppressedAlert) else None,
        **more,
    )


def _explained(found: Published) -> Alert | Review | None:
    """The alert or review with reasons and feature values; a suppressed alert has none."""
    return None if isinstance(found.alert, SuppressedAlert) else found.alert


def _place(lake: Lake, event: Mapping[str, Any], where: pc.Expression) -> Key:
    """The place of an event in the one order."""
    names = ["at_effective_ms", "at_kind", "at_partition", "at_offset", "at_seq"]
    told = lake.read("places", columns=names, where=where & (pc.field("kind") == EVENT))
    if told.height:
        return Key(*told.select(names).row(-1))
    return Key(event["arrival_ms"], EVENT, event["partition"], event["offset"])


def _state_before(
    connection: Connection, stream: Stream, snapshots: Path | Place, found: Published, place: Key
) -> tuple[State, str]:
    """The newest snapshot before an event, else a blank state."""
    topic_ids = topics.topic_ids(connection, [stream.topic(kind) for kind in stream.inputs])
    named = {kind: topic_ids.get(stream.topic(kind)) for kind in stream.inputs}
    n_partitions = len(topics.partitions_of(connection, stream.topic("events")))
    partitions = next(one for one in shards_of(stream, n_partitions) if found.partition in one)
    at = Source(EVENT, found.partition)

    def is_before(told: Mapping[str, Any]) -> bool:
        last = told["last"] and Key(*told["last"])
        return last is not None and last < place and frontier_of(told).get(at, 0) <= found.offset

    for path, kept in SnapshotStore(place_of(snapshots, stream, partitions)).newest_first(is_before):
        try:
            snapshot = widened(kept, n_partitions)
            if any(named.get(kind, topic_id) != topic_id for kind, topic_id in snapshot.meta["topic_ids"].items()):
                continue
            return State.restore(stream, snapshot), f"snapshot {path.name}"
        except (RestoreError, OSError, ValueError, KeyError) as error:
            log.info("snapshot %s is not used: %s", path.name, error)
    return State(stream, n_partitions, partitions=partitions), "the beginning of the lake"


def _fold_to(
    lake: Lake, stream: Stream, state: State, found: Published, place: Key, progress: OnProgress | None
) -> tuple[Block | None, int]:
    """Fold up to an event; returns its row, and the number of records folded."""
    n_done = 0
    for block, n_done, n_items in fold_lake(lake, stream, state=state, until_ms=place.effective_ms + 1):
        if progress:
            progress(n_done, max(n_items, n_done))
        is_it = block.is_event & (block.partition == found.partition) & (block.offset == found.offset)
        if is_it.any():
            return block.take(is_it), n_done
    return None, n_done


def _compared(
    connection: Connection,
    stream: Stream,
    found: Published,
    event: Mapping[str, Any],
    block: Block,
    models: Models,
) -> Reproduction:
    """Compare the row of an event after the fold with what was published about it."""
    alert, digest = _explained(found), f"{int(block.features_hash[0]):016x}"
    features = features_of(stream, block.numeric[0], [event[name] for name in stream.categories])
    published = alert.features if alert else {}
    values = [FeatureValue(name, value, published.get(name)) for name, value in features.items()]
    differs, why_not = [], []
    if digest != found.features_hash:
        differs.append(f"features: {_features_words(connection, stream, found, values)}")
    if found.is_alert and found.alert is None:
        why_not.append(
            "the alert is not in Kafka in full (it was counted in a group, is listed as overflow, or was deleted by "
            "retention): its feature values and reasons cannot be compared"
        )
    elif alert is not None and not alert.features:
        why_not.append("the alert was shortened: its feature values and reasons cannot be compared")
    score, threshold, reasons = None, found.alert.threshold if found.alert else None, None
    try:
        model = models(found.model, threshold)
    except NoModelError as error:
        why_not.append(f"model {found.model[:12]} is not available, so the score is not recomputed: {error}")
    else:
        score = float(model.score(block.numeric, block.category_hashes)[0])
        if abs(score - found.score) > SCORE_TOLERANCE:
            differs.append(f"score: {score:.6f} recomputed, {found.score:.6f} published")
        threshold = model.threshold if threshold is None else threshold
        if alert is not None and alert.features:
            explained = model.explain(block.numeric, block.category_hashes)[0]
            again = alert_of(
                _score_of(alert), threshold=threshold, entities=alert.entities, explained=explained, features=features
            )
            reasons = again.reasons
            if not _same_reasons(reasons, alert.reasons):
                differs.append("reasons: other fields, or values that differ by more than 1e-5")
    return _reproduction(
        found, features=values, features_hash=digest, score=score, threshold=threshold, reasons=reasons,
        differs=differs, why_not=why_not,
    )  # fmt: skip


def _score_of(alert: Alert | Review) -> Score:
    return Score(**{name: getattr(alert, name) for name in Score.__struct_fields__})


def _features_words(connection: Connection, stream: Stream, found: Published, values: Sequence[FeatureValue]) -> str:
    """Which features differ, and why if it is known."""
    words = "the hash differs"
    if (alert := _explained(found)) is not None and alert.features:
        wrong = [one.name for one in values if one.recomputed != one.published]
        words = f"{', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''} {'differ' if len(wrong) > 1 else 'differs'}"
    told = read_progress(connection, stream, found.partition)
    if told is not None and found.offset < told.definition_start:
        words += (
            f"; the event was scored before the stream file was changed (at offset {told.definition_start}): give the "
            "stream file of then"
        )
    return words


def _same_reasons(one: Sequence[Reason], other: Sequence[Reason]) -> bool:
    return len(one) == len(other) and all(
        (a.field, a.actual) == (b.field, b.actual)
        and _near(a.expected, b.expected)
        and _near(a.score_if_expected, b.score_if_expected)
        for a, b in zip(one, other, strict=True)
    )


def _near(one: Cell, other: Cell) -> bool:
    if isinstance(one, float | int) and isinstance(other, float | int):
        return bool(np.isclose(one, other, rtol=SCORE_TOLERANCE, atol=SCORE_TOLERANCE))
    return one == other
