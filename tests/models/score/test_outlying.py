import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from models.cells import CellCoding, Cells
from models.score.outlying import Outlyingness
from models.table import Column, Table
from tests.models.conftest import stream


def plain(x: NDArray[np.float64]) -> tuple[CellCoding, Cells]:
    columns = tuple(Column(f"x{i}", "numeric") for i in range(x.shape[1]))
    table = Table(columns, x, np.zeros((len(x), 0), np.uint64), np.arange(len(x)), {})
    coding = CellCoding.fit(table)
    return coding, coding.cells(table)


def test_a_cluster_of_anomalies_in_the_training_rows_is_found() -> None:
    random = np.random.default_rng(0)
    x = np.concatenate([random.normal(size=(2000, 4)), 4 + 0.05 * random.normal(size=(60, 4))])
    odd = np.arange(2060) >= 2000
    coding, cells = plain(x)
    assert roc_auc_score(odd, Outlyingness.fit(coding, cells).score(cells)) > 0.96
    near = Outlyingness.fit(coding, cells, contaminated=False).terms(cells)[:, 0]
    assert roc_auc_score(odd, near) < 0.2  # the cluster hides among its own in a full sample


def test_clean_rows_show_a_gap_between_them() -> None:
    random = np.random.default_rng(0)
    ring = random.normal(size=(3000, 2))
    ring /= np.linalg.norm(ring, axis=1, keepdims=True)
    ring *= 1 + 0.05 * random.normal(size=(3000, 1))
    coding, cells = plain(ring)
    middle = coding.transform(0.05 * random.normal(size=(50, 2)), np.zeros((50, 0), np.uint64))
    fitted = Outlyingness.fit(coding, cells, contaminated=False)
    assert (fitted.score(middle) > np.quantile(fitted.score(cells), 0.95)).all()


def test_missing_cells_and_columns_from_labels_deviate_by_nothing() -> None:
    table, _ = stream(3000, seed=0)
    coding = CellCoding.fit(table)
    fitted = Outlyingness.fit(coding, coding.cells(table))
    row = np.array(table.numeric[:1])
    changed = row.copy()
    changed[0, 4] = 1e6
    before, after = (
        fitted.score(coding.transform(numeric, np.array(table.categorical[:1]))) for numeric in (row, changed)
    )
    np.testing.assert_array_equal(before, after)
    empty = coding.transform(np.full((1, 5), np.nan), np.zeros((1, 1), np.uint64))
    assert not fitted.column_nats(empty).any()
    assert fitted.score(empty)[0] < np.median(fitted.score(coding.cells(table)))


@pytest.mark.parametrize("contaminated", [True, False])
@pytest.mark.parametrize("n", [1, 20, 300])
def test_any_number_of_rows_and_equal_values_are_enough(n: int, contaminated: bool) -> None:
    x = np.column_stack([np.zeros(n), np.arange(n), np.full(n, np.nan)])
    coding, cells = plain(x)
    fitted = Outlyingness.fit(coding, cells, contaminated=contaminated)
    far = coding.transform(np.array([[5.0, 1e9, np.nan], [np.inf, np.nan, 3.0]]), np.zeros((2, 0), np.uint64))
    assert np.isfinite(fitted.score(far)).all()
    again = Outlyingness.of_arrays(Outlyingness.fit(coding, cells, contaminated=contaminated).arrays())
    np.testing.assert_array_equal(again.score(far), fitted.score(far))
