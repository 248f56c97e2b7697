"""Builds the messages about a folded block: scores, alerts and dead letters. No input or output."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.contracts.block import Block
from pipelines.contracts.contract import Refusal
from pipelines.contracts.messages import (
    MAX_TEXT,
    SHORT_TEXT,
    Alert,
    Reason,
    RecordSource,
    Refused,
    Score,
    cloudevent_headers,
    cut,
    encode,
    key_of,
    refused_of,
    rfc3339,
)
from pipelines.contracts.stream import Stream
from pipelines.kafka.port import Message
from pipelines.model import Explained, Model

Cell = float | str | None  # a feature value in readable form; None if missing


class Outcomes(NamedTuple):
    """The messages about a block: one score or one dead letter for each event, and the alerts."""

    messages: list[Message]
    n_alerts: int


def outcomes_of(block: Block, stream: Stream, model: Model, *, short: bool = False) -> Outcomes:
    """Score a folded block of events and encode the messages about it.

    Args:
        short: omit the reasons and features of alerts and the raw bytes of dead letters.
    """
    messages: list[Message] = []
    scored, n_alerts = block.take(block.is_scored), 0
    if len(scored):
        found = model.score(scored.numeric, scored.category_hashes)
        is_alert = found > np.float32(model.threshold)
        scores = list(_scores(scored, found, is_alert, stream, model))
        keys = scored.key.tolist()
        messages += [_message("scores", stream, key, score) for key, score in zip(keys, scores, strict=True)]
        raised = np.flatnonzero(is_alert)
        n_alerts = len(raised)
        if n_alerts:
            explained = model.explain(scored.numeric[raised], scored.category_hashes[raised])
            for row, why in zip(raised.tolist(), explained, strict=True):
                alert = alert_of(
                    scores[row],
                    threshold=model.threshold,
                    entities=dict(zip(stream.entities, scored.entity_texts[row], strict=True)),
                    explained=why,
                    features=features_of(stream, scored.numeric[row], scored.category_texts[row].tolist()),
                    short=short,
                )
                messages.append(_message("alerts", stream, keys[row], alert))
    return Outcomes(messages + list(_dead_letters(block.take(~block.is_scored), stream, short=short)), n_alerts)


def without_scores(block: Block) -> Block:
    """A copy of the block with dead letters instead of scores, for events whose scores exceed the topic's limit."""
    scored = block.is_scored
    return block.with_refusals(
        scored,
        (
            Refusal("unpublishable", f"the score of event {cut(name, SHORT_TEXT)} is too large for the scores topic")
            for name in block.event_id[scored]
        ),
    )


def alert_of(
    score: Score,
    *,
    threshold: float,
    entities: Mapping[str, str | None],
    explained: Explained,
    features: Mapping[str, Cell],
    short: bool = False,
) -> Alert:
    """The alert of a score over the threshold, bounded in size; `short` omits reasons and features.

    `features` are the event's model inputs by name, categories as text. The text of a category comes from the event,
    because the model does not know categories that it was not trained on.
    """
    named = f"{score.source.topic}/{score.source.partition}/{score.source.offset}/{score.model}"
    limit = SHORT_TEXT if short else MAX_TEXT
    return Alert(
        **msgspec.structs.asdict(score),
        alert_id=hashlib.sha256(named.encode()).hexdigest()[:32],
        threshold=threshold,
        entities={name: text and cut(text, limit) for name, text in entities.items()},
        reasons=[] if short else [_reason_of(reason, features) for reason in explained.reasons],
        score_if_all_expected=explained.score_if_all_expected,
        features={} if short else {n: cut(v) if isinstance(v, str) else v for n, v in features.items()},
    )


def features_of(stream: Stream, numeric: NDArray[np.float64], category_texts: Sequence[str | None]) -> dict[str, Cell]:
    """Every model input of one event by name."""
    values: dict[str, Cell] = {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(stream.numeric_columns, numeric.tolist(), strict=True)
    }
    return values | dict(zip(stream.categories, category_texts, strict=True))


def _reason_of(explained: Any, features: Mapping[str, Cell]) -> Reason:
    reason = msgspec.convert(explained, Reason, from_attributes=True)
    text = features.get(reason.field)
    actual = text if isinstance(text, str) else reason.actual
    actual, expected = (cut(v) if isinstance(v, str) else v for v in (actual, reason.expected))
    return msgspec.structs.replace(reason, actual=actual, expected=expected)


def _scores(
    scored: Block, found: NDArray[np.float32], is_alert: NDArray[np.bool_], stream: Stream, model: Model
) -> Iterator[Score]:
    topic = stream.topic("events")
    columns = (
        scored.event_id,
        found,
        is_alert,
        scored.partition,
        scored.offset,
        scored.time_ms,
        scored.arrival_ms,
        scored.late_ms,
        scored.out_of_turn,
        scored.features_hash,
    )
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for event_id, value, alert, partition, offset, time_ms, arrival_ms, late_ms, out_of_turn, features_hash in rows:
        yield Score(
            event_id=event_id,
            score=float(f"{value:.9g}"),  # nine digits represent a float32 exactly
            alert=alert,
            model=model.digest,
            source=RecordSource(topic, partition, offset),
            event_time=rfc3339(time_ms),
            arrival=rfc3339(arrival_ms),
            late_ms=late_ms,
            out_of_order=out_of_turn,
            features_hash=f"{features_hash:016x}",
        )


def _dead_letters(block: Block, stream: Stream, *, short: bool) -> Iterator[Message]:
    topic = stream.topic("events")
    columns = (block.refusal, block.event_id, block.duplicate_of, block.partition, block.offset, block.key, block.value)
    for refusal, event_id, original, partition, offset, key, value in zip(*(c.tolist() for c in columns), strict=True):
        letter = refused_of(
            refusal or Refusal("duplicate", f"{event_id} was accepted at offset {original}"),
            RecordSource(topic, partition, offset),
            value,
            key=key,
            duplicate_of=None if refusal else original,
            short=short,
        )
        yield _message("refused", stream, key, letter)


def _message(kind: str, stream: Stream, key: bytes | None, value: Score | Refused) -> Message:
    headers = cloudevent_headers(kind, stream.name, value.source)
    return Message(stream.topic(kind), encode(value), key_of(key), value.source.partition, None, headers)
