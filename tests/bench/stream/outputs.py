"""What the peers publish: the score records of Unmask, byte for byte of the same form, and a progress record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.contracts.messages import RecordSource, Score

Headers = list[tuple[str, str | bytes | None]]
MODEL = "0" * 64  # digest of a model
PROGRESS_BYTES = 640
_NO_HASH = "0" * 16
_encode = msgspec.json.Encoder().encode


class Columns(NamedTuple):
    """Some events as they were read."""

    partition: list[int]
    offset: list[int]
    stamp_ms: list[int]
    key: list[bytes]
    value: list[bytes]


class Out(NamedTuple):
    """A record to write. `stamp_ms`: for the records of `bare`, which have no other place for the event's arrival."""

    topic: str
    value: bytes
    key: bytes | None
    partition: int
    headers: Headers
    stamp_ms: int | None = None


def headers_of(topic: str, partition: int, offset: int) -> Headers:
    """The CloudEvents headers of a score."""
    return [*_FIXED, ("ce_id", f"{topic}/{partition}/{offset}/scores".encode())]


_FIXED: Headers = [
    ("ce_specversion", b"1.0"),
    ("ce_type", b"unmask.scores"),
    ("ce_source", b"unmask/bench"),
    ("ce_formatversion", b"2"),
    ("content-type", b"application/json"),
]


def texts_of(times_ms: Sequence[int] | NDArray[np.int64]) -> list[str]:
    """RFC 3339 of some times, ms since 1970.

    >>> texts_of([0, 1_767_225_600_123])
    ['1970-01-01T00:00:00.000Z', '2026-01-01T00:00:00.123Z']
    """
    at = np.asarray(times_ms, np.int64).astype("datetime64[ms]")
    return [f"{text}Z" for text in np.datetime_as_string(at).tolist()]


def score_records(
    source: str,
    target: str,
    columns: Columns,
    event_ids: Sequence[str],
    times_ms: Sequence[int],
    scores: Sequence[float],
    threshold: float,
) -> list[Out]:
    """One record for each event."""
    rows = zip(
        columns.partition,
        columns.offset,
        columns.key,
        event_ids,
        texts_of(times_ms),
        texts_of(columns.stamp_ms),
        scores,
        strict=True,
    )
    return [
        Out(
            target,
            _encode(
                Score(
                    event_id=event_id,
                    score=score,
                    alert=score > threshold,
                    model=MODEL,
                    source=RecordSource(source, partition, offset),
                    event_time=at,
                    arrival=arrival,
                    late_ms=0,
                    out_of_order=False,
                    features_hash=_NO_HASH,
                )
            ),
            key,
            partition,
            headers_of(source, partition, offset),
        )
        for partition, offset, key, event_id, at, arrival, score in rows
    ]


def packed_records(
    source: str,
    target: str,
    columns: Columns,
    event_ids: Sequence[str],
    times_ms: Sequence[int],
    scores: Sequence[float],
    threshold: float,
) -> list[Out]:
    """One record for each partition, with the columns of all its events."""
    partitions = np.asarray(columns.partition)
    records = []
    for p in np.unique(partitions).tolist():
        at = np.flatnonzero(partitions == p).tolist()
        found = [scores[i] for i in at]
        value = {
            "model": MODEL,
            "topic": source,
            "partition": p,
            "event_id": [event_ids[i] for i in at],
            "score": found,
            "alert": [score > threshold for score in found],
            "offset": [columns.offset[i] for i in at],
            "event_time": [times_ms[i] for i in at],
            "arrival": [columns.stamp_ms[i] for i in at],
            "late_ms": [0] * len(at),
            "out_of_order": [False] * len(at),
            "features_hash": [_NO_HASH] * len(at),
        }
        records.append(Out(target, _encode(value), None, p, headers_of(source, p, columns.offset[at[0]])))
    return records


def progress_record(topic: str, next_offsets: Sequence[int]) -> Out:
    """A record that says how far the events are out, as large as Unmask's."""
    head = b'{"next_offset":%b,"more":"' % _encode(list(next_offsets))
    return Out(topic, head.ljust(PROGRESS_BYTES - 2, b"x") + b'"}', None, 0, [])


def sample(source: str) -> Out:
    """A score record of a usual size."""
    columns = Columns([1], [40_000], [1_767_225_600_123], [b"c01234"], [b""])
    return score_records(source, "", columns, ["1-123456"], [1_767_225_600_123], [0.0123456789], 0.5)[0]
