"""Which alerts an analyst sees as one case: the grouping and the cap of the stream file, as the scorer applies them."""

import numpy as np
from numpy.typing import NDArray

from flows.backtesting.review import NO_CASE
from pipelines.contracts.alert_memory import AlertMemory
from pipelines.contracts.messages import RecordSource, Score
from pipelines.contracts.stream import DAY_MS, Stream
from pipelines.lake.feature_table import FeatureTable
from pipelines.live.storms import FullAlert, Raised, Storm


def warm_up_ms(stream: Stream, from_ms: int) -> int:
    """From when alerts must be known so that groups and caps are those of the scorer at a time."""
    rules = stream.storms
    if rules.within_ms is None and rules.per_day is None:
        return from_ms
    return min(from_ms - (rules.within_ms or 0), from_ms // DAY_MS * DAY_MS)


def cases_of(
    stream: Stream, table: FeatureTable, rows: range, score: NDArray[np.float32], is_alert: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """For each row the index (within `rows`) of the first alert of its case, `NO_CASE` without one, **shape (n,)**.

    Args:
        rows: of the feature table, from `warm_up_ms` on.
        score, is_alert: of these rows, **shape (n,)**.
    """
    case = np.where(is_alert, np.arange(len(rows)), NO_CASE)
    if stream.storms.within_ms is None and stream.storms.per_day is None:
        return case
    n_partitions = int(table.partition.max(initial=0)) + 1
    storms: dict[int, Storm] = {}
    opened: dict[int, int] = {}  # by entity, the first alert of its newest group
    for at in np.flatnonzero(is_alert).tolist():
        row = rows[at]
        partition, key = int(table.partition[row]), int(table.entity[row])
        if partition not in storms:
            storms[partition] = Storm(stream, AlertMemory(), partition=partition, n_partitions=n_partitions)
        one = _raised(stream, table, row, float(score[at]))
        list(storms[partition].pass_time(one.arrival_ms))
        is_grouped = storms[partition].is_grouped(one.entity)
        if any(isinstance(record, FullAlert) for record in storms[partition].admit(one)):
            opened[key] = at
        else:
            case[at] = opened[key] if is_grouped else NO_CASE
    return case


def _raised(stream: Stream, table: FeatureTable, row: int, score: float) -> Raised:
    partition, offset = int(table.partition[row]), int(table.offset[row])
    message = Score(
        event_id="", score=score, alert=True, model="", event_time="", arrival="", late_ms=0, out_of_order=False,
        features_hash="", source=RecordSource(stream.topic("events"), partition, offset),
    )  # fmt: skip
    entity = f"{int(table.entity[row]):016x}"
    return Raised(row, message, entity, int(table.time_ms[row]), int(table.clock_ms[row]))
