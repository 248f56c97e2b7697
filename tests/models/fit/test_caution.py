import numpy as np
import pytest

from models.cells import Cells
from models.fit.caution import Caution, choose


def chosen(
    n_frauds: int, *, alike: bool, n_victims: int | None = None, seed: int = 0, are_selected: bool = False
) -> tuple[Caution, ...]:
    """The cautions where frauds of all entities are a little odd in every column, or where only the entity tells."""
    random = np.random.default_rng(seed)
    n, n_entities = 3000, 100
    entity = random.integers(0, n_entities, n).astype(np.uint64)
    values = random.normal(size=(n, 6)).astype(np.float32)
    label = np.zeros(n, np.int8)
    victims = random.permutation(n_entities)[: n_victims or max(2, n_frauds // 6)]
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
    return choose(
        cells, label, margin, entity, weight=np.ones(n), depth=4, most=most, seed=seed, are_selected=are_selected
    )


def weight(cautions: tuple[Caution, ...]) -> float:
    return sum(caution.weight for caution in cautions)


@pytest.mark.parametrize("n_frauds", [20, 40, 80])
def test_trees_are_believed_where_frauds_of_other_entities_look_alike_and_not_where_they_do_not(n_frauds: int) -> None:
    alike, apart = ([chosen(n_frauds, alike=alike, seed=seed) for seed in range(4)] for alike in (True, False))
    assert {caution.min_gain for one in alike for caution in one} == {1.0}
    assert sum(weight(one) for one in apart) < 0.25 * sum(weight(one) for one in alike)


def test_the_weight_grows_with_the_number_of_frauds() -> None:
    weights = [weight(chosen(n, alike=True)) for n in (12, 20, 30, 40, 80)]
    assert weights[0] == 0.0
    assert weights == sorted(set(weights))
    assert weights[-1] > 0.9


def test_frauds_of_one_entity_cannot_be_judged() -> None:
    assert chosen(40, alike=True, n_victims=1) == ()
    assert weight(chosen(40, alike=True, n_victims=2)) > 0.0


@pytest.mark.parametrize(("n_frauds", "bold"), [(500, 0.5), (2000, 0.25)])
def test_many_frauds_ask_for_careful_and_bold_trees_and_the_more_the_less_bold_ones(n_frauds: int, bold: float) -> None:
    many = chosen(n_frauds, alike=False, n_victims=90)
    assert [(one.min_gain, one.weight) for one in many] == [(6.0, 1 - bold), (1.0, bold)]


def test_many_frauds_among_selected_labels_ask_for_bold_trees_only() -> None:
    many = chosen(500, alike=False, n_victims=90, are_selected=True)
    assert [(one.min_gain, one.weight) for one in many] == [(1.0, 1.0)]


def test_trees_of_half_the_weight_say_half_and_trees_are_added_whatever_their_depth() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(500, 2)).astype(np.float32)
    cells = Cells(values, np.ones_like(values), np.zeros((500, 0), np.int64))
    label = (values.sum(1) > 1.5).astype(np.int8)
    whole, half, deeper = (
        Caution(1.0, 1.0, weight=weight).fit(
            cells,
            label,
            np.full(500, -2.0),
            row_weight=np.ones(500),
            n_trees=5,
            depth=depth,
            rate=0.3,
            seed=0,
        )
        for weight, depth in ((1.0, 1), (0.5, 1), (1.0, 3))
    )
    assert np.abs(whole.score(cells)).max() > 0.5
    np.testing.assert_allclose(half.score(cells), whole.score(cells) / 2, rtol=1e-6)
    assert whole.feature.shape[1] < deeper.feature.shape[1]
    both = whole.score(cells) + deeper.score(cells)
    for added in (whole + deeper, deeper + whole):
        np.testing.assert_allclose(added.score(cells), both, rtol=1e-6)
        assert added.feature.shape == (10, deeper.feature.shape[1])
