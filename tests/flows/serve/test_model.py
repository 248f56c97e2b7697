"""Columns that only one side knows are masked cells, whatever their place."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.serve.model import ColumnsByName
from models.table import Column
from tests.pipelines.live.rig import payments_stream


class Recorder:
    """Stands where a trained model would be, and returns what it was given."""

    digest, threshold = "recorder", 0.5

    def __init__(self, columns: tuple[Column, ...]) -> None:
        self.columns = columns

    def score(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> Any:
        return numeric, categorical

    explain = score


def test_a_column_that_the_stream_lacks_is_masked_and_no_other_column_takes_its_place() -> None:
    stream = payments_stream("columns")
    first, *_, last = stream.numeric_columns
    (*_, category) = stream.categories
    wanted = (
        Column("gone.number", "numeric"),
        Column(last, "numeric"),
        Column(first, "numeric"),
        Column("gone.category", "categorical"),
        Column(category, "categorical"),
    )
    model = ColumnsByName(Recorder(wanted), stream)  # type: ignore[arg-type]
    assert model.missing == ["gone.number", "gone.category"]
    rows = np.arange(1.0, 1.0 + 2 * len(stream.numeric_columns)).reshape(2, -1)
    hashes = np.arange(1, 1 + 2 * len(stream.categories), dtype=np.uint64).reshape(2, -1)
    for call in (model.score, model.explain):
        numeric, categorical = call(rows, hashes)  # type: ignore[misc]
        np.testing.assert_array_equal(numeric, np.stack([[np.nan] * 2, rows[:, -1], rows[:, 0]], axis=1))
        np.testing.assert_array_equal(categorical, np.stack([np.zeros(2, np.uint64), hashes[:, -1]], axis=1))
