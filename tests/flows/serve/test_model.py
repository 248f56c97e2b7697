"""Columns that only one side knows are masked cells, whatever their place; and the battery of every model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from flows.serve.model import ColumnsByName
from flows.training_data import columns_of
from models.ship.artifact import load
from models.table import Column
from tests.models.battery import CHECKS, D_NUM, Candidate, Score, too_few_columns_are_refused
from tests.models.conftest import COLUMNS
from tests.models.test_every_model import served, trained
from tests.pipelines.payments import payments_stream


class Recorder:
    """Stands where a trained model would be, and returns what it was given."""

    digest, threshold, alert_rate = "recorder", 0.5, None

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


def test_a_model_s_column_has_the_fields_of_the_stream_s() -> None:
    stream = payments_stream("columns")
    for ours, theirs in zip(columns_of(stream), stream.columns, strict=True):
        assert vars(ours) == msgspec.structs.asdict(theirs)


def by_name_of(model: Any, columns: Sequence[Column]) -> Score:
    """A model beside a stream of these columns."""
    names = [column.name for column in columns]
    stream = SimpleNamespace(numeric_columns=names[:D_NUM], categories=names[D_NUM:])
    return ColumnsByName(model, stream).score  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def by_name(tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    folder = tmp_path_factory.mktemp("model")
    model = served(trained(), folder)
    return Candidate(
        by_name_of(model, COLUMNS),
        lambda columns, numeric, categorical: by_name_of(model, columns)(numeric, categorical),
        lambda: by_name_of(served(trained(), folder / "again"), COLUMNS),
        lambda _: by_name_of(load(folder), COLUMNS),
    )


# It is the stream that says how many columns there are; one that the model lacks is a masked cell.
@pytest.mark.parametrize(
    "check", [check for check in CHECKS if check is not too_few_columns_are_refused], ids=lambda check: check.__name__
)
def test_a_model_by_name_passes_the_battery(
    by_name: Candidate, check: Callable[[Candidate, Path], None], tmp_path: Path
) -> None:
    check(by_name, tmp_path)
