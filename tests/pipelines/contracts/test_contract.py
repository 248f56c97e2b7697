"""The contract: every rule by name, its neighbours on the right side, and bytes of any kind."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts.contract import (
    MAX_PROVENANCE,
    RULES,
    Event,
    EventContract,
    Label,
    LabelContract,
    Refusal,
    hash64,
    provenance_of,
)
from pipelines.contracts.stream_file import parse

ARRIVAL_MS = 1_700_000_000_000
STREAM = parse("""
[stream]
name = "payments"
event_id = "id"
event_time = "at"
entities = ["card", "shop"]
future_tolerance = "5m"
max_message_bytes = 500
[fields]
id = { type = "text", max_length = 10 }
at = { type = "time" }
card = { type = "int" }
shop = { type = "text" }
amount = { type = "number", min = 0, max = 100, required = true }
pieces = { type = "int" }
country = { type = "category", max_length = 5 }
note = { type = "text", max_length = 8 }
[labels]
maturity = "7d"
""")
EVENTS, LABELS = EventContract(STREAM), LabelContract(STREAM)
GOOD: dict[str, Any] = {"id": "e1", "at": ARRIVAL_MS, "card": 4711, "shop": "s", "amount": 5.5, "country": "DE"}
REPORT = {"id": "e1", "at": 1, "card": 4711, "shop": "s", "label": 1, "labelled_at": 2, "source": "bank"}
GONE = object()


def decode(key: bytes | None = b"4711", raw: bytes | None = None, **change: Any) -> Event | Refusal:
    message = {name: value for name, value in (GOOD | change).items() if value is not GONE}
    return EVENTS.decode(json.dumps(message).encode() if raw is None else raw, key, ARRIVAL_MS)


def test_a_good_event_is_decoded_whole() -> None:
    event = decode(colour="red")
    assert isinstance(event, Event)
    assert (event.event_id, event.time_ms, event.has_unknown_fields) == ("e1", ARRIVAL_MS, True)
    assert event.entity_texts == ("4711", "s")
    assert event.numbers[0] == 5.5
    assert event.numbers[1] != event.numbers[1]
    assert event.category_texts == ("DE",)


@pytest.mark.parametrize(
    ("change", "rule", "detail"),
    [
        ({"id": GONE}, "missing_field", "id is missing"),
        ({"id": ""}, "missing_field", "id is missing"),
        ({"at": None}, "missing_field", "at is missing"),
        ({"card": GONE}, "missing_field", "card is missing"),
        ({"amount": GONE}, "missing_field", "amount is missing"),
        ({"id": "12345678901"}, "too_long", "id has 11 characters, at most 10"),
        ({"country": "123456"}, "too_long", "country has 6 characters, at most 5"),
        ({"note": "123456789"}, "too_long", "note has 9 characters, at most 8"),
        ({"amount": "5"}, "wrong_type", "amount: Expected `float | null`, got `str`"),
        ({"amount": True}, "wrong_type", "amount: Expected `float | null`, got `bool`"),
        ({"pieces": 1.5}, "wrong_type", "pieces: Expected `int | null`, got `float`"),
        ({"shop": 7}, "wrong_type", "shop: Expected `str | null`, got `int`"),
        ({"at": "2023-11-14T22:13:20"}, "wrong_type", "at has no time zone"),
        ({"at": "yesterday"}, "wrong_type", "at: Invalid RFC3339"),
        ({"amount": -0.001}, "out_of_range", "amount is -0.001; it must be between 0 and 100"),
        ({"amount": 100.001}, "out_of_range", "amount is 100.001"),
        ({"at": -1}, "out_of_range", "at is -1 ms since 1970"),
        ({"pieces": 10**23}, "out_of_range", "pieces"),
        ({"at": ARRIVAL_MS + 300_001}, "future_timestamp", "at is 300 s ahead of its arrival"),
        ({"note2": "x" * 500}, "too_big", "bytes, at most 500"),
    ],
)
def test_a_broken_rule_is_named_with_what_was_seen(change: dict[str, Any], rule: str, detail: str) -> None:
    refusal = decode(**change)
    assert isinstance(refusal, Refusal)
    assert refusal.rule == rule
    assert detail in refusal.detail
    assert refusal.fix == RULES[rule]


@pytest.mark.parametrize(
    "change",
    [
        {"id": "1234567890"},
        {"country": "12345"},
        {"note": "12345678"},
        {"amount": 0},
        {"amount": 100},
        {"amount": -0.0},
        {"pieces": None, "shop": GONE, "country": GONE},
        {"pieces": 10**15},
        {"country": 7},
        {"country": True},
        {"at": "2023-11-14T22:13:20Z"},
        {"at": "2023-11-14T23:13:20+01:00"},
        {"at": ARRIVAL_MS + 300_000},
        {"at": 0},
    ],
)
def test_what_just_keeps_a_rule_is_taken(change: dict[str, Any]) -> None:
    assert isinstance(decode(**change), Event)


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (b"", "bad_json"),
        (b"{", "bad_json"),
        (b"\xff", "bad_json"),
        (b'{"id": "\\ud800"}', "bad_json"),
        (b'{"other": ' + b"[" * 400, "bad_json"),
        (b"[]", "wrong_type"),
        (b"null", "wrong_type"),
        (b'{"amount": NaN}', "not_finite"),
        (b'{"amount": -Infinity}', "not_finite"),
        (b'{"amount": 1e400}', "out_of_range"),
        (b" " * 501, "too_big"),
    ],
)
def test_bytes_that_are_no_event_are_refused_by_a_named_rule(raw: bytes, rule: str) -> None:
    refusal = decode(raw=raw)
    assert isinstance(refusal, Refusal), refusal
    assert refusal.rule == rule, refusal


def test_a_message_without_a_value_is_refused() -> None:
    assert EVENTS.decode(None, b"4711", ARRIVAL_MS) == Refusal("bad_json", "the message is empty")


@pytest.mark.parametrize("key", [None, b"", b"4712", b"04711", b"\xff"])
def test_the_key_must_be_the_id_of_the_first_entity(key: bytes | None) -> None:
    refusal = decode(key=key)
    assert isinstance(refusal, Refusal)
    assert refusal.rule == "wrong_key"
    assert "card is '4711'" in refusal.detail


def test_seven_and_its_text_are_one_customer() -> None:
    assert hash64("7") == hash64(str(7))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"label": 2}, "out_of_range"),
        ({"label": None}, "missing_field"),
        ({"label": "1"}, "wrong_type"),
        ({"source": ""}, "missing_field"),
        ({"labelled_at": None}, "missing_field"),
        ({"id": None}, "missing_field"),
        ({"card": 1}, "wrong_key"),
    ],
)
def test_a_broken_label_is_refused_by_name(change: dict[str, Any], rule: str) -> None:
    refusal = LABELS.decode(json.dumps(REPORT | change).encode(), b"4711")
    assert isinstance(refusal, Refusal)
    assert refusal.rule == rule


def test_a_good_label_is_decoded() -> None:
    label = LABELS.decode(json.dumps(REPORT).encode(), b"4711")
    assert isinstance(label, Label)
    assert (label.label, label.time_ms, label.labelled_at_ms, label.source) == (1, 1, 2, "bank")


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ({"by": "ann", "why": "case 7"}, ("ann", "case 7")),
        ({"by": 7, "why": ["x"]}, (None, None)),
        ({"by": "", "why": None}, (None, None)),
        ({"by": "é\x1b", "why": "x\ty"}, ("é\x1b", "x\ty")),
        ({}, (None, None)),
    ],
)
def test_who_reported_a_label_and_why_is_kept_and_decides_nothing(told: dict[str, Any], kept: tuple[Any, Any]) -> None:
    raw = json.dumps({**REPORT, **told}).encode()
    assert LABELS.decode(raw, b"4711") == LABELS.decode(json.dumps(REPORT).encode(), b"4711")
    assert provenance_of(raw) == kept
    assert provenance_of(json.dumps({"why": "x" * 5_000}).encode()) == (None, "x" * MAX_PROVENANCE)
    assert provenance_of(b'{"by": "\\ud800"}') == (None, None)


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)
nearly_good = st.dictionaries(st.sampled_from([*GOOD, "pieces", "note", "other"]), values).map(
    lambda change: json.dumps(GOOD | change).encode()
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good message with some bytes changed, cut out or put in."""
    raw = bytearray(json.dumps(GOOD).encode())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(raw)


@given(st.one_of(st.binary(max_size=600), nearly_good, damaged()), st.one_of(st.none(), st.just(b"4711"), st.binary()))
def test_no_bytes_whatever_raise_and_what_is_taken_keeps_the_contract(raw: bytes, key: bytes | None) -> None:
    for decoded in (EVENTS.decode(raw, key, ARRIVAL_MS), LABELS.decode(raw, key)):
        if isinstance(decoded, Refusal):
            assert decoded.rule in RULES
            decoded.detail.encode()
        else:
            assert decoded.event_id
            assert decoded.entity_texts[0] is not None
            assert decoded.entity_texts[0].encode() == key
        if isinstance(decoded, Event):
            assert 0 <= decoded.numbers[0] <= 100
            assert 0 <= decoded.time_ms <= ARRIVAL_MS + 300_000
            assert all(number != number or abs(number) <= 1e15 for number in decoded.numbers)
