"""Events checked column by column: the same events, values and refusals as one by one, whatever is among them."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts.contract import Event, EventContract, Refusal, hashes_of
from pipelines.contracts.decode import Decoder
from pipelines.contracts.event_columns import ColumnContract
from pipelines.contracts.stream import Stream
from pipelines.order import EVENT, Source, SourceClock
from pipelines.record import Received
from tests.pipelines.contracts.test_contract import ARRIVAL_MS, GOOD, STREAM, damaged, nearly_good

AT_THE_BOUNDS: tuple[dict[str, Any], ...] = (
    {},
    {"id": "", "amount": 0},
    {"id": "1234567890", "amount": 100},
    {"id": "12345678901"},
    {"at": "2023-11-14T22:13:20.999999Z"},
    {"at": "2023-11-14T22:13:20"},
    {"at": ARRIVAL_MS + 300_000},
    {"at": ARRIVAL_MS + 300_001},
    {"at": -1},
    {"at": 2**63},
    {"card": 0},
    {"card": None},
    {"shop": ""},
    {"pieces": 2**53},
    {"pieces": 2**63 - 1},
    {"pieces": -(10**15) - 1},
    {"amount": None},
    {"amount": 100.00001},
    {"country": True},
    {"country": 1},
    {"country": "éàüöß"},
    {"country": "123456"},
    {"note": "x" * 9},
    {"colour": "red"},
    {"colour": "red", "amount": -1},
    {"note2": "x" * 500},
)


def assert_as_one_by_one(stream: Stream, values: list[bytes | None], keys: list[bytes | None]) -> None:
    """A block holds what the contract of one event says about each."""
    clock, contract = SourceClock(Source(EVENT, 0)), EventContract(stream)
    pairs = enumerate(zip(values, keys, strict=True))
    records = [Received("events", 0, i, ARRIVAL_MS, key, value) for i, (value, key) in pairs]
    block = Decoder(stream).block(clock.run(records))
    for row, (value, key) in enumerate(zip(values, keys, strict=True)):
        expected = contract.decode(value, key, ARRIVAL_MS)
        if isinstance(expected, Refusal):
            assert block.refusal[row] == expected
            continue
        assert block.refusal[row] is None
        found = Event(
            block.event_id[row],
            int(block.time_ms[row]),
            tuple(block.entity_texts[row]),
            (),
            tuple(block.category_texts[row]),
            bool(block.has_unknown_fields[row]),
        )
        assert found == expected._replace(numbers=())
        np.testing.assert_array_equal(block.numbers[row], expected.numbers)
        assert block.entity_hashes[row].tolist() == hashes_of(expected.entity_texts).tolist()
        assert block.category_hashes[row].tolist() == hashes_of(expected.category_texts).tolist()


raw_events = st.one_of(
    nearly_good, damaged(), st.sampled_from(AT_THE_BOUNDS).map(lambda change: json.dumps(GOOD | change).encode()),
    st.sampled_from((None, b"", b"{", b"[]", b"\xff")),
)  # fmt: skip
keys = st.sampled_from((b"4711",) * 6 + (b"4712", b"", None))


@given(st.lists(st.tuples(raw_events, keys), max_size=12))
def test_a_block_of_any_messages_is_what_the_contract_says_about_each(
    messages: list[tuple[bytes | None, bytes | None]],
) -> None:
    assert_as_one_by_one(STREAM, [value for value, _ in messages], [key for _, key in messages])


@pytest.mark.parametrize("change", AT_THE_BOUNDS)
def test_one_event_at_a_bound_among_good_ones(change: dict[str, Any]) -> None:
    good = json.dumps(GOOD).encode()
    values: list[bytes | None] = [good, json.dumps(GOOD | change).encode(), good]
    key = str((GOOD | change)["card"] or "").encode()
    assert_as_one_by_one(STREAM, values, [b"4711", key, b"4711"])


def test_good_events_and_those_with_unknown_fields_are_not_left_out() -> None:
    values = [
        json.dumps(GOOD | change).encode() for change in ({}, {"colour": 1}, {"at": "2023-11-14T22:13:20.5+01:00"})
    ]
    columns = ColumnContract(STREAM).columns(values, [b"4711"] * 3, np.full(3, ARRIVAL_MS))
    assert columns.rows.tolist() == [0, 1, 2]
    assert columns.has_unknown_fields.tolist() == [False, True, False]
