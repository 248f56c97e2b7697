import numpy as np
import pytest
from numpy.typing import NDArray

from models.cells import MISSING, Cells
from models.fit.trees import no_trees
from models.score.tree_bits import MAX_LEAVES
from models.score.trees import LEAF, Trees, inputs


def _random(random: np.random.Generator, *, n_trees: int, depth: int, n_inputs: int) -> Trees:
    """Trees whose branches end at random depths, in the order of their nodes from the top."""
    n_nodes = 2 ** (depth + 1) - 1
    node = np.tile(np.arange(n_nodes), (n_trees, 1))
    feature = random.integers(0, n_inputs, node.shape)
    feature[(node >= n_nodes // 2) | (random.random(node.shape) < 0.2)] = LEAF
    is_leaf = feature == LEAF
    return Trees(
        choices=np.array([[0, 2], [1, 3]]),
        feature=feature,
        split=random.choice([-1.0, 0.0, 0.5, 1.0], node.shape).astype(np.float32),
        left=np.where(is_leaf, node, 2 * node + 1),
        right=np.where(is_leaf, node, 2 * node + 2),
        missing_left=random.random(node.shape) < 0.5,
        value=random.normal(size=node.shape).astype(np.float32),
    )


def _walked(trees: Trees, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """The definition: each row walks down each tree."""
    total = np.zeros(len(x))
    for row, given in enumerate(x):
        for tree in range(len(trees.feature)):
            node = 0
            while (feature := trees.feature[tree, node]) != LEAF:
                value = given[feature]
                is_left = trees.missing_left[tree, node] if np.isnan(value) else value < trees.split[tree, node]
                node = (trees.left if is_left else trees.right)[tree, node]
            total[row] += trees.value[tree, node]
    return total


@pytest.mark.parametrize("depth", [0, 1, 4, 6])
@pytest.mark.parametrize("n", [0, 1, 64, 150])
def test_rows_get_the_leaves_that_a_walk_ends_at(depth: int, n: int) -> None:
    random = np.random.default_rng(depth)
    trees = _random(random, n_trees=7, depth=depth, n_inputs=5)
    values = random.choice([-1.0, -0.5, 0.0, 0.5, 1.0, 2.0], (n, 3)).astype(np.float32)
    cells = Cells(values, (random.random((n, 3)) < 0.8).astype(np.float32), random.integers(MISSING, 4, (n, 2)))
    np.testing.assert_array_equal(trees.score(cells), _walked(trees, inputs(cells, trees.choices)))


def test_a_row_has_the_same_score_in_any_batch() -> None:
    random = np.random.default_rng(1)
    trees = _random(random, n_trees=50, depth=4, n_inputs=5)
    cells = Cells(
        random.normal(size=(100, 3)).astype(np.float32), np.ones((100, 3), np.float32), np.zeros((100, 2), int)
    )
    whole = trees.score(cells)
    np.testing.assert_array_equal(whole, [trees.score(cells.take(slice(row, row + 1)))[0] for row in range(100)])


def test_no_trees_say_nothing() -> None:
    cells = Cells(np.ones((3, 2), np.float32), np.ones((3, 2), np.float32), np.zeros((3, 0), np.int64))
    assert no_trees().score(cells).tolist() == [0.0, 0.0, 0.0]


def test_trees_that_do_not_fit_into_a_word_are_refused() -> None:
    trees = _random(np.random.default_rng(2), n_trees=1, depth=7, n_inputs=2)
    whole = Trees(**{**trees.arrays(), "feature": np.where(np.arange(255) < 127, 0, LEAF)[None]})
    cells = Cells(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), np.zeros((1, 2), np.int64))
    with pytest.raises(ValueError, match=f"tree 0 has more than {MAX_LEAVES} leaves"):
        whole.score(cells)


def test_nodes_in_a_circle_are_refused() -> None:
    trees = _random(np.random.default_rng(3), n_trees=1, depth=1, n_inputs=2)
    circle = Trees(**{**trees.arrays(), "feature": np.zeros((1, 3), np.int64), "left": np.zeros((1, 3), np.int64)})
    cells = Cells(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), np.zeros((1, 2), np.int64))
    with pytest.raises(ValueError, match="its nodes are no tree"):
        circle.score(cells)
