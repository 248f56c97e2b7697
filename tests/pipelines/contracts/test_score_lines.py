"""Scores as lines: the bytes say what the scores are, whatever the event ids hold."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipelines.contracts.block import Block
from pipelines.contracts.messages import RecordSource, Score, decode_lines, rfc3339
from pipelines.contracts.score_lines import score_lines

TIMES = st.integers(0, 7_258_118_400_000)


def numbers(kind: Any, elements: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return arrays.arrays(kind, 3, elements=elements)


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=3, max_size=3),
    numbers(np.float32, st.floats(0, 1, width=32)),
    numbers(np.bool_, st.booleans()),
    numbers(np.int64, TIMES),
    numbers(np.uint64, st.integers(0, 2**64 - 1)),
)
def test_each_line_is_the_score_of_its_event(ids: Any, found: Any, flags: Any, times_ms: Any, hashes: Any) -> None:
    block = Block.blank(3, n_entities=1, n_numbers=0, n_categories=0)
    block.event_id[:] = ids
    scored = replace(
        block, offset=np.arange(3), time_ms=times_ms, arrival_ms=times_ms[::-1].copy(), late_ms=times_ms,
        out_of_turn=~flags, features_hash=hashes, partition=np.full(3, 7, np.int32),
    )  # fmt: skip
    lines = score_lines(scored, found, flags, topic='a".events', model="m")
    scores = decode_lines("\n".join(lines).encode(), Score)
    assert scores == [
        Score(
            event_id=ids[i],
            score=float(f"{found[i]:.9g}"),
            alert=bool(flags[i]),
            model="m",
            source=RecordSource('a".events', 7, i),
            event_time=rfc3339(int(times_ms[i])),
            arrival=rfc3339(int(times_ms[2 - i])),
            late_ms=int(times_ms[i]),
            out_of_order=not flags[i],
            features_hash=f"{hashes[i]:016x}",
        )
        for i in range(3)
    ]
    assert np.array_equal(np.array([score.score for score in scores], np.float32), found)
