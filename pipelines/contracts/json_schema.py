"""JSON Schemas (2020-12) of message types, and what a reader of an older one would miss in a newer one."""

import re
from collections.abc import Iterable, Mapping
from inspect import cleandoc
from typing import Any

import msgspec

Schema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
_LINE = re.compile(r"^- (`\w+`(?:, `\w+`)*): (.*(?:\n  .*)*)\n?", re.MULTILINE)
_SAID = ("title", "description", "default")  # what says nothing about the values


def schemas_of(types: Iterable[Any], *, at: str = "#/$defs/") -> dict[str, Schema]:
    """The schemas of some types and of those inside them, by the name of the type.

    Docstrings become descriptions: a line "- `field`: text" that of the field. Unknown fields are allowed.

    Args:
        at: where they will be found, for the references between them.

    >>> from pipelines.contracts.messages import AlertUpdate
    >>> schemas_of([AlertUpdate])["AlertUpdate"]["properties"]["since"]
    {'type': 'string', 'description': 'arrival of the alert that opened the group.'}
    """
    _, found = msgspec.json.schema_components(types, ref_template=f"{at}{{name}}")
    return {name: _described(found[name]) for name in sorted(found)}


def schema_of(kind: Any, name: str, *, format: int | None) -> Schema:
    """The schema of one message as a document of its own; `format` is the `ce_formatversion` of the message."""
    numbered = {} if format is None else {"x-format": format}
    found = schemas_of([kind])
    top = found.pop(kind.__name__)
    return {"$schema": DIALECT, "$id": f"{name}.json", **numbered, **top, **({"$defs": found} if found else {})}


def _described(schema: Schema) -> Schema:
    """The schema with the lines about fields at the fields."""
    fields = schema.get("properties", {})

    def moved(line: re.Match[str]) -> str:
        names = [name.strip("` ") for name in line[1].split(",")]
        if not fields.keys() >= set(names):
            return line[0]
        for name in names:
            fields[name]["description"] = " ".join(line[2].split())
        return ""

    said = _LINE.sub(moved, cleandoc(schema.get("description", "")) + "\n").strip()
    return schema | ({"description": said} if said else {})


def misses(old: Schema, new: Schema) -> list[str]:
    """What readers of the old schema rely on and the new one does not keep; empty if it only adds.

    >>> old = {"properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
    >>> misses(old, {"properties": {"a": {"type": "number"}, "c": {}}, "required": ["a"]})
    ['a has another type', 'b is gone']
    >>> misses(old, {"properties": old["properties"] | {"c": {}}, "required": ["a"]})
    ['b may be absent']
    """
    found = []
    for inside, before, after in _pairs(old, new):
        has = after.get("properties", {})
        needed = set(before.get("required", ())) - set(after.get("required", ()))
        for name, schema in before.get("properties", {}).items():
            if name not in has:
                found.append(f"{inside}{name} is gone")
            elif _values(schema) != _values(has[name]):
                found.append(f"{inside}{name} has another type")
            elif name in needed:
                found.append(f"{inside}{name} may be absent")
        items = _values(before.get("prefixItems", []))
        if items != _values(after.get("prefixItems", []))[: len(items)]:
            found.append(f"{inside}items are gone or have other types")
    return found


def _pairs(old: Schema, new: Schema) -> Iterable[tuple[str, Schema, Schema]]:
    yield "", old, new
    for name, schema in old.get("$defs", {}).items():
        yield f"{name}.", schema, new.get("$defs", {}).get(name, {})


def _values(schema: Any) -> Any:
    if isinstance(schema, Mapping):
        return {key: _values(value) for key, value in schema.items() if key not in _SAID}
    return [_values(part) for part in schema] if isinstance(schema, list) else schema
