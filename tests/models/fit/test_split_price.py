import numpy as np
import pytest

from models.cells import Cells
from models.fit.split_price import Caution, split_price


def price(n_frauds: int, *, alike: bool, n_entities: int = 100, seed: int = 0) -> float:
    """The price where frauds of all entities are a little odd in every column, or where only the entity tells."""
    random = np.random.default_rng(seed)
    n = 3000
    entity = random.integers(0, n_entities, n).astype(np.uint64)
    values = random.normal(size=(n, 6)).astype(np.float32)
    label = np.zeros(n, np.int8)
    victims = random.permutation(n_entities)[: max(2, n_frauds // 6)]
    rows = np.flatnonzero(np.isin(entity, victims))
    rows = random.permutation(rows)[:n_frauds]
    label[rows] = 1
    if alike:
        values[rows] += 1.3
    else:
        values[:] = random.normal(size=(n_entities, 6)).astype(np.float32)[entity.astype(np.int64)]
    cells = Cells(values, np.ones_like(values), np.zeros((n, 0), np.int64))
    margin = np.full(n, -4.0)
    most = Caution(6.0, 10.0)
    return split_price(cells, label, margin, entity, weight=np.ones(n), depth=4, most=most, seed=seed).min_gain


@pytest.mark.parametrize("seed", range(3))
def test_splits_are_cheap_where_frauds_of_other_entities_look_alike_and_dear_where_they_do_not(seed: int) -> None:
    assert price(80, alike=True, seed=seed) < 1
    assert price(80, alike=False, seed=seed) == 6.0


def test_few_frauds_make_no_choice() -> None:
    assert price(30, alike=True) == price(30, alike=False) == 2.0
    assert price(12, alike=True) == price(60, alike=True, n_entities=2) == 6.0
