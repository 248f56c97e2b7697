"""Bounds in bytes are bounds of real memory: what is said to be held is what Python holds, within a quarter."""

import gc
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from pipelines.contracts.messages import Progress
from pipelines.contracts.stream import Stream
from pipelines.contracts.stream_file import parse
from pipelines.features.state import State
from pipelines.live.outbox import Outbox, Put
from pipelines.live.replica import Replica
from pipelines.order import EVENT, Merge, Source, by_kind
from pipelines.record import Received
from tests.pipelines.live.kill_stream import stream_named
from tests.pipelines.live.rig import broken_events

N = 3_000
WIDE = parse(
    """
[stream]
name = "wide"
event_id = "id"
event_time = "at"
entities = ["card"]
[fields]
id = { type = "text" }
at = { type = "time" }
card = { type = "text" }
"""
    + "\n".join(f'n{i} = {{ type = "number" }}' for i in range(30))
    + "\n".join(f'\nc{i} = {{ type = "category" }}' for i in range(10))
)


def narrow_value(i: int, padding: int) -> bytes:
    event: dict[str, Any] = {"id": f"event-{i:08d}", "at": 1_700_000_000_000 + i, "card": f"card-{i % 999}", "shop": i}
    return json.dumps(event | {"amount": float(i), "country": "de", "padding": "x" * padding}).encode()


def wide_value(i: int, padding: int) -> bytes:
    event: dict[str, Any] = {"id": f"event-{i:08d}", "at": 1_700_000_000_000 + i, "card": f"card-{i % 999}"}
    event |= {f"n{k}": i + k / 7 for k in range(30)} | {f"c{k}": f"kind {i % 97} of {k}" for k in range(10)}
    return json.dumps(event | {"padding": "x" * padding}).encode()


def broken_value(i: int, padding: int) -> bytes:
    return f'{{"id": {i}, '.encode() + b"x" * padding


def records(first: int, value: Callable[[int, int], bytes], padding: int) -> list[Received]:
    return [
        Received("events", 0, i, 1_700_000_000_000 + i, f"card-{i % 999}".encode(), value(i, padding))
        for i in range(first, first + N)
    ]


@pytest.mark.parametrize("padding", [0, 2_000])
def test_what_is_in_hand_is_weighed_in_bytes(padding: int) -> None:
    merge = Merge({Source(EVENT, 0): 0, Source(EVENT, 1): 0}, label_lag_ms=0)
    gc.collect()
    tracemalloc.start()
    try:
        merge.add(Source(EVENT, 0), records(0, narrow_value, padding))
        real = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert merge.n_bytes == pytest.approx(real, rel=0.25)
    assert merge.hoards(merge.n_bytes - 1) == {Source(EVENT, 0)}
    assert merge.hoards(merge.n_bytes) == set()
    merge.observe(Source(EVENT, 1), position=0, end=0, asked_ms=2e12, live=True)
    merge.observe(Source(EVENT, 0), position=N, end=N, asked_ms=2e12, live=True)
    merge.mark(merge.proposal() or pytest.fail("nothing to release"))
    assert len(merge.release()) == N
    assert merge.n_bytes == 0


@pytest.mark.parametrize(
    ("stream", "value"), [(stream_named("narrow"), narrow_value), (WIDE, wide_value), (WIDE, broken_value)]
)
@pytest.mark.parametrize("padding", [0, 1_500])
def test_an_outbox_knows_what_its_rows_take(stream: Stream, value: Callable[[int, int], bytes], padding: int) -> None:
    state = State(stream, 1)
    progress = Progress(
        next_offset=0, start=0, n_scored=0, n_refused=0, n_duplicates=0, n_out_of_turn=0, n_partitions=1, owner="",
        definition="", model="", origin=by_kind(state.frontier, 1), frontier=None, out_of_turn=[],
    )  # fmt: skip
    replica, outbox = Replica(state, {0: progress}, {}, own_clock=True), Outbox()

    def fold(first: int) -> None:
        replica.merge.add(Source(EVENT, 0), records(first, value, padding))
        for source in state.frontier:
            at = first + N if source.kind == EVENT else 0
            replica.merge.observe(source, position=at, end=at, asked_ms=2e12, live=True)
        for (put,) in replica.advance():
            outbox.put(put)

    fold(0)  # what grows once has grown
    outbox._puts.clear()
    outbox.n_bytes = 0
    gc.collect()
    tracemalloc.start()
    try:
        fold(N)
        gc.collect()
        full = tracemalloc.get_traced_memory()[0]
        said = outbox.n_bytes
        batch = outbox.take(max_rows=10**9)
        assert batch is not None
        outbox.drop(batch)
        del batch
        gc.collect()
        real = full - tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert said == pytest.approx(real, rel=0.25)
    assert outbox.n_bytes == 0


def test_an_outbox_knows_what_its_places_take() -> None:
    outbox, no_rows = Outbox(), broken_events(stream_named("narrow"), 0, 0)
    gc.collect()
    tracemalloc.start()
    try:
        for n in range(3):
            base = 1_700_000_000_000 + n
            outbox.put(
                Put(no_rows, [[1, 0, 10**6 + k, base + k, 1, 1, 10**6 + k, k] for k in range(1_000)], {"events": [n]})
            )
        real = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert outbox.n_bytes == pytest.approx(real, rel=0.25)
