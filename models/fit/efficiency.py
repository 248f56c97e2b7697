"""What more labels would give: the same training with the labels of fewer entities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from models.fit.finetune import FinetuneConfig, finetune
from models.fit.pretrain import Pretrained
from models.table import Table

SHARES = (0.1, 0.3)  # of the entities; each takes 0.3 to 0.7 of the time of the whole training


def label_efficiency(
    pretrained: Pretrained,
    table: Table,
    label: NDArray[np.int8],
    known: NDArray[np.bool_],
    *,
    test: Table,
    truth: NDArray[np.int8],
    config: FinetuneConfig,
    seed: int,
    shares: Sequence[float] = SHARES,
) -> Iterator[tuple[int, float]]:
    """Fine-tune on the labels of some entities only, as if no others were known.

    Args:
        pretrained, table, label, known, config, seed: as for `finetune`.
        test: later events.
        truth: their labels, at least one fraud, **shape (m,)**.
        shares: shares of the entities whose labels are known.

    Yields:
        For each share, the number of known frauds and the average precision on the later events.
    """
    entity = np.arange(len(table), dtype=np.uint64) if table.entity is None else table.entity
    place = np.random.default_rng(seed).random(len(entities := np.unique(entity)))
    at = place[np.searchsorted(entities, entity)]
    for share in shares:
        some = known & (at < share)
        model = finetune(pretrained, table, label=label, known=some, config=config, seed=seed)
        score = model.score(np.asarray(test.numeric[:]), np.asarray(test.categorical[:]))
        yield int((label[some] == 1).sum()), float(average_precision_score(truth == 1, score))
