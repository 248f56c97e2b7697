"""All messages of a stream as JSON Schemas, and its topics as one AsyncAPI 3.0 document, made from the types."""

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from pipelines.contracts.input_types import event_type, label_type
from pipelines.contracts.json_schema import Schema, misses, schema_of, schemas_of
from pipelines.contracts.messages import (
    MESSAGE_FORMATS,
    MESSAGE_TYPES,
    PACKED,
    PROGRESS_FORMAT,
    REVIEW,
    SUPPRESSED,
    UPDATE,
    AlertRecord,
    Progress,
    cloudevent_headers,
)
from pipelines.contracts.stream import Stream
from pipelines.errors import UnmaskError
from pipelines.live.control import Order
from pipelines.live.marks import ClockMark
from pipelines.operate.ledger import Claim, Settled

DOCUMENT = "asyncapi.json"
_ALERTS = tuple(name for name, kind in MESSAGE_TYPES.items() if kind in get_args(AlertRecord))
_KEYED = ("event", "label", "scores", "alerts", UPDATE, SUPPRESSED, REVIEW, "refused")
_FORMATS = {**MESSAGE_FORMATS, "progress": PROGRESS_FORMAT}
_Action = Literal["send", "receive"]
# Of each topic: its messages, what Unmask does with it, and what it is for.
CHANNELS: Mapping[str, tuple[tuple[str, ...], tuple[_Action, ...], str]] = {
    "events": (("event",), ("receive",), "Events to be scored."),
    "labels": (("label",), ("receive",), "What events were: fraud or not."),
    "scores": (("scores", PACKED), ("send",), "One score for every accepted event, exactly once."),
    "alerts": (_ALERTS, ("send",), "Scores over the threshold with reasons, and what is to be known beside them."),
    "refused": (("refused",), ("send",), "Events that broke a rule, and duplicates."),
    "progress": (("progress",), ("send", "receive"), "How far each partition has been published."),
    "clock": (("clock_mark",), ("send", "receive"), "Marks of the order in which events are processed."),
    "control": (("order",), ("send", "receive"), "Orders to the scorers: models, thresholds, suppressions."),
    "resent": (("claim", "settled"), ("send", "receive"), "Which refused events were sent again."),
    "shadow": ((PACKED,), ("send",), "Scores of a challenger, at least once each."),
}


def message_types(stream: Stream | None) -> dict[str, Any]:
    """The type of every message, by its name: the end of its `ce_type` where it has one.

    Args:
        stream: gives the fields of events and labels; without one they may have any.
    """
    return {
        "event": event_type(stream),
        "label": label_type(stream),
        **MESSAGE_TYPES,
        "progress": Progress,
        "clock_mark": ClockMark,
        "order": Order,
        "claim": Claim,
        "settled": Settled,
    }


def documents(stream: Stream | None) -> dict[str, Schema]:
    """The AsyncAPI document and a JSON Schema for every message, by the name of the file."""
    types = message_types(stream)
    schemas = {f"{name}.json": schema_of(kind, name, format=_FORMATS.get(name)) for name, kind in types.items()}
    return {DOCUMENT: _asyncapi(types, stream), **schemas}


def write(stream: Stream | None, folder: Path) -> list[Path]:
    """Write the documents into a folder; returns their paths.

    Raises:
        UnmaskError: a message of the folder has lost something that its readers rely on, in the same format; or a file
            of the folder is not a JSON Schema.
    """
    found = documents(stream)
    for name, new in found.items():
        path = folder / name
        if "x-format" not in new or not path.exists():
            continue
        try:
            old = msgspec.json.decode(path.read_bytes(), type=dict)
        except msgspec.DecodeError as error:
            raise UnmaskError(f"{path}: is not a JSON Schema ({error}); delete it or choose another folder") from error
        if old.get("x-format") == new["x-format"] and (lost := misses(old, new)):
            raise UnmaskError(
                f"{path}: format {new['x-format']} of this message has changed for its readers: {'; '.join(lost)}. "
                "Add fields instead, or raise its number (MESSAGE_FORMATS or PROGRESS_FORMAT in messages.py)"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for name, document in found.items():
        (folder / name).write_bytes(text_of(document))
    return [folder / name for name in found]


def text_of(document: Schema) -> bytes:
    """A document as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _asyncapi(types: Mapping[str, Any], stream: Stream | None) -> Schema:
    topics = {
        topic: row
        for topic, row in CHANNELS.items()
        if topic != "labels" or stream is None or stream.labels is not None
    }
    shown = sorted({name for names, _, _ in topics.values() for name in names})
    schemas = schemas_of([types[name] for name in shown], at="#/components/schemas/")
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": f"Unmask: {stream.name}" if stream else "Unmask",
            "version": version("unmask"),
            "description": "Topics and messages of a stream. Read with isolation.level=read_committed; ignore unknown "
            "fields, and messages with a ce_type or a ce_formatversion that you do not know.",
        },
        "defaultContentType": "application/json",
        "channels": {topic: _channel(topic, stream) for topic in topics},
        "operations": dict(_operations(topics)),
        "components": {
            "messages": {
                name: _message(name, schemas[types[name].__name__], types[name].__name__, stream) for name in shown
            },
            "schemas": schemas,
        },
    }


def _channel(topic: str, stream: Stream | None) -> Schema:
    names, _, says = CHANNELS[topic]
    parameters = {"parameters": {"topics": {"description": "First part of the topic names of a stream, its name."}}}
    return {
        "address": stream.topic(topic) if stream else f"{{topics}}.{topic}",
        "description": says,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
        **({} if stream else parameters),
    }


def _operations(topics: Mapping[str, Any]) -> Iterator[tuple[str, Schema]]:
    for topic in topics:
        names, actions, _ = CHANNELS[topic]
        for action in actions:
            yield (
                f"{action}_{topic}",
                {
                    "action": action,
                    "channel": {"$ref": f"#/channels/{topic}"},
                    "messages": [{"$ref": f"#/channels/{topic}/messages/{name}"} for name in names],
                },
            )


def _message(name: str, schema: Schema, title: str, stream: Stream | None) -> Schema:
    headers = _headers(name, stream) if name in MESSAGE_FORMATS else {}
    key: Schema = {"type": "string", "description": "Text of the first entity, or its beginning if it is very long."}
    return {
        "title": title,
        "summary": " ".join(schema.get("description", title).partition("\n\n")[0].split()),
        **({"description": "One score on each line; the schema is that of a line."} if name == PACKED else {}),
        **headers,
        "payload": {"$ref": f"#/components/schemas/{title}"},
        **({"bindings": {"kafka": {"key": key, "bindingVersion": "0.5.0"}}} if name in _KEYED else {}),
    }


def _headers(name: str, stream: Stream | None) -> Schema:
    """The headers of a message, as they are written; what depends on the stream or the event is any text."""
    written = {key: value.decode() for key, value in cloudevent_headers(name, stream.name if stream else "", "")}
    free = {"ce_id"} if stream else {"ce_id", "ce_source"}
    shown = {key: {"type": "string", **({} if key in free else {"const": value})} for key, value in written.items()}
    return {
        "contentType": written["content-type"],
        "headers": {"type": "object", "properties": shown, "required": list(shown)},
    }
