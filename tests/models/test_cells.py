import numpy as np

from models.cells import LIMIT, MISSING, UNKNOWN, CellCoding
from models.table import Column, Table


def fitted(numeric: list[float], hashes: list[int]) -> CellCoding:
    columns = (Column("amount", "numeric", of="amount"), Column("channel", "categorical", of="channel"))
    n = len(numeric)
    return CellCoding.fit(
        Table(columns, np.array(numeric)[:, None], np.array(hashes, np.uint64)[:, None], np.arange(n), {})
    )


def test_missing_and_infinite_numbers_are_absent_and_unknown_texts_have_their_own_code() -> None:
    coding = fitted([1.0, 2.0, 3.0, 4.0], [7, 7, 9, 0])
    cells = coding.transform(np.array([[np.nan], [np.inf], [2.5], [1e300]]), np.array([[0], [5], [7], [9]], np.uint64))
    assert cells.present[:, 0].tolist() == [0, 0, 1, 1]
    assert cells.values[0, 0] == 0
    assert cells.values[3, 0] == LIMIT
    assert cells.codes[:, 0].tolist() == [MISSING, UNKNOWN, 2, 3]


def test_constant_and_empty_columns_still_have_a_scale_and_rising_edges() -> None:
    for values in ([5.0] * 4, [np.nan] * 4):
        coding = fitted(values, [0] * 4)
        assert coding.scale[0] > 0
        assert coding.edges[0, 0] < coding.edges[0, -1]


def test_a_predicted_value_comes_back_in_its_unit_within_the_range_seen() -> None:
    coding = fitted([10.5, 20.5, 30.5, 40.5], [0] * 4)
    low, high = coding.numeric_values(np.array([[-1000.0], [1000.0]]))[:, 0]
    assert 10.5 <= low < high <= 40.5
    (value,) = fitted([1.0, 2.0, 3.0, 4.0], [0] * 4).numeric_values(np.array([[0.1]]))[:, 0]
    assert value == round(value)


def test_a_column_from_labels_keeps_its_values_although_the_coding_saw_none() -> None:
    columns = Column("amount", "numeric", "amount"), Column("since_fraud", "numeric", None, label_fed=True)
    numeric = np.column_stack([np.arange(50.0), np.full(50, np.nan)])
    coding = CellCoding.fit(Table(columns, numeric, np.zeros((50, 0), np.uint64), np.arange(50), {}))
    cells = coding.transform(np.array([[1e9, 2e6], [1.0, 5e6]]), np.zeros((2, 0), np.uint64))
    assert cells.values[0, 1] != cells.values[1, 1]
    assert cells.values[0, 0] <= 1e4


def test_a_number_that_hardly_varies_within_an_entity_is_context_and_one_that_does_is_not() -> None:
    random = np.random.default_rng(0)
    n, of = 3000, random.integers(0, 100, 3000)
    age = random.integers(18, 90, 100)[of] + (random.random(n) < 0.5)  # birthdays in the middle of shuffled days
    spent, level = random.lognormal(3, 1, 100)[of] * random.lognormal(0, 0.6, n), random.integers(0, 4, n)
    columns = tuple(Column(name, "numeric", of=name) for name in ("age", "spent", "level"))
    numeric = np.stack([age, spent, level], axis=1).astype(np.float64)
    table = Table(columns, numeric, np.zeros((n, 0), np.uint64), np.arange(n), {}, entity=of.astype(np.uint64))
    assert CellCoding.fit(table).context == ("age",)
