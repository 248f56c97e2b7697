"""The lake's training table as the models want it."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.score.budget import Budget
from models.table import Column, Table
from pipelines.contracts.stream import Stream
from pipelines.errors import UnmaskError
from pipelines.lake.replay import training_table
from pipelines.lake.tables import Lake


class TooLittleDataError(UnmaskError):
    """The lake holds too few events to learn from."""


@dataclass(frozen=True)
class TrainingData:
    """Rows in time order with what is known of them at `as_of_ms`. Shapes: `label`, `known` and `event_id` (n,)."""

    table: Table
    label: NDArray[np.int8]
    known: NDArray[np.bool_]
    event_id: pl.Series
    as_of_ms: int


def columns_of(stream: Stream) -> tuple[Column, ...]:
    """The stream's model inputs in the models' words."""
    return tuple(
        Column(c.name, "categorical" if c.kind == "categorical" else "numeric", of=c.of, label_fed=c.label_fed)
        for c in stream.columns
    )


def load(lake: Lake, stream: Stream, *, as_of_ms: int, min_rows: int = 1_000) -> TrainingData:
    """Everything that had arrived before `as_of_ms`, labels only where they had matured.

    Raises:
        TooLittleDataError: fewer than `min_rows` events.
    """
    rows = training_table(lake, stream, as_of_ms=as_of_ms)
    if len(rows.time_ms) < min_rows:
        raise TooLittleDataError(
            f"{stream.name}: the lake holds {len(rows.time_ms)} events from before that time, at least {min_rows} are "
            "needed; run `unmask ingest` first"
        )
    table = Table(columns_of(stream), rows.numeric, rows.categorical, rows.time_ms, rows.category_names)
    return TrainingData(table, rows.label, rows.known, rows.event_id, as_of_ms)


def budget_of(stream: Stream) -> Budget:
    """The stream file's alert budget in the models' words."""
    cost = stream.budget.get("cost")
    return Budget(
        rate=stream.budget.get("rate"),
        per_day=stream.budget.get("per_day"),
        cost=(cost["missed"], cost["review"]) if cost else None,
        fraud_rate=cost.get("fraud_rate") if cost else None,
    )
