"""The data that a run was trained on, as MLflow shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.table import Column

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

_TYPES = {"numeric": "double", "categorical": "string"}


@dataclass(frozen=True)
class Dataset:
    """A table of training rows.

    Args:
        name: of the stream.
        digest: identifies the rows; at most 36 characters.
        source: folder or address of the Delta table that the rows come from.
        version: version of that table.
        columns: of the rows.
        profile: what a person should know of the rows: their number, period, labels.
    """

    name: str
    digest: str
    source: str
    version: str
    columns: tuple[Column, ...]
    profile: Mapping[str, str | int | float]


def input_of(dataset: Dataset, *, context: str) -> DatasetInput:
    """The dataset as an input of a run.

    Args:
        context: what the run does with it, such as "training".
    """
    from mlflow.entities import Dataset as MlflowDataset
    from mlflow.entities import DatasetInput, InputTag

    columns = [{"type": _TYPES[c.kind], "name": c.name, "required": False} for c in dataset.columns]
    made = MlflowDataset(
        name=dataset.name,
        digest=dataset.digest[:36],
        source_type="delta_table",
        source=json.dumps({"path": dataset.source, "delta_table_version": dataset.version}),
        schema=json.dumps({"mlflow_colspec": columns}),
        profile=json.dumps(dict(dataset.profile)),
    )
    return DatasetInput(made, [InputTag("mlflow.data.context", context)])
