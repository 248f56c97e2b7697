"""The features of past events in a data frame, computed offline: no Kafka and no lake."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.contracts.block import Block
from pipelines.contracts.contract import hash64, hashes_of
from pipelines.contracts.stream import Stream
from pipelines.features.state import State
from pipelines.order import EVENT, LABEL

_CHUNK = 50_000


@dataclass(frozen=True)
class OfflineFeatures:
    """Features of n events, in the order of the frame.

    Shapes: `time_ms` and `entity` (hash of the key entity) (n,), `numeric` (n, d) with NaN = missing, `categorical`
    (n, c) hashes with 0 = missing. `category_names` maps hashes to texts.
    """

    time_ms: NDArray[np.int64]
    entity: NDArray[np.uint64]
    numeric: NDArray[np.float64]
    categorical: NDArray[np.uint64]
    category_names: dict[int, str]


def times_of(frame: pl.DataFrame, stream: Stream) -> NDArray[np.int64]:
    """Event times of a frame in ms since 1970, **shape (n,)**; its column is a datetime or already in ms."""
    at = frame[stream.event_time]
    return (at.dt.epoch("ms") if at.dtype.is_temporal() else at.cast(pl.Int64)).to_numpy()


def features_of(
    frame: pl.DataFrame,
    stream: Stream,
    *,
    label_delay_ms: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> OfflineFeatures:
    """Fold a frame of events, as the lake's replay does for the same events.

    An event arrives at its event time. Its label, from the column `stream.labels.column` (1 = fraud, 0 = legitimate,
    null = no label), arrives `label_delay_ms` later.

    Args:
        frame: one column for each field, named like it, sorted by event time; the time as a datetime or in ms since
            1970.
        label_delay_ms: delay of labels; by default the maturity.
        progress: called with the number of records folded and the total.

    >>> from pipelines.contracts.stream_file import parse
    >>> stream = parse('''
    ... [stream]
    ... name = "logins"
    ... event_id = "id"
    ... event_time = "at"
    ... entities = ["user"]
    ... [fields]
    ... id = { type = "int" }
    ... at = { type = "time" }
    ... user = { type = "text" }
    ... [[features]]
    ... entity = "user"
    ... windows = ["1h"]
    ... stats = ["count"]
    ... ''')
    >>> frame = pl.DataFrame({"id": [1, 2, 3], "at": [0, 5, 9], "user": ["ann", "bob", "ann"]})
    >>> features_of(frame, stream).numeric[:, -1]
    array([0., 0., 1.])
    """
    time_ms = times_of(frame, stream)
    n, event_id = len(frame), frame[stream.event_id].cast(pl.String).to_numpy()
    entities = np.stack([hashes_of(frame[name].cast(pl.String).to_list()) for name in stream.entities], axis=1)
    numbers = np.stack(
        [frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in stream.numbers] or [np.empty((n, 0))], -1
    ).reshape(n, -1)
    texts = [frame[name].cast(pl.String) for name in stream.categories]
    categorical = np.stack([hashes_of(text.to_list()) for text in texts] or [np.empty(n, np.uint64)], axis=1)
    categorical = categorical[:, : len(texts)]
    label, reported = np.zeros(n, np.int8), np.empty(0, np.int64)
    delay_ms = 0
    if stream.labels and stream.labels.column in frame.columns:
        given = frame[stream.labels.column]
        label = given.fill_null(0).cast(pl.Int8).to_numpy()
        reported = np.flatnonzero(np.isin(given.to_numpy(), stream.labels.sent))
        delay_ms = (stream.labels.maturity_ms if label_delay_ms is None else label_delay_ms) + stream.labels.lag_ms
    row = np.concatenate([np.arange(n), reported])
    kind = np.repeat(np.array([EVENT, LABEL], np.int8), [n, len(reported)])
    clock_ms = np.concatenate([time_ms, time_ms[reported] + delay_ms])
    order = np.lexsort((row, kind, clock_ms))
    row, kind, clock_ms = row[order], kind[order], clock_ms[order]
    state = State(stream, 1)
    numeric = np.empty((n, len(stream.numeric_columns)))
    for begin in range(0, len(row), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        rows = row[part]
        block = Block.blank(
            len(rows),
            n_entities=len(stream.entities),
            n_numbers=len(stream.numbers),
            n_categories=len(stream.categories),
        )
        block.kind[:], block.offset[:] = kind[part], rows
        block.arrival_ms[:] = block.clock_ms[:] = clock_ms[part]
        block.event_id[:], block.time_ms[:] = event_id[rows], time_ms[rows]
        block.entity_hashes[:], block.label[:] = entities[rows], label[rows]
        block.numbers[:], block.category_hashes[:] = numbers[rows], categorical[rows]
        folded = state.fold(block)
        numeric[rows[folded.is_event]] = folded.numeric[folded.is_event]
        if progress:
            progress(min(begin + _CHUNK, len(row)), len(row))
    names = {hash64(text): text for column in texts for text in column.unique().drop_nulls().to_list()}
    return OfflineFeatures(time_ms, entities[:, 0], numeric, categorical, names)
