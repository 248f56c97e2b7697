"""Events and labels of a stream as types with their bounds: what a sender can check before it sends."""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from pipelines.contracts.contract import MAX_TIME_MS
from pipelines.contracts.stream import Field, Stream

_WHEN = Annotated[datetime, Meta(tz=True)] | Annotated[int, Meta(ge=0, le=MAX_TIME_MS)]
_FieldType = tuple[str, Any] | tuple[str, Any, None]
_REPORT: Sequence[_FieldType] = (
    ("label", Annotated[int, Meta(ge=0, le=1, description="1 fraud, 0 not.")]),
    ("labelled_at", Annotated[_WHEN, Meta(description="When it was reported.")]),
    ("source", Annotated[str, Meta(min_length=1, max_length=256, description="Where the report comes from.")]),
    ("by", Annotated[str | None, Meta(description="Who reported it; decides nothing.")], None),
    ("why", Annotated[str | None, Meta(description="Why; decides nothing.")], None),
)


def event_type(stream: Stream | None) -> type[msgspec.Struct]:
    """The type of the events of a stream; without one, of any stream.

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
    >>> msgspec.json.schema(event_type(stream))["$defs"]["Event"]["required"]
    ['id', 'at', 'user']
    """
    says = "An event: a JSON object with the fields of the stream file. A field that is null counts as missing."
    return _struct("Event", says, _fields(stream, [field.name for field in stream.fields]) if stream else [])


def label_type(stream: Stream | None) -> type[msgspec.Struct]:
    """The type of the labels of a stream; without one, of any stream."""
    says = "A label: the id, time and entities of an event, what it was, and when and by whom that was reported."
    of_event = _fields(stream, [stream.event_id, stream.event_time, *stream.entities]) if stream else []
    return _struct("Label", says, [*of_event, *_REPORT])


def _struct(name: str, says: str, fields: Sequence[_FieldType]) -> type[msgspec.Struct]:
    return msgspec.defstruct(name, fields, namespace={"__doc__": says}, kw_only=True)


def _fields(stream: Stream, names: Sequence[str]) -> list[_FieldType]:
    always = (stream.event_id, stream.event_time, stream.key)
    found: list[_FieldType] = []
    for field in map(stream.field, names):
        required = field.required or field.name in always
        kind = _type_of(field, is_number=field.name in stream.numbers, required=required)
        found.append((field.name, kind) if required else (field.name, kind | None, None))
    return found


def _type_of(field: Field, *, is_number: bool, required: bool) -> Any:
    """An id that is a whole number has no bounds; an empty text is a missing one."""
    text = Annotated[str, Meta(min_length=int(required), max_length=field.max_length)]
    bounds = Meta(ge=field.min, le=field.max)
    types: dict[str, Any] = {
        "int": Annotated[int, Meta(ge=math.ceil(field.min), le=math.floor(field.max))] if is_number else int,
        "number": Annotated[float, bounds],
        "text": text,
        "category": text | int | bool,
        "time": _WHEN,
    }
    return types[field.type]
