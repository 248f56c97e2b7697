"""Convert the training table of the lake to the input of the models."""

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
from pipelines.features.offline import features_of
from pipelines.lake.shards import Workers
from pipelines.lake.tables import Lake
from pipelines.lake.training_table import training_table


class TooLittleDataError(UnmaskError):
    """The lake has too few events for training."""


@dataclass(frozen=True)
class TrainingData:
    """Rows in time order, with the labels known at `as_of_ms`. Shapes: `label`, `known` and `event_id` (n,)."""

    table: Table
    label: NDArray[np.int8]
    known: NDArray[np.bool_]
    event_id: pl.Series
    as_of_ms: int
    features_key: str  # identifies the feature table


def columns_of(stream: Stream) -> tuple[Column, ...]:
    """Convert the stream's columns to those of the models package, which does not import pipelines."""
    return tuple(Column(*msgspec.structs.astuple(column)) for column in stream.columns)


def load(
    lake: Lake,
    stream: Stream,
    features: Path,
    *,
    as_of_ms: int,
    min_rows: int = 1_000,
    workers: Workers | None = None,
) -> TrainingData:
    """Load all events that had arrived before `as_of_ms`, with the labels that had matured.

    Args:
        features: folder of the stream's feature tables. Features are computed only if no table can be used.
        workers: as in `feature_table`.

    Raises:
        TooLittleDataError: fewer than `min_rows` events.
    """
    with progress.shown("features") as report:
        found = training_table(
            lake,
            stream,
            features,
            as_of_ms=as_of_ms,
            workers=workers,
            progress=lambda done, n: report(done / max(n, 1), f"{done:,} of {n:,} events and labels"),
        )
    if len(found) < min_rows:
        raise TooLittleDataError(
            f"{stream.name}: the lake has {len(found)} events from before that time; at least {min_rows} are "
            "needed. Run `unmask ingest` first"
        )
    numeric, categorical = (PickedRows(m, found.rows) for m in (found.features.numeric, found.features.categorical))
    table = Table(columns_of(stream), numeric, categorical, found.time_ms, found.category_names, found.entity)
    return TrainingData(table, found.label, found.known, found.event_id, as_of_ms, found.features.key)


def entities_of(lake: Lake, stream: Stream, event_id: pl.Series) -> dict[str, NDArray[np.uint32]]:
    """For each kind of entity a number of the entity of each event, **shape (n,)**; missing ones are one entity."""
    events = lake.read("events", columns=["event_id", *stream.entities]).unique("event_id", keep="first")
    rows = pl.DataFrame({"event_id": event_id}).join(events, on="event_id", how="left", maintain_order="left")
    return {name: rows[name].fill_null("").rank("dense").to_numpy() for name in stream.entities}


def offline_table(frame: pl.DataFrame, stream: Stream) -> Table:
    """Convert past events to the input of the models, without Kafka and lake, as in a notebook; see `features_of`."""
    found = features_of(frame, stream)
    columns, names = columns_of(stream), found.category_names
    return Table(columns, found.numeric, found.categorical, found.time_ms, names, found.entity)


def budget_of(stream: Stream) -> Budget:
    """Convert the alert budget of the stream file to that of the models package."""
    cost = stream.budget.get("cost")
    return Budget(
        rate=stream.budget.get("rate"),
        per_day=stream.budget.get("per_day"),
        cost=(cost["missed"], cost["review"]) if cost else None,
        fraud_rate=cost.get("fraud_rate") if cost else None,
    )
