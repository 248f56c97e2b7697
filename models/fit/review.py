"""Which events were given a label, and how many events each of them stands for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

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
