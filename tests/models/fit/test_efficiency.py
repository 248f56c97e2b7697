from dataclasses import replace

import numpy as np

from models.fit.efficiency import label_efficiency
from tests.models.conftest import FINETUNE


def test_fewer_entities_have_fewer_known_frauds_and_the_order_of_rows_decides_nothing(trained) -> None:
    entity = np.random.default_rng(0).integers(0, 300, len(trained.table)).astype(np.uint64)
    table, known = replace(trained.table, entity=entity), np.ones(len(trained.table), bool)
    config = replace(FINETUNE, n_trees=20)
    points = list(
        label_efficiency(
            trained.pretrained, table, trained.label, known, test=trained.test, truth=trained.truth,
            config=config, seed=0, shares=(0.05, 0.5),
        )
    )  # fmt: skip
    (few, low), (many, high) = points
    assert 0 < few < many < trained.label.sum()
    assert low < high
