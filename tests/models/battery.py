"""What every model must do, whoever made it: the checks, and how a model is shown to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.table import Column
from tests.models.conftest import COLUMNS, stream

Score = Callable[[NDArray[np.float64], NDArray[np.uint64]], NDArray[np.floating]]

ROWS, _ = stream(300, seed=2)
NUMERIC, CATEGORICAL = np.asarray(ROWS.numeric)[:], np.asarray(ROWS.categorical)[:]
D_NUM = ROWS.d_num


@dataclass(frozen=True)
class Candidate:
    """A model under test.

    Args:
        score: of raw rows in the order of `tests.models.conftest.COLUMNS`, **shape (n,)**.
        score_named: of raw rows under columns in another order; may raise ValueError.
        again: the model trained once more with the same seed.
        reloaded: the model written to a folder and read again; None = it is never stored.
        bounded: whether scores lie in [0, 1].
        scores_nothing: whether no rows at all have no scores; else they are refused with a ValueError.
        tolerance: of a row alone beside the same row in a batch.
    """

    score: Score
    score_named: Callable[[Sequence[Column], NDArray[np.float64], NDArray[np.uint64]], NDArray[np.floating]]
    again: Callable[[], Score]
    reloaded: Callable[[Path], Score] | None
    bounded: bool = True
    scores_nothing: bool = True
    tolerance: float = 1e-5


def permuted_columns_score_the_same_or_are_refused(one: Candidate, folder: Path) -> None:
    order = np.array([3, 1, 4, 0, 2])
    columns = [COLUMNS[i] for i in order] + list(COLUMNS[D_NUM:])
    try:
        found = one.score_named(columns, NUMERIC[:, order], CATEGORICAL)
    except ValueError as error:
        assert "amount" in str(error) or "feature names" in str(error).lower()  # noqa: PT017 - either way is right
    else:
        np.testing.assert_array_equal(found, one.score(NUMERIC, CATEGORICAL))


def a_missing_column_degrades_instead_of_failing(one: Candidate, folder: Path) -> None:
    before = one.score(NUMERIC, CATEGORICAL)
    for column in range(D_NUM + 1):
        numeric, categorical = NUMERIC.copy(), CATEGORICAL.copy()
        if column < D_NUM:
            numeric[:, column] = np.nan
        else:
            categorical[:, column - D_NUM] = 0
        found = one.score(numeric, categorical)
        check_range(one, found)
        assert len(found) == len(before)


def rows_of_nothing_but_nan_have_a_score(one: Candidate, folder: Path) -> None:
    found = one.score(np.full((3, D_NUM), np.nan), np.zeros((3, 1), np.uint64))
    check_range(one, found)
    assert len(np.unique(found)) == 1


def a_row_scores_alone_as_in_a_batch(one: Candidate, folder: Path) -> None:
    batch = one.score(NUMERIC, CATEGORICAL)
    for i in (0, 7, 299):
        alone = one.score(NUMERIC[i : i + 1], CATEGORICAL[i : i + 1])
        np.testing.assert_allclose(alone, batch[i : i + 1], rtol=0, atol=one.tolerance)
    check_range(one, batch)


def the_same_seed_gives_the_same_scores(one: Candidate, folder: Path) -> None:
    np.testing.assert_array_equal(one.again()(NUMERIC, CATEGORICAL), one.score(NUMERIC, CATEGORICAL))


def what_is_stored_scores_as_before(one: Candidate, folder: Path) -> None:
    if one.reloaded is not None:
        found = one.reloaded(folder)(NUMERIC, CATEGORICAL)
        np.testing.assert_allclose(found, one.score(NUMERIC, CATEGORICAL), rtol=0, atol=1e-5)


def no_rows_have_no_scores_or_are_refused(one: Candidate, folder: Path) -> None:
    nothing = NUMERIC[:0], CATEGORICAL[:0]
    if one.scores_nothing:
        assert one.score(*nothing).shape == (0,)
    else:
        with pytest.raises(ValueError, match="0 sample"):
            one.score(*nothing)


def too_few_columns_are_refused(one: Candidate, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"shape|feature"):
        one.score(NUMERIC[:, :-1], CATEGORICAL)


def check_range(one: Candidate, scores: NDArray[np.floating]) -> None:
    assert np.isfinite(scores).all()
    if one.bounded:
        assert ((scores >= 0) & (scores <= 1)).all()


CHECKS = (
    permuted_columns_score_the_same_or_are_refused,
    a_missing_column_degrades_instead_of_failing,
    rows_of_nothing_but_nan_have_a_score,
    a_row_scores_alone_as_in_a_batch,
    the_same_seed_gives_the_same_scores,
    what_is_stored_scores_as_before,
    no_rows_have_no_scores_or_are_refused,
    too_few_columns_are_refused,
)
