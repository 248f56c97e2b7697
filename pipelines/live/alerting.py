"""Builds the messages about a folded block: scores, alerts and dead letters. No input or output."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.contracts.block import Block
from pipelines.contracts.contract import Refusal
from pipelines.contracts.messages import (
    MAX_TEXT,
    OVERFLOW,
    SHORT_TEXT,
    UPDATE,
    Alert,
    AlertOverflow,
    AlertUpdate,
    Reason,
    RecordSource,
    Refused,
    Score,
    alert_id_of,
    cloudevent_headers,
    cut,
    decode,
    encode,
    key_of,
    refused_of,
)
from pipelines.contracts.stream import Stream
from pipelines.kafka.port import Message
from pipelines.live.score_records import judged, packed
from pipelines.live.storms import FullAlert, Raised, Storm
from pipelines.live.together import Together
from pipelines.model import Explained, Model

Cell = float | str | None  # a feature value in readable form; None if missing


class Outcomes(NamedTuple):
    """The messages about a block: one score or one dead letter for each event, and those about alerts.

    `n_alerts` is the number of scores over the threshold.
    """

    messages: list[Message]
    n_alerts: int


def outcomes_of(
    block: Block,
    stream: Stream,
    model: Model,
    *,
    storm: Storm | None = None,
    short: bool = False,
    together: Together | None = None,
) -> Outcomes:
    """Score a folded block of events and encode the messages about it.

    Args:
        storm: decides what is published about alerts, and remembers it; without one, each alert is published in full.
        short: omit the reasons and features of alerts and the raw bytes of dead letters.
        together: scores and explains rows of several lanes at once; None = these alone.
    """
    together = together or Together()
    scored = block if (is_scored := block.is_scored).all() else block.take(is_scored)
    messages, n_alerts = (
        _scores_and_alerts(scored, stream, model, together, storm=storm, short=short) if len(scored) else ([], 0)
    )
    if len(scored) < len(block):
        messages += _dead_letters(block.take(~is_scored), stream, short=short)
    if storm is not None and len(block):
        messages += (_storm_message(record, stream) for record in storm.pass_time(int(block.arrival_ms[-1])))
    return Outcomes(messages, n_alerts)


def _scores_and_alerts(
    scored: Block, stream: Stream, model: Model, together: Together, *, storm: Storm | None, short: bool
) -> tuple[list[Message], int]:
    found = together.score(model, scored.numeric, scored.category_hashes)
    is_alert, lines = judged(scored, found, stream, model)
    messages = packed(lines, scored, stream) if stream.packed_scores else _one_by_one(lines, scored, stream)
    raised = [_raised(scored, row, lines[row]) for row in np.flatnonzero(is_alert).tolist()]
    if raised:
        messages += _alerts(scored, raised, stream, model, together, storm=storm, short=short)
    return messages, len(raised)


def _raised(scored: Block, row: int, line: str) -> Raised:
    time_ms, arrival_ms = int(scored.time_ms[row]), int(scored.arrival_ms[row])
    return Raised(row, decode(line.encode(), Score), scored.entity_texts[row, 0], time_ms, arrival_ms)


def _alerts(
    scored: Block,
    raised: Sequence[Raised],
    stream: Stream,
    model: Model,
    together: Together,
    *,
    storm: Storm | None,
    short: bool,
) -> Iterator[Message]:
    """The messages about scores over the threshold; only those of full alerts are explained."""
    records = [
        record for one in raised for record in (storm.admit(one) if storm else [FullAlert(one.row, group_id=None)])
    ]
    scores = {one.row: one.score for one in raised}
    rows = [record.row for record in records if isinstance(record, FullAlert)]
    found = together.explain(model, scored.numeric[rows], scored.category_hashes[rows]) if rows else ()
    explained = dict(zip(rows, found, strict=True))
    for record in records:
        if not isinstance(record, FullAlert):
            yield _storm_message(record, stream)
            continue
        row = record.row
        alert = alert_of(
            scores[row],
            threshold=model.threshold,
            entities=dict(zip(stream.entities, scored.entity_texts[row], strict=True)),
            explained=explained[row],
            features=features_of(stream, scored.numeric[row], scored.category_texts[row].tolist()),
            group_id=record.group_id,
            short=short,
        )
        yield _message("alerts", stream, scored.key[row], alert)


def _storm_message(record: AlertUpdate | AlertOverflow, stream: Stream) -> Message:
    if isinstance(record, AlertUpdate):
        kind, partition, offsets = UPDATE, record.source.partition, f"{record.source.offset}"
        key = key_of(record.entities[stream.key].encode())
    else:
        kind, partition, key = OVERFLOW, record.partition, None
        offsets = f"{record.events[0].offset}-{record.events[-1].offset}"
    headers = cloudevent_headers(kind, stream.name, f"{stream.topic('events')}/{partition}/{offsets}")
    return Message(stream.topic("alerts"), encode(record), key, partition, None, headers)


def _one_by_one(lines: Sequence[str], scored: Block, stream: Stream) -> list[Message]:
    topic, named = stream.topic("scores"), stream.topic("events")
    columns = (scored.key.tolist(), scored.partition.tolist(), scored.offset.tolist())
    return [
        Message(
            topic, line.encode(), key_of(key), partition, None,
            cloudevent_headers("scores", stream.name, f"{named}/{partition}/{offset}"),
        )
        for line, key, partition, offset in zip(lines, *columns, strict=True)
    ]  # fmt: skip


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
    group_id: str | None = None,
    short: bool = False,
) -> Alert:
    """The alert of a score over the threshold, bounded in size; `short` omits reasons and features.

    `features` are the event's model inputs by name, categories as text. The text of a category comes from the event,
    because the model does not know categories that it was not trained on.
    """
    limit = SHORT_TEXT if short else MAX_TEXT
    return Alert(
        **msgspec.structs.asdict(score) | {"threshold": threshold},
        alert_id=alert_id_of(score),
        entities={name: text and cut(text, limit) for name, text in entities.items()},
        reasons=[] if short else [reason_of(reason, features) for reason in explained.reasons],
        score_if_all_expected=explained.score_if_all_expected,
        features={} if short else {n: cut(v) if isinstance(v, str) else v for n, v in features.items()},
        group_id=group_id,
        count=None if group_id is None else 1,
    )


def features_of(stream: Stream, numeric: NDArray[np.float64], category_texts: Sequence[str | None]) -> dict[str, Cell]:
    """Every model input of one event by name."""
    values: dict[str, Cell] = {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(stream.numeric_columns, numeric.tolist(), strict=True)
    }
    return values | dict(zip(stream.categories, category_texts, strict=True))


def reason_of(explained: Any, features: Mapping[str, Cell]) -> Reason:
    """A reason as it is published: a category that the model does not know has its text from `features`."""
    reason = msgspec.convert(explained, Reason, from_attributes=True)
    text = features.get(reason.field)
    actual = text if isinstance(text, str) else reason.actual
    actual, expected = (cut(v) if isinstance(v, str) else v for v in (actual, reason.expected))
    return msgspec.structs.replace(reason, actual=actual, expected=expected)


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
    topic, partition, offset = msgspec.structs.astuple(value.source)
    headers = cloudevent_headers(kind, stream.name, f"{topic}/{partition}/{offset}")
    return Message(stream.topic(kind), encode(value), key_of(key), partition, None, headers)
