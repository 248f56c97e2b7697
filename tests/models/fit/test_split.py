import numpy as np

from flows.gate import keep_back
from models.fit.split import last_share


def test_the_last_share_is_kept_back_and_rows_are_neither_lost_nor_doubled() -> None:
    rows = np.array([2, 3, 5, 8, 13, 21, 34])
    for share in (0.0, 0.1, 0.3, 0.9):
        train, valid = last_share(rows, share)
        assert [*train, *valid] == rows.tolist()
        assert len(valid) == int(len(rows) * share)


def test_at_least_so_many_are_kept_back_even_where_there_are_no_more() -> None:
    assert [len(part) for part in last_share(np.arange(5), 0.1, at_least=1)] == [4, 1]
    assert [len(part) for part in last_share(np.arange(0), 0.1, at_least=1)] == [0, 0]
    assert [len(part) for part in last_share(np.arange(2), 0.1, at_least=3)] == [0, 2]


def test_the_gate_keeps_back_by_the_same_rule() -> None:
    slices = keep_back(np.arange(40) < 20)
    assert np.flatnonzero(slices.labelled).tolist() == last_share(np.arange(20), 0.1).valid.tolist()
