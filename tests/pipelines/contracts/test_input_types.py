"""The schemas of events and labels say what the contract takes."""

import json
from datetime import datetime
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from pipelines.contracts.contract import Event, EventContract, Label, LabelContract, text_of
from pipelines.contracts.input_types import event_type, label_type
from pipelines.contracts.stream_file import parse

STREAM = parse("""
[stream]
name = "payments"
event_id = "id"
event_time = "at"
entities = ["card", "shop"]
[fields]
id = { type = "text", max_length = 4 }
at = { type = "time" }
card = { type = "int" }
shop = { type = "text", required = true }
amount = { type = "number", min = 0, max = 100, required = true }
pieces = { type = "int", min = 1, max = 9 }
country = { type = "category", max_length = 5 }
note = { type = "text", max_length = 3 }
[labels]
maturity = "7d"
""")
VALUES: tuple[Any, ...] = (
    None,
    "",
    "a",
    "abcd",
    "abcdef",
    "\U0001f600" * 3,
    0,
    1,
    9,
    100,
    -1,
    2.5,
    5.0,
    100.5,
    "2026-01-01T00:00:00",
    "2026-01-01T00:00:00+01:00",
    True,
    False,
    [],
    {},
)
GOOD: dict[str, Any] = {"id": "e1", "at": 1, "card": 7, "shop": "s", "amount": 5.5, "pieces": 3, "country": "DE"}
REPORT = {"id": "e1", "at": "2026-01-01T00:00:00Z", "card": 7, "shop": "s", "label": 1, "labelled_at": 2, "source": "b"}
LATER_MS = 2**42
FORMATS = FormatChecker(())


@FORMATS.checks("date-time", raises=ValueError)
def is_time_with_a_zone(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


def changed(good: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A good message in which up to two fields, or one that is not known, have other values or are not there."""
    names = st.sampled_from([*good, "note", "unknown"])
    changes = st.dictionaries(names, st.sampled_from((..., *VALUES)), max_size=2)
    return changes.map(lambda change: {k: v for k, v in (good | change).items() if v is not ...})


def key_of(message: dict[str, Any]) -> bytes | None:
    card = message.get("card")
    return text_of(card).encode() if isinstance(card, int | str) else b""


def holds_in(kind: type[msgspec.Struct], message: dict[str, Any]) -> bool:
    return Draft202012Validator(msgspec.json.schema(kind), format_checker=FORMATS).is_valid(message)


def is_whole_float(message: dict[str, Any]) -> bool:
    """JSON Schema takes 5.0 as a whole number, the contract does not everywhere."""
    return any(isinstance(message.get(name), float) for name in ("id", "at", "card", "country", "label", "labelled_at"))


@given(changed(GOOD))
def test_an_event_is_taken_where_its_schema_holds(message: dict[str, Any]) -> None:
    holds = holds_in(event_type(STREAM), message)
    found = EventContract(STREAM).decode(json.dumps(message).encode(), key_of(message), LATER_MS)
    assert holds == isinstance(found, Event) or (holds and is_whole_float(message)), found


@given(changed(REPORT))
def test_a_label_is_taken_where_its_schema_holds(message: dict[str, Any]) -> None:
    holds = holds_in(label_type(STREAM), message)
    found = LabelContract(STREAM).decode(json.dumps(message).encode(), key_of(message))
    assert holds == isinstance(found, Label) or (holds and is_whole_float(message)), found
