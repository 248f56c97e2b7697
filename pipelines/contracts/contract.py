"""The contract: decodes raw bytes to an event, a label, or a refusal with the name of the broken rule."""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, NoReturn

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from pipelines.contracts.stream import Field, Stream

RULES: Mapping[str, str] = {
    "bad_json": "send one JSON object in UTF-8 per message",
    "wrong_type": "send the field with the type given in the stream file",
    "missing_field": "send the field; the stream file requires it",
    "not_finite": "send a finite number, or omit the field",
    "out_of_range": "send a value within the field's min and max, or change them in the stream file",
    "too_long": "shorten the text, or raise the field's max_length in the stream file",
    "too_big": "shorten the message, or raise max_message_bytes in the stream file",
    "future_timestamp": "correct the sender's clock; the event time is ahead of its arrival",
    "wrong_key": "set the Kafka key of the message to the id of its first entity",
    "unreadable_record": "send records that a standard Kafka client can read; this record was skipped",
    "unpublishable": "raise max.message.bytes of the scores topic; the score of this event is larger than it allows",
    "duplicate": "nothing to fix: this event id has already been scored",
}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # what decoding of foreign JSON raises
MS = timedelta(milliseconds=1)
MAX_PROVENANCE = 1_024  # characters of who reported a label, and of why
MAX_TIME_MS = 7_258_118_400_000  # the year 2200
_NOT_FINITE = re.compile(rb"[:\[,]\s*[-+]?(nan|inf|infinity)\b", re.IGNORECASE)
_AT_FIELD = re.compile(r"`\$\.([^`]*)`")


class Event(NamedTuple):
    """An accepted event; a missing text is None, a missing number NaN."""

    event_id: str
    time_ms: int
    entity_texts: tuple[str | None, ...]
    numbers: tuple[float, ...]
    category_texts: tuple[str | None, ...]
    has_unknown_fields: bool


class Label(NamedTuple):
    """A report that an event was fraud (1) or was not fraud (0)."""

    event_id: str
    time_ms: int
    entity_texts: tuple[str | None, ...]
    label: int
    labelled_at_ms: int
    source: str


class Refusal(NamedTuple):
    """Why a message was not accepted: the name of the rule, the offending value, how to fix it."""

    rule: str
    detail: str

    @property
    def fix(self) -> str:
        return RULES[self.rule]


class _RefusedError(Exception):
    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(detail)
        self.refusal = Refusal(rule, detail)


def hash64(text: str) -> int:
    """64-bit xxh3 hash of an id or category, never 0 (0 stands for missing).

    >>> hash64("4711") == hash64("4711") != 0
    True
    """
    return xxhash.xxh3_64_intdigest(text.encode()) or 1


def hashes_of(texts: Sequence[str | None]) -> NDArray[np.uint64]:
    """`hash64` of every text, 0 if it is missing; shape (n,).

    >>> hashes_of(["4711", None]).tolist() == [hash64("4711"), 0]
    True
    """
    hashes = {text: hash64(text) if text else 0 for text in set(texts)}
    return np.fromiter(map(hashes.__getitem__, texts), np.uint64, len(texts))


def text_of(value: str | int | bool) -> str:
    """The canonical text of an id or category: 7 and "7" are the same customer."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else str(value)


_JSON_TYPES: Mapping[str, Any] = {
    "int": int,
    "number": float,
    "text": str,
    "category": str | int | bool,
    "time": datetime | int,
}


def _decoders(name: str, types: Mapping[str, Any]) -> tuple[msgspec.json.Decoder[Any], msgspec.json.Decoder[Any]]:
    """A strict decoder (fails on unknown fields) and one that ignores unknown fields."""
    columns = [(field, kind | None, None) for field, kind in types.items()]
    strict = msgspec.defstruct(name, columns, forbid_unknown_fields=True, gc=False)
    lenient = msgspec.defstruct(name, columns, gc=False)
    return msgspec.json.Decoder(strict), msgspec.json.Decoder(lenient)


class _Decoding:
    """Decoding steps common to events and labels: size, JSON, types, ids, time, key."""

    def __init__(self, stream: Stream, name: str, types: Mapping[str, Any]) -> None:
        self.stream = stream
        self.decoders = self._strict, self._lenient = _decoders(name, types)
        self._id_field = stream.field(stream.event_id)
        self._entity_fields = tuple(stream.field(e) for e in stream.entities)

    def _message(self, value: bytes | None) -> tuple[Any, bool]:
        """The fields of the message, and whether it has fields that the stream file does not name."""
        if not value:
            raise _RefusedError("bad_json", "the message is empty")
        if len(value) > self.stream.max_message_bytes:
            raise _RefusedError("too_big", f"message has {len(value)} bytes, at most {self.stream.max_message_bytes}")
        try:
            return self._strict.decode(value), False
        except msgspec.ValidationError as error:
            if "unknown field" not in str(error):
                _raise_invalid(error)
        except UNDECODABLE as error:
            _raise_undecodable(error, value)
        try:
            return self._lenient.decode(value), True
        except msgspec.ValidationError as error:
            _raise_invalid(error)
        except UNDECODABLE as error:
            _raise_undecodable(error, value)

    def _event_id(self, message: Any) -> str:
        return _bounded_text(self._id_field, getattr(message, self._id_field.name)) or _missing(self._id_field.name)

    def _entities(self, message: Any, key: bytes | None) -> tuple[str | None, ...]:
        ids = tuple(_bounded_text(f, getattr(message, f.name)) for f in self._entity_fields)
        for field, text in zip(self._entity_fields, ids, strict=True):
            if field.required and not text:
                _missing(field.name)
        expected = (ids[0] or "").encode()
        if key != expected:
            shown = None if key is None else key[:64].decode(errors="replace")
            raise _RefusedError("wrong_key", f"the key is {shown!r}, but {self.stream.key} is {ids[0]!r}")
        return ids

    def _time_ms(self, message: Any, name: str, latest_ms: int | None) -> int:
        value = getattr(message, name)
        if value is None:
            _missing(name)
        if isinstance(value, datetime):
            if value.tzinfo is None:
                raise _RefusedError("wrong_type", f"{name} has no time zone; append Z or an offset such as +01:00")
            value = (value - EPOCH) // MS
        if not 0 <= value <= MAX_TIME_MS:
            raise _RefusedError("out_of_range", f"{name} is {value} ms since 1970; it must be between 1970 and 2200")
        if latest_ms is not None and value > latest_ms:
            ahead = (value - latest_ms + self.stream.future_tolerance_ms) / 1000
            raise _RefusedError("future_timestamp", f"{name} is {ahead:.0f} s ahead of its arrival")
        return int(value)


class EventContract(_Decoding):
    """Decodes the messages of `<stream>.events`.

    Example:
        >>> from pipelines.contracts.stream_file import parse
        >>> stream = parse('''
        ... [stream]
        ... name = "logins"
        ... event_id = "id"
        ... event_time = "at"
        ... entities = ["user"]
        ... [fields]
        ... id = { type = "text" }
        ... at = { type = "time" }
        ... user = { type = "text" }
        ... bytes = { type = "number", min = 0 }
        ... ''')
        >>> contract = EventContract(stream)
        >>> contract.decode(b'{"id":"1","at":"2026-01-01T00:00:00Z","user":"ann","bytes":-5}', b"ann", 2**42)
        Refusal(rule='out_of_range', detail='bytes is -5.0; it must be between 0 and 1e+15')
    """

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream, "Event", {f.name: _JSON_TYPES[f.type] for f in stream.fields})
        self._numbers = tuple(stream.field(n) for n in stream.numbers)
        self._categories = tuple(stream.field(n) for n in stream.categories)
        used = {stream.event_id, stream.event_time, *stream.entities, *stream.numbers, *stream.categories}
        self._others = tuple(f for f in stream.fields if f.name not in used)

    def decode(self, value: bytes | None, key: bytes | None, arrival_ms: int) -> Event | Refusal:
        """Decode one message that arrived at `arrival_ms` (ms since 1970)."""
        try:
            message, has_unknown = self._message(value)
            event_id = self._event_id(message)
            entity_texts = self._entities(message, key)
            time_ms = self._time_ms(message, self.stream.event_time, arrival_ms + self.stream.future_tolerance_ms)
            numbers = tuple(_bounded_number(f, getattr(message, f.name)) for f in self._numbers)
            category_texts = tuple(_bounded_text(f, getattr(message, f.name)) for f in self._categories)
            for field in self._others:
                _bounded_text(field, getattr(message, field.name))
        except _RefusedError as error:
            return error.refusal
        return Event(event_id, time_ms, entity_texts, numbers, category_texts, has_unknown)


class LabelContract(_Decoding):
    """Decodes the messages of `<stream>.labels`: event id, label, labelled_at, source, entities and time.

    `by` and `why` are for people and decide nothing, so whatever they are, the label counts: see `provenance_of`.
    """

    def __init__(self, stream: Stream) -> None:
        types: dict[str, Any] = {stream.event_id: _JSON_TYPES[stream.field(stream.event_id).type]}
        types |= {e: _JSON_TYPES[stream.field(e).type] for e in stream.entities}
        types |= {stream.event_time: datetime | int, "label": int, "labelled_at": datetime | int, "source": str}
        super().__init__(stream, "Label", types)

    def decode(self, value: bytes | None, key: bytes | None) -> Label | Refusal:
        """Decode one message."""
        try:
            message, _ = self._message(value)
            event_id = self._event_id(message)
            entity_texts = self._entities(message, key)
            time_ms = self._time_ms(message, self.stream.event_time, None)
            labelled_at_ms = self._time_ms(message, "labelled_at", None)
            if message.label is None:
                _missing("label")
            if message.label not in (0, 1):
                raise _RefusedError("out_of_range", f"label is {message.label}; it must be 0 or 1")
            source = _bounded_text(Field("source", "text"), message.source) or _missing("source")
        except _RefusedError as error:
            return error.refusal
        return Label(event_id, time_ms, entity_texts, message.label, labelled_at_ms, source)


class _Provenance(msgspec.Struct):
    by: Any = None
    why: Any = None


def provenance_of(value: bytes) -> tuple[str | None, str | None]:
    """Who reported an accepted label, and why, each cut to `MAX_PROVENANCE` characters; None if it is not a text.

    >>> provenance_of(b'{"label": 1, "by": "ann", "why": {"case": 7}}')
    ('ann', None)
    """
    try:
        told = msgspec.json.decode(value, type=_Provenance)
    except UNDECODABLE:  # in a field that the contract passes over
        told = _Provenance()
    by, why = (
        text[:MAX_PROVENANCE].encode(errors="replace").decode() if isinstance(text, str) and text else None
        for text in (told.by, told.why)
    )
    return by, why


def _missing(name: str) -> NoReturn:
    raise _RefusedError("missing_field", f"{name} is missing")


def _bounded_number(field: Field, value: float | None) -> float:
    if value is None:
        if field.required:
            _missing(field.name)
        return math.nan
    if not math.isfinite(value):
        raise _RefusedError("not_finite", f"{field.name} is {value}")
    if not field.min <= value <= field.max:
        raise _RefusedError(
            "out_of_range", f"{field.name} is {value}; it must be between {field.min:g} and {field.max:g}"
        )
    return float(value)


def _bounded_text(field: Field, value: str | int | bool | None) -> str | None:
    if value is None or value == "":
        if field.required:
            _missing(field.name)
        return None
    text = text_of(value)
    if len(text) > field.max_length:
        raise _RefusedError("too_long", f"{field.name} has {len(text)} characters, at most {field.max_length}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _RefusedError("bad_json", f"{field.name} contains an unpaired surrogate") from None
    return text


def _raise_invalid(error: msgspec.ValidationError) -> NoReturn:
    text = str(error)
    field = _AT_FIELD.search(text)
    named = field[1] if field else "message"
    if "out of range" in text.lower():
        raise _RefusedError("out_of_range", f"{named}: {text}") from error
    raise _RefusedError("wrong_type", f"{named}: {text}") from error


def _raise_undecodable(error: Exception, value: bytes) -> NoReturn:
    if _NOT_FINITE.search(value):
        raise _RefusedError("not_finite", "JSON has no NaN or infinity") from error
    if "out of range" in str(error).lower():
        raise _RefusedError("out_of_range", str(error)) from error
    raise _RefusedError("bad_json", str(error)[:200]) from error
