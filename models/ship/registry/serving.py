"""What MLflow needs to load and serve a model: signature, input example, requirements and the module that loads it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from models.table import Column

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

DATA = "data/model"  # the model's files, beside those of MLflow


@dataclass(frozen=True)
class Serving:
    """How MLflow loads and serves a model.

    Args:
        loader: module with the function ``_load_pyfunc(path)``. It is installed, never stored with the model.
        columns: inputs of the model; any may be missing.
        example: some input rows: value of each column by name, None = missing.
        requirements: packages that the loader needs.
        explain: the values of the parameter ``explain``, the default first.
    """

    loader: str
    columns: tuple[Column, ...]
    example: Sequence[Mapping[str, float | str | None]]
    requirements: tuple[str, ...]
    explain: tuple[str, ...]


def write_servable(target: Path, folder: Path, serving: Serving, *, run_id: str, model_id: str) -> None:
    """Write a folder that MLflow can load: the files of `folder` under `DATA`, and MLflow's description of them.

    Args:
        target: is created.
        folder: files of the model.
        serving: how it is loaded.
        run_id, model_id: MLflow's ids of the run and of the logged model.
    """
    import pandas as pd
    from mlflow import pyfunc
    from mlflow.models import Model

    kinds = {column.name: object if column.kind == "categorical" else float for column in serving.columns}
    example = pd.DataFrame([{name: row.get(name) for name in kinds} for row in serving.example]).astype(kinds)
    with TemporaryDirectory() as draft:
        pyfunc.save_model(
            str(target),
            loader_module=serving.loader,
            data_path=str(shutil.copytree(folder, Path(draft) / "model")),
            mlflow_model=Model(artifact_path="model", run_id=run_id, model_id=model_id),
            signature=signature_of(serving),
            input_example=example,
            pip_requirements=list(serving.requirements),
        )


def signature_of(serving: Serving) -> ModelSignature:
    """Inputs: numbers and texts, all optional. Outputs: score, alert, threshold, reasons."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array, Object, Property

    kinds = {"numeric": DataType.double, "categorical": DataType.string}
    inputs = Schema([ColSpec(kinds[column.kind], column.name, required=False) for column in serving.columns])
    reason = Object(
        [
            Property("field", DataType.string),
            Property("actual", AnyType(), required=False),
            Property("expected", AnyType(), required=False),
            Property("surprise", DataType.double),
            Property("score_if_expected", DataType.double),
        ]
    )
    outputs = Schema(
        [
            ColSpec(DataType.double, "score"),
            ColSpec(DataType.boolean, "alert"),
            ColSpec(DataType.double, "threshold"),
            ColSpec(Array(reason), "reasons"),
            ColSpec(DataType.double, "score_if_all_expected", required=False),
        ]
    )
    return ModelSignature(inputs, outputs, ParamSchema([ParamSpec("explain", DataType.string, serving.explain[0])]))
