"""The label-free score of a network: surprises of rows, and the evidence that is fitted to them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.cells import CellCoding
from models.net.batches import surprises_of
from models.net.expectation import Expectation
from models.score.evidence import Evidence
from models.table import Table


def label_free(
    network: Expectation, coding: CellCoding, table: Table, rows: NDArray[np.int64] | None = None
) -> tuple[Evidence, NDArray[np.float64]]:
    """Fit the evidence to unlabelled rows.

    Args:
        network: gives the surprises.
        coding: converts rows to cells.
        table: the rows.
        rows: which of them; None = all.

    Returns:
        The evidence, and its value for each of the rows, **shape (n,)**.
    """
    nats = surprises_of(network, coding.cells(table, rows)).astype(np.float64)
    numeric = np.asarray(table.numeric if rows is None else table.numeric[rows])
    # if nothing can be predicted, a value can still be rare
    predicted = [f.name for f in network.fields if network.trust[f.target] > 0] or [f.name for f in network.fields]
    entity = table.entity if table.entity is None or rows is None else table.entity[rows]
    evidence = Evidence.fit(table.columns, network.fields, numeric, nats, predicted, entity)
    return evidence, evidence.combine(numeric, nats)
