"""Messages that the scorer publishes: scores, alerts, dead letters and progress. JSON with CloudEvents 1.0 headers."""

import base64
import hashlib
from collections.abc import Hashable, Mapping
from datetime import timedelta
from functools import cache
from typing import Any, Literal, TypeVar, cast

import msgspec

from pipelines.contracts.alert_memory import AlertMemory, Overflowed
from pipelines.contracts.contract import EPOCH, Refusal
from pipelines.contracts.delays import OpenDelay, ScoringDelayed
from pipelines.contracts.suppression import Suppression

MAX_RAW_BYTES = 4_096
MAX_KEY_BYTES = 1_024
MAX_TEXT = 1_024  # characters of one text in an alert or a dead letter
SHORT_TEXT = 64
T = TypeVar("T")
_encoder = msgspec.json.Encoder()


class RecordSource(msgspec.Struct, frozen=True):
    """Position of the event in Kafka."""

    topic: str
    partition: int
    offset: int


class Score(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message of `<stream>.scores`: one for every accepted event, exactly once.

    With packed scores, a record has many of these messages, one on each line. `threshold` is there only if an operator
    has ordered another one than the model's own.
    """

    event_id: str
    score: float
    alert: bool
    model: str
    source: RecordSource
    event_time: str
    arrival: str
    late_ms: int
    out_of_order: bool
    features_hash: str
    threshold: float | None = None


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """One unusual field: its value, the expected value, and the score if it had the expected value."""

    field: str
    actual: float | str | None
    expected: float | str | None
    surprise: float
    score_if_expected: float


class Alert(Score, frozen=True, kw_only=True, omit_defaults=True):
    """A message of `<stream>.alerts`: a score over the threshold, with reasons. `alert_id` is the idempotency key.

    With grouping it opens a group: `group_id` is its own `alert_id`, and `count` is 1.
    """

    alert_id: str
    threshold: float
    entities: dict[str, str | None]
    reasons: list[Reason]
    score_if_all_expected: float
    features: dict[str, float | str | None]
    group_id: str | None = None
    count: int | None = None


class AlertUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """A message of `<stream>.alerts` with `kind` "update": how many alerts a group has by now.

    An update replaces the earlier ones of its group. Idempotency key: `group_id` and `count`.

    - `count`: alerts of the group so far, including the one that opened it.
    - `entities`: the entity of the group; an id of more than 64 characters is cut, as is the event id.
    - `event_id`, `score`, `source`, `event_time`, `arrival`: of the last event.
    - `since`: arrival of the alert that opened the group.
    - `closed`: the group is over; the next alert of the entity opens another one.
    """

    kind: Literal["update"] = "update"
    group_id: str
    count: int
    highest_score: float
    closed: bool
    since: str
    entities: dict[str, str]
    event_id: str
    score: float
    source: RecordSource
    event_time: str
    arrival: str


class AlertOverflow(msgspec.Struct, frozen=True, kw_only=True):
    """A message of `<stream>.alerts` with `kind` "overflow": alerts of a partition beyond its cap of the day.

    - `events`: [offset, score] of each; `<stream>.scores` has their scores, marked as alerts.
    - `day`: of their arrival, UTC; `arrival` is that of the last one.
    - `n_alerts`, `n_overflow`: full alerts and overflow of the partition on that day so far, including these.
    """

    kind: Literal["overflow"] = "overflow"
    day: str
    topic: str
    partition: int
    n_alerts: int
    n_overflow: int
    highest_score: float
    arrival: str
    events: tuple[Overflowed, ...]


class SuppressedAlert(Score, frozen=True, kw_only=True, omit_defaults=True):
    """A message of `<stream>.alerts` with `kind` "suppressed": a score over the threshold, of an entity whose alerts
    are not wanted at the moment. `alert_id` is the idempotency key.
    """

    kind: Literal["suppressed"]
    alert_id: str
    threshold: float
    entities: dict[str, str | None]
    suppression: Suppression


class Review(Score, frozen=True, kw_only=True, omit_defaults=True):
    """A message of `<stream>.alerts` with `kind` "review": a random event that is not over the threshold, to be
    labelled. `review_id` is the idempotency key.
    """

    kind: Literal["review"]
    review_id: str
    threshold: float
    entities: dict[str, str | None]
    reasons: list[Reason]
    score_if_all_expected: float
    features: dict[str, float | str | None]


AlertRecord = Alert | AlertUpdate | AlertOverflow | SuppressedAlert | Review | ScoringDelayed


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A message of `<stream>.refused`: an event that broke a rule, or the duplicate of one already scored.

    `fix` says how to fix the event (named `mend` in formats 1 and 2; readers of those accept both names).
    `key_bytes` and `key_sha256` describe the whole key of the event if the key of the message is only its beginning.
    """

    rule: str
    detail: str
    fix: str
    source: RecordSource
    raw_base64: str
    raw_bytes: int
    sha256: str
    duplicate_of: int | None = None
    key_bytes: int | None = None
    key_sha256: str | None = None


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A message of `<stream>.progress`: what has been published, per partition. It is authoritative on a restart.

    - `start`: the first offset that is scored.
    - `origin`: the offsets where folding started, of every source.
    - `frontier`: the offsets up to which a restart folds before everything else, of every source.
    - `out_of_turn`: places [kind, partition, offset, place...] that this lane had not recorded before.
    - `topic_ids`: Kafka's ids (KIP-516) of the input topics by kind; they reveal a recreated topic.
    - `definition_start`: the first offset scored under `definition`.
    - `outcomes_from`: the first offsets of this partition's scores and refused that count since a recovery, by kind.
    - `retold`: the offsets [from, to) of the progress records in which `unmask recover` recorded places again.
    - `clock_offset`: the offset in the clock topic from which a restart reads marks, after it has folded `frontier`.
    - `alert_memory`: open groups of alerts and the use of the daily cap; None without.
    - `delay`: of scores, that was told and is not over.
    - `format`: 1 was written by version 0.1.0.
    """

    next_offset: int
    start: int
    n_scored: int
    n_refused: int
    n_duplicates: int
    n_out_of_turn: int
    n_partitions: int
    definition: str
    model: str
    owner: str
    origin: dict[str, list[int]]
    frontier: dict[str, list[int]] | None
    out_of_turn: list[list[int]]
    format: int = 1
    topic_ids: dict[str, str] = {}
    definition_start: int = 0
    outcomes_from: dict[str, int] = {}
    retold: list[int] = []
    clock_offset: int = 0
    alert_memory: AlertMemory | None = None
    delay: OpenDelay | None = None


PROGRESS_FORMAT = 2
PACKED = "packed_scores"  # the kind of a record with many scores
UPDATE, OVERFLOW, DELAYED = "alert_update", "alert_overflow", "scoring_delayed"
SUPPRESSED, REVIEW = "alert_suppressed", "review"
MESSAGE_FORMATS = {"scores": 2, PACKED: 1, "alerts": 2, UPDATE: 1, OVERFLOW: 1, DELAYED: 1, "refused": 3}
MESSAGE_FORMATS |= {SUPPRESSED: 1, REVIEW: 1}
MESSAGE_TYPES: Mapping[str, Any] = {
    "scores": Score,
    PACKED: Score,  # of each line
    "alerts": Alert,
    UPDATE: AlertUpdate,
    OVERFLOW: AlertOverflow,
    SUPPRESSED: SuppressedAlert,
    REVIEW: Review,
    DELAYED: ScoringDelayed,
    "refused": Refused,
}


def encode(value: msgspec.Struct) -> bytes:
    """Encode a message as JSON."""
    return _encoder.encode(value)


def decode(value: bytes | None, kind: type[T]) -> T:
    """Decode a message of a kind from JSON."""
    return msgspec.json.decode(value or b"", type=kind)


def decode_alert(value: bytes | None) -> AlertRecord:
    """Decode a message of `<stream>.alerts`; a full alert has no `kind`.

    >>> decode_alert(b'{"kind":"overflow","day":"2026-12-01","topic":"t","partition":0,"n_alerts":9,"n_overflow":1,'
    ...              b'"highest_score":0.9,"arrival":"","events":[[41,0.9]]}').events
    (Overflowed(offset=41, score=0.9),)
    """
    return decode(value, _ALERT_KINDS[decode(value, _AlertKind).kind])


class _AlertKind(msgspec.Struct):
    kind: Literal["alert", "update", "overflow", "suppressed", "review", "scoring_delayed"] = "alert"


_ALERT_KINDS: Mapping[str, type[AlertRecord]] = {
    "alert": Alert,
    "update": AlertUpdate,
    "overflow": AlertOverflow,
    "suppressed": SuppressedAlert,
    "review": Review,
    "scoring_delayed": ScoringDelayed,
}


def decode_lines(value: bytes | None, kind: type[T]) -> list[T]:
    """Decode a record with one or more messages of a kind, one on each line.

    >>> decode_lines(b'{"topic":"t","partition":0,"offset":1}', RecordSource)
    [RecordSource(topic='t', partition=0, offset=1)]
    """
    messages: list[T] = _lines_decoder(cast(Hashable, kind)).decode_lines(value or b"")
    if not messages:
        raise msgspec.DecodeError("the record is empty")
    return messages


@cache
def _lines_decoder(kind: Any) -> "msgspec.json.Decoder[Any]":
    return msgspec.json.Decoder(kind)


def cloudevent_headers(kind: str, stream: str, event: str) -> list[tuple[str, bytes]]:
    """CloudEvents 1.0 attributes, binary mode (Kafka protocol binding, section 3.2), and the format of this kind.

    A reader that supports formats up to n skips messages with a higher `ce_formatversion`. Without the header it is 1.

    Args:
        event: position of the event, or of the first and last one, in Kafka: `topic/partition/offset`.
    """
    before, after = _constant_headers(kind, stream)
    return [*before, ("ce_id", f"{event}/{kind}".encode()), *after]


@cache
def _constant_headers(kind: str, stream: str) -> tuple[list[tuple[str, bytes]], list[tuple[str, bytes]]]:
    content_type = b"application/x-ndjson" if kind == PACKED else b"application/json"
    return [
        ("ce_specversion", b"1.0"),
        ("ce_type", f"unmask.{kind}".encode()),
        ("ce_source", f"unmask/{stream}".encode()),
    ], [
        ("ce_formatversion", str(MESSAGE_FORMATS[kind]).encode()),
        ("content-type", content_type),
    ]


def rfc3339(time_ms: int) -> str:
    """UTC time with milliseconds.

    >>> rfc3339(0)
    '1970-01-01T00:00:00.000Z'
    """
    return (EPOCH + timedelta(milliseconds=time_ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def alert_id_of(score: Score) -> str:
    """The id of the alert or review of a score: it depends on the position of the event and on the model."""
    named = f"{score.source.topic}/{score.source.partition}/{score.source.offset}/{score.model}"
    return hashlib.sha256(named.encode()).hexdigest()[:32]


def key_of(key: bytes | None) -> bytes | None:
    """The Kafka key of the messages about an event: its own, or the first `MAX_KEY_BYTES` of a longer one."""
    return key[:MAX_KEY_BYTES] if key else key


def cut(text: str, limit: int = MAX_TEXT) -> str:
    """The text; if it is too long, its beginning, length and hash.

    >>> cut("abcdef", 6), cut("abcdefg", 6)
    ('abcdef', 'abcdef... (7 characters, sha256 7d1a54127b222502)')
    """
    if len(text) <= limit:
        return text
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    return f"{text[:limit]}... ({len(text)} characters, sha256 {digest[:16]})"


def refused_of(
    refusal: Refusal,
    source: RecordSource,
    raw: bytes | None,
    *,
    key: bytes | None = None,
    duplicate_of: int | None = None,
    short: bool = False,
) -> Refused:
    """The dead letter of a refused event or a duplicate, bounded in size; `short` omits the raw bytes."""
    raw, is_cut = raw or b"", key is not None and len(key) > MAX_KEY_BYTES
    return Refused(
        rule=refusal.rule,
        detail=cut(refusal.detail, SHORT_TEXT if short else MAX_TEXT),
        fix=refusal.fix,
        source=source,
        raw_base64="" if short else base64.b64encode(raw[:MAX_RAW_BYTES]).decode(),
        raw_bytes=len(raw),
        sha256=hashlib.sha256(raw).hexdigest(),
        duplicate_of=duplicate_of,
        key_bytes=len(key) if key and is_cut else None,
        key_sha256=hashlib.sha256(key).hexdigest() if key and is_cut else None,
    )
