import numpy as np
import pytest

from models.table import Column, Table, TableError

AMOUNT = Column("amount", "numeric", of="amount")
CHANNEL = Column("channel", "categorical", of="channel")


def table(columns: tuple[Column, ...], time_ms: list[int]) -> Table:
    n, d = len(time_ms), sum(c.kind == "numeric" for c in columns)
    return Table(columns, np.zeros((n, d)), np.zeros((n, len(columns) - d), np.uint64), np.array(time_ms, np.int64), {})


def test_categorical_columns_before_numeric_ones_are_refused() -> None:
    with pytest.raises(TableError, match="numeric columns must come before categorical"):
        table((CHANNEL, AMOUNT), [1, 2])


def test_rows_out_of_time_order_are_refused_with_the_row() -> None:
    with pytest.raises(TableError, match="row 2 is earlier"):
        table((AMOUNT,), [1, 5, 3])


def test_two_columns_of_one_name_are_refused() -> None:
    with pytest.raises(TableError, match=r"rename \['amount'\]"):
        table((AMOUNT, AMOUNT), [1])


def test_arrays_of_another_shape_are_refused() -> None:
    with pytest.raises(TableError, match=r"numeric has shape \(2, 1\); it must be \(1, 1\)"):
        Table((AMOUNT,), np.zeros((2, 1)), np.zeros((1, 0), np.uint64), np.zeros(1, np.int64), {})


def test_taking_rows_keeps_columns_and_order() -> None:
    taken = table((AMOUNT, CHANNEL), [1, 2, 3]).take(np.array([True, False, True]))
    assert taken.time_ms.tolist() == [1, 3]
    assert taken.columns == (AMOUNT, CHANNEL)
