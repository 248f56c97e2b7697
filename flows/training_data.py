"""The lake's training table as the models want it."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from flows import progress
from models.score.budget import Budget
from models.table import Column, PickedRows, Table
from pipelines.contracts.stream import Stream
from pipelines.errors import UnmaskError
from pipelines.lake.tables import Lake
from pipelines.lake.training_table import training_table


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
    features_key: str  # names the feature table


def columns_of(stream: Stream) -> tuple[Column, ...]:
    """The stream's model inputs as the models' columns: the same fields, as neither package knows the other."""
    return tuple(Column(*msgspec.structs.astuple(column)) for column in stream.columns)


def load(lake: Lake, stream: Stream, features: Path, *, as_of_ms: int, min_rows: int = 1_000) -> TrainingData:
    """Everything that had arrived before `as_of_ms`, labels only where they had matured.

    Args:
        features: folder of the stream's feature tables; the lake is folded only where none fits.

    Raises:
        TooLittleDataError: fewer than `min_rows` events.
    """
    with progress.shown("features") as report:
        found = training_table(
            lake,
            stream,
            features,
            as_of_ms=as_of_ms,
            progress=lambda done, n: report(done / max(n, 1), f"{done:,} of {n:,} events and labels"),
        )
    if len(found) < min_rows:
        raise TooLittleDataError(
            f"{stream.name}: the lake holds {len(found)} events from before that time, at least {min_rows} are "
            "needed; run `unmask ingest` first"
        )
    numeric, categorical = (PickedRows(m, found.rows) for m in (found.features.numeric, found.features.categorical))
    table = Table(columns_of(stream), numeric, categorical, found.time_ms, found.category_names)
    return TrainingData(table, found.label, found.known, found.event_id, as_of_ms, found.features.key)


def budget_of(stream: Stream) -> Budget:
    """The stream file's alert budget in the models' words."""
    cost = stream.budget.get("cost")
    return Budget(
        rate=stream.budget.get("rate"),
        per_day=stream.budget.get("per_day"),
        cost=(cost["missed"], cost["review"]) if cost else None,
        fraud_rate=cost.get("fraud_rate") if cost else None,
    )
