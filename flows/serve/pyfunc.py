"""What `mlflow.pyfunc.load_model` and `mlflow models serve` load: the scores and reasons of the live scorer."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.score.explain import Explanation
from models.ship import artifact
from models.ship.artifact import ServedModel
from models.ship.registry import Serving
from models.table import Table
from pipelines.contracts.contract import hashes_of, text_of
from pipelines.errors import UnmaskError
from pipelines.live.alert_records import reason_of

if TYPE_CHECKING:
    import pandas as pd

EXPLAIN = ("alerts", "all", "none")
N_EXAMPLES = 3


class NotServedError(UnmaskError):
    """A request has an unknown parameter."""


def serving_of(model: ServedModel, rows: Table) -> Serving:
    """How MLflow loads a model, with the first rows of a table as the input example."""
    names = rows.category_names
    example: list[dict[str, float | str | None]] = []
    for numbers, hashes in zip(
        np.asarray(rows.numeric[:N_EXAMPLES]).tolist(),
        np.asarray(rows.categorical[:N_EXAMPLES]).tolist(),
        strict=True,
    ):
        values = [None if np.isnan(number) else number for number in numbers] + [names.get(one) for one in hashes]
        example.append(dict(zip((column.name for column in rows.columns), values, strict=True)))
    requirements = (f"unmask[serve]=={version('unmask')}", f"mlflow=={version('mlflow')}")
    return Serving(__name__, model.columns, example, requirements, EXPLAIN)


class Scorer:
    """A model for MLflow. Its inputs are the `features` of an alert: numbers, and categories as text.

    Features that the model does not have are not read; features that are not sent, or null, are missing.
    """

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self._numeric = [column.name for column in model.columns if column.kind == "numeric"]
        self._categorical = [column.name for column in model.columns if column.kind == "categorical"]

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Score rows, and explain some of them.

        Args:
            model_input: a column for each feature, n rows.
            params: `explain`: "alerts" = explain scores over the threshold, as the live scorer does; "all"; "none".

        Returns:
            n rows with `score` in [0, 1], `alert`, `threshold`, `reasons` and `score_if_all_expected` (NaN where there
            is no explanation).

        Raises:
            NotServedError: `explain` has another value.
        """
        import pandas as pd

        explain = (params or {}).get("explain", EXPLAIN[0])
        if explain not in EXPLAIN:
            raise NotServedError(f"explain is {str(explain)[:40]!r}; it must be one of {', '.join(EXPLAIN)}")
        n, texts = len(model_input), self._texts(model_input)
        numeric, categorical = np.full((n, len(self._numeric)), np.nan), np.zeros((n, len(texts)), np.uint64)
        for i, name in enumerate(self._numeric):
            if name in model_input:
                numeric[:, i] = pd.to_numeric(model_input[name]).to_numpy(np.float64, na_value=np.nan)
        for i, column in enumerate(texts.values()):
            categorical[:, i] = hashes_of(column)
        score = self._model.score(numeric, categorical)
        alert = score > np.float32(self._model.threshold)
        chosen = np.flatnonzero({"alerts": alert, "all": np.ones(n, bool), "none": np.zeros(n, bool)}[explain])
        found = dict(zip(chosen.tolist(), self._model.explain(numeric[chosen], categorical[chosen]), strict=True))
        return pd.DataFrame(
            {
                "score": score.astype(np.float64),
                "alert": alert,
                "threshold": np.full(n, self._model.threshold),
                "reasons": [_reasons(found.get(row), {k: v[row] for k, v in texts.items()}) for row in range(n)],
                # None, not NaN, which is no JSON
                "score_if_all_expected": pd.Series(
                    [found[row].score_if_all_expected if row in found else None for row in range(n)], dtype=object
                ),
            }
        )

    def _texts(self, frame: pd.DataFrame) -> dict[str, list[str | None]]:
        """The category columns as the contract reads them."""
        import pandas as pd

        return {
            name: [None if pd.isna(value) else text_of(value) for value in frame[name]]
            if name in frame
            else [None] * len(frame)
            for name in self._categorical
        }


def _reasons(found: Explanation | None, texts: Mapping[str, str | None]) -> list[dict[str, Any]]:
    import msgspec

    return [] if found is None else [msgspec.structs.asdict(reason_of(reason, texts)) for reason in found.reasons]


def _load_pyfunc(path: str) -> Scorer:
    """MLflow calls this with the folder of the model's files. A file that differs from the manifest is refused."""
    return Scorer(artifact.load(Path(path)))
