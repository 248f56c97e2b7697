"""The training table: the feature table as of a time, in the order of event time, with the labels known then."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.contracts.contract import hash64
from pipelines.contracts.stream import Stream
from pipelines.lake.feature_table import FeatureTable, feature_table
from pipelines.lake.labels import labels_of
from pipelines.lake.shards import Workers
from pipelines.lake.tables import Lake


@dataclass(frozen=True)
class TrainingTable:
    """Rows by event time with their labels as of a time. All arrays have the shape (n,).

    `rows` are indices of rows in `features`, which stay on disk until they are read. `entity` is the hash of the key.
    `label` is 1 if the latest label in effect is fraud. `known` is True if a 0 means legitimate, not merely unlabelled:
    the event is old enough or, where legitimate events are reported too, it has a label (`pipelines.lake.labels`).
    """

    features: FeatureTable
    rows: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    label: NDArray[np.int8]
    known: NDArray[np.bool_]
    entity: NDArray[np.uint64]
    category_names: dict[int, str]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def event_id(self) -> pl.Series:
        """Event ids of the rows."""
        return self.features.event_id.gather(self.rows)


def training_table(
    lake: Lake,
    stream: Stream,
    folder: Path,
    *,
    as_of_ms: int,
    workers: Workers | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TrainingTable:
    """Events that took effect before a time, with features as of each event and labels as of that time.

    Memory: about 30 bytes per row and the ids of the reported events; features are memory-mapped.

    Args:
        folder: folder of the stream's feature tables.
        as_of_ms: ms since 1970, on the stream's clock; later records are not used.
        workers, progress: as in `feature_table`.
    """
    lake = lake.snapshot()
    features = feature_table(lake, stream, folder, workers=workers, progress=progress)
    n = int(np.searchsorted(features.clock_ms, as_of_ms))
    rows = np.argsort(features.time_ms[:n], kind="stable")
    label, known = labels_of(lake, stream, features.event_id[:n], features.time_ms[:n], as_of_ms=as_of_ms)
    names = category_names(lake, stream)
    entity = features.entity[rows]
    return TrainingTable(features, rows, features.time_ms[rows], label[rows], known[rows], entity, names)


def category_names(lake: Lake, stream: Stream) -> dict[int, str]:
    """Texts of all category hashes in the lake."""
    texts: set[str] = set()
    if stream.categories:
        for batch in lake.batches("events", list(stream.categories)):
            texts.update(text for column in batch for text in column.unique().drop_nulls())
    return {hash64(text): text for text in texts}
