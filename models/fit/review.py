"""Which events were given a label, how many events each of them stands for, and what labels say of the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from models.table import Column

MOST = 100.0  # events that a labelled one stands for: more would let single rows decide


def by_entity(known: NDArray[np.bool_], entity: NDArray[np.uint64]) -> bool:
    """Whether labels are those of whole entities: if an event has a label, most other events of its entity do too.

    Args:
        known: which labels are known, **shape (n,)**.
        entity: entity of each row, **shape (n,)**.

    >>> entity = np.repeat(np.uint64([1, 2]), 4)
    >>> by_entity(entity == 2, entity), by_entity(np.arange(8) % 4 == 0, entity), by_entity(entity == 2, np.arange(8))
    (True, False, False)
    """
    place = np.unique(entity, return_inverse=True)[1]
    events, labels = np.bincount(place), np.bincount(place, known)
    others = float((labels * (events - 1)).sum())
    return others > 0 and bool((labels * (labels - 1)).sum() >= 0.5 * others)


def events_per_label(
    evidence: NDArray[np.float64], weight: NDArray[np.float64], others: NDArray[np.float64], n_others: int
) -> NDArray[np.float64]:
    """How many events each labelled row stands for, in [1, `MOST`], **shape (n,)**.

    People review what looks odd: of 2,000 alerts and 500 random events with a label, the alerts are four fifths, but
    of all events one in 200. Each row is weighted by the inverse of the share of events with its evidence that have a
    label. This share rises with the evidence.

    Args:
        evidence: label-free evidence of the labelled rows, **shape (n,)**.
        weight: number of labelled rows that each row stands for, **shape (n,)**.
        others: evidence of a random sample of the rows without a label, **shape (m,)**, m > 0.
        n_others: number of all rows without a label.

    Source: inverse propensity weights (Horvitz and Thompson, 1952), truncated; isotonic regression for the share.

    >>> evidence, others = np.array([9.0, 9.0, 0.0, 1.0]), np.linspace(0, 2, 20)
    >>> events_per_label(evidence, np.ones(4), others, 20).tolist()
    [1.0, 1.0, 11.0, 11.0]
    """
    is_known = np.repeat([1.0, 0.0], [len(evidence), len(others)])
    rows = np.concatenate([weight, np.full(len(others), n_others / len(others))])
    share = IsotonicRegression().fit(np.concatenate([evidence, others]), is_known, sample_weight=rows)
    return np.asarray(np.clip(1.0 / share.predict(evidence), 1.0, MOST))


def silent_columns(columns: Sequence[Column], numeric: NDArray[np.float64]) -> NDArray[np.int64]:
    """Columns that say nothing about entities without labels: those built from an entity's own labels.

    Args:
        columns: columns of the model.
        numeric: rows of entities without labels, raw, **shape (n, d_num)**, n > 0.

    Returns:
        Indices of the label-fed columns of each entity whose label-fed columns have one value each in these rows.

    >>> columns = [Column(f"{name}.fraud_rate.7d", "numeric", None, True, name) for name in ("card", "shop")]
    >>> silent_columns(columns, np.array([[np.nan, 0.0], [np.nan, 0.1]])).tolist()
    [0]
    """
    fed = [i for i, column in enumerate(columns) if column.kind == "numeric" and column.label_fed]
    first = numeric[0]
    silent = {i for i in fed if ((numeric[:, i] == first[i]) | (np.isnan(numeric[:, i]) & np.isnan(first[i]))).all()}
    told = {columns[i].entity for i in fed if i not in silent}
    return np.array([i for i in fed if columns[i].entity not in told], np.int64)
