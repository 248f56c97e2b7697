"""Builds the messages about a folded block: scores, alerts and dead letters. No input or output."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from pipelines.contracts.block import Block
from pipelines.contracts.contract import Refusal
from pipelines.contracts.messages import (
    OVERFLOW,
    REVIEW,
    SHORT_TEXT,
    SUPPRESSED,
    UPDATE,
    AlertOverflow,
    AlertUpdate,
    RecordSource,
    Refused,
    Score,
    cloudevent_headers,
    cut,
    decode,
    encode,
    key_of,
    refused_of,
)
from pipelines.contracts.stream import Stream
from pipelines.contracts.suppression import Suppression
from pipelines.kafka.port import Message
from pipelines.live.alert_records import alert_of, features_of, review_of, suppressed_of
from pipelines.live.reviews import is_drawn
from pipelines.live.score_records import judged, packed
from pipelines.live.storms import FullAlert, Raised, Storm
from pipelines.live.suppressions import Suppressions
from pipelines.live.together import Together
from pipelines.model import Model


class Outcomes(NamedTuple):
    """The messages about a block: one score or one dead letter for each event, and those about alerts.

    `n_alerts` is the number of scores over the threshold, `n_suppressed` that of suppressed entities among them, and
    `n_reviews` that of events drawn for review.
    """

    messages: list[Message]
    n_alerts: int = 0
    n_suppressed: int = 0
    n_reviews: int = 0


class _Suppressed(NamedTuple):
    """The row of a score over the threshold that raises no full alert, and why not."""

    row: int
    suppression: Suppression


class _Drawn(NamedTuple):
    """The row of an event that was drawn for review."""

    row: int


_About = FullAlert | AlertUpdate | AlertOverflow | _Suppressed | _Drawn  # what is published about a score
_NONE = Suppressions()


def outcomes_of(
    block: Block,
    stream: Stream,
    model: Model,
    *,
    storm: Storm | None = None,
    suppressions: Suppressions = _NONE,
    short: bool = False,
    together: Together | None = None,
) -> Outcomes:
    """Score a folded block of events and encode the messages about it.

    Args:
        storm: decides what is published about alerts, and remembers it; without one, each alert is published in full.
        suppressions: of entities that raise no full alert at the moment.
        short: omit the reasons and features of alerts and the raw bytes of dead letters.
        together: scores and explains rows of several lanes at once; None = these alone.
    """
    together = together or Together()
    scored = block if (is_scored := block.is_scored).all() else block.take(is_scored)
    outcomes = Outcomes([])
    if len(scored):
        outcomes = _scores_and_alerts(scored, stream, model, together, storm, suppressions, short=short)
    messages = outcomes.messages
    if len(scored) < len(block):
        messages += _dead_letters(block.take(~is_scored), stream, short=short)
    if storm is not None and len(block):
        messages += (_storm_message(record, stream) for record in storm.pass_time(int(block.arrival_ms[-1])))
    return outcomes


def _scores_and_alerts(
    scored: Block,
    stream: Stream,
    model: Model,
    together: Together,
    storm: Storm | None,
    suppressions: Suppressions,
    *,
    short: bool,
) -> Outcomes:
    found = together.score(model, scored.numeric, scored.category_hashes)
    is_alert, lines = judged(scored, found, stream, model)
    messages = packed(lines, scored, stream) if stream.packed_scores else _one_by_one(lines, scored, stream)
    chosen, share = is_alert, stream.review_share
    if share:
        chosen = is_alert | is_drawn(scored.partition, scored.offset, stream.topic("events"), share)
    rows = np.flatnonzero(chosen).tolist()
    if not rows:
        return Outcomes(messages)
    scores = {row: decode(lines[row].encode(), Score) for row in rows}
    records = [one for row in rows for one in _about(scored, row, scores[row], stream, storm, suppressions)]
    messages += _alerts(scored, records, scores, stream, model, together, short=short)
    n_suppressed, n_drawn = (sum(isinstance(one, kind) for one in records) for kind in (_Suppressed, _Drawn))
    return Outcomes(messages, len(rows) - n_drawn, n_suppressed, n_drawn)


def _about(
    scored: Block, row: int, score: Score, stream: Stream, storm: Storm | None, suppressions: Suppressions
) -> Iterator[_About]:
    """What is published about a score that is over the threshold or was drawn."""
    texts, arrival_ms = scored.entity_texts[row], int(scored.arrival_ms[row])
    if not score.alert:
        yield _Drawn(row)
    elif suppressions and (suppression := suppressions.of(stream.entities, texts, arrival_ms)) is not None:
        yield _Suppressed(row, suppression)
    elif storm is None:
        yield FullAlert(row, group_id=None)
    else:
        yield from storm.admit(Raised(row, score, texts[0], int(scored.time_ms[row]), arrival_ms))


def _alerts(
    scored: Block,
    records: Sequence[_About],
    scores: Mapping[int, Score],
    stream: Stream,
    model: Model,
    together: Together,
    *,
    short: bool,
) -> Iterator[Message]:
    """The messages about some scores; only those of full alerts and reviews are explained."""
    rows = [record.row for record in records if isinstance(record, FullAlert | _Drawn)]
    found = together.explain(model, scored.numeric[rows], scored.category_hashes[rows]) if rows else ()
    explained = dict(zip(rows, found, strict=True))
    for record in records:
        if isinstance(record, AlertUpdate | AlertOverflow):
            yield _storm_message(record, stream)
            continue
        row, threshold = record.row, model.threshold
        score, key, entities = (
            scores[row],
            scored.key[row],
            dict(zip(stream.entities, scored.entity_texts[row], strict=True)),
        )
        if isinstance(record, _Suppressed):
            suppressed = suppressed_of(score, record.suppression, threshold=threshold, entities=entities, short=short)
            yield _message("alerts", stream, key, suppressed, kind=SUPPRESSED)
            continue
        features = features_of(stream, scored.numeric[row], scored.category_texts[row].tolist())
        told: dict[str, Any] = {
            "threshold": threshold,
            "entities": entities,
            "explained": explained[row],
            "features": features,
        }
        if isinstance(record, _Drawn):
            yield _message("alerts", stream, key, review_of(score, **told, short=short), kind=REVIEW)
        else:
            yield _message("alerts", stream, key, alert_of(score, **told, group_id=record.group_id, short=short))


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


def _message(to: str, stream: Stream, key: bytes | None, value: Score | Refused, *, kind: str | None = None) -> Message:
    topic, partition, offset = msgspec.structs.astuple(value.source)
    headers = cloudevent_headers(kind or to, stream.name, f"{topic}/{partition}/{offset}")
    return Message(stream.topic(to), encode(value), key_of(key), partition, None, headers)
