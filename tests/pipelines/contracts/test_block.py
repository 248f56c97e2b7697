"""The block: what the decoder puts into it is what the contract says of each message alone; rows are cut and joined."""

import json
from dataclasses import fields, replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts.block import Block
from pipelines.contracts.contract import Event, EventContract, LabelContract, Refusal, hashes_of
from pipelines.contracts.decode import Decoder
from pipelines.order import EVENT, LABEL, NO_RECORDS, Key, Run, Source, SourceClock
from pipelines.record import Received
from tests.pipelines.contracts.test_contract import ARRIVAL_MS, GOOD, REPORT, STREAM
from tests.pipelines.items import items_of

messages = st.sampled_from(
    [
        (EVENT, GOOD),
        (EVENT, GOOD | {"id": "é", "pieces": 3, "country": None, "colour": "red"}),
        (EVENT, GOOD | {"amount": -1}),
        (EVENT, {}),
        (LABEL, REPORT),
        (LABEL, REPORT | {"label": 0, "source": "court", "shop": None}),
        (LABEL, REPORT | {"label": 7}),
        (EVENT, None),
    ]
)


def run_of(drawn: list[tuple[int, dict[str, Any] | None]]) -> Run:
    clocks = {kind: SourceClock(Source(kind, kind)) for kind in (LABEL, EVENT)}
    runs = [NO_RECORDS]
    for offset, (kind, message) in enumerate(drawn):
        raw = None if message is None else json.dumps(message).encode()
        why = "its batch is damaged" if message is None else None
        record = Received("topic", kind, offset, ARRIVAL_MS + offset, b"4711", raw, why)
        runs.append(clocks[kind].run([record]))
    return Run.concat(runs)


def same(one: Block, other: Block) -> bool:
    columns = ((getattr(one, f.name), getattr(other, f.name)) for f in fields(Block))
    return all(a.dtype == b.dtype and a.shape == b.shape and a.tolist() == b.tolist() for a, b in columns)


def without_nan(block: Block) -> Block:
    """NaN is not equal to itself."""
    return replace(block, numbers=np.nan_to_num(block.numbers, nan=-1.0))


@settings(deadline=None)
@given(st.lists(messages, max_size=12))
def test_a_row_holds_what_the_contract_says_of_its_message_alone(
    drawn: list[tuple[int, dict[str, Any] | None]],
) -> None:
    run, events, labels = run_of(drawn), EventContract(STREAM), LabelContract(STREAM)
    block = Decoder(STREAM).block(run)
    assert len(block) == len(run)
    for row, (key, source, arrival_ms, record, _) in enumerate(items_of(run)):
        at = (block.kind[row], block.partition[row], block.offset[row], block.arrival_ms[row], block.clock_ms[row])
        assert at == (*source, record.offset, arrival_ms, key.effective_ms)
        assert (block.key[row], block.value[row]) == (record.key, record.value)
        if record.unreadable:
            assert block.refusal[row] == Refusal("unreadable_record", "its batch is damaged")
            continue
        if source.kind == EVENT:
            decoded: Any = events.decode(record.value, record.key, arrival_ms)
        else:
            decoded = labels.decode(record.value, record.key)
        if isinstance(decoded, Refusal):
            assert (block.refusal[row], block.event_id[row], block.is_accepted[row]) == (decoded, "", False)
            assert np.isnan(block.numbers[row]).all()
            continue
        assert block.is_accepted[row]
        assert (block.event_id[row], block.time_ms[row]) == (decoded.event_id, decoded.time_ms)
        assert tuple(block.entity_texts[row]) == decoded.entity_texts
        assert block.entity_hashes[row].tolist() == hashes_of(decoded.entity_texts).tolist()
        if isinstance(decoded, Event):
            assert block.numbers[row].tobytes() == np.array(decoded.numbers).tobytes()
            assert tuple(block.category_texts[row]) == decoded.category_texts
            assert block.category_hashes[row].tolist() == hashes_of(decoded.category_texts).tolist()
            assert block.has_unknown_fields[row] == decoded.has_unknown_fields
        else:
            told = (block.label[row], block.labelled_at_ms[row], block.label_source[row])
            assert told == (decoded.label, decoded.labelled_at_ms, decoded.source)


@settings(deadline=None)
@given(st.lists(messages, min_size=1, max_size=12), st.data())
def test_a_block_that_is_cut_and_joined_is_the_block(
    drawn: list[tuple[int, dict[str, Any] | None]], data: st.DataObject
) -> None:
    run = run_of(drawn)
    whole = without_nan(Decoder(STREAM).block(run))
    at = data.draw(st.integers(0, len(run)))
    assert same(Block.concat([whole.take(slice(at)), whole.take(slice(at, None))]), whole)
    apart = Block.concat([Decoder(STREAM).block(run.take(slice(at))), Decoder(STREAM).block(run.take(slice(at, None)))])
    assert same(without_nan(apart), whole)
    assert same(whole.take(np.arange(len(run))), whole.take(np.ones(len(run), bool)))


def test_what_came_out_of_turn_has_its_own_source_and_the_clock_of_its_place() -> None:
    run = run_of([(EVENT, GOOD)])
    block = Decoder(STREAM).block(run.placed({0: Key(99, EVENT, 0, 900, 1)}))
    assert (block.partition[0], block.offset[0], block.clock_ms[0], block.out_of_turn[0]) == (1, 0, 99, True)


def test_refusing_rows_leaves_the_others_and_the_block_itself_alone() -> None:
    block = Decoder(STREAM).block(run_of([(EVENT, GOOD), (EVENT, GOOD)]))
    refused = block.with_refusals(np.array([False, True]), [Refusal("unpublishable", "too large")])
    assert refused.is_scored.tolist() == [True, False]
    assert block.is_scored.tolist() == [True, True]
    assert refused.refusal[1].rule == "unpublishable"


def test_what_was_refused_earlier_is_refused_whatever_the_contract_says() -> None:
    run = run_of([(EVENT, GOOD), (LABEL, REPORT), (EVENT, GOOD), (EVENT, GOOD), (EVENT, {})])
    earlier = {(EVENT, 2): "out_of_range", (EVENT, 4): "too_big", (EVENT + 1, 0): "bad_json", (LABEL, 1): "bad_json"}
    block = Decoder(STREAM, earlier).block(run)
    assert [refusal and refusal.rule for refusal in block.refusal] == [None, None, "out_of_range", None, "too_big"]
    assert block.event_id[2] == ""
    assert same(without_nan(block.take(slice(0, 2))), without_nan(Decoder(STREAM).block(run.take(slice(0, 2)))))
