from datetime import UTC, date, datetime

import polars as pl
import pytest

from pipelines.play import cells

NOON = 1_767_268_800_000  # 2026-01-01T12:00Z
NIGHT = 1_767_225_600_000  # 2026-01-01


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["1", "2.5", "-3e2"], [1.0, 2.5, -300.0]),
        (["1,5", "1.234,5"], [1.5, 1234.5]),
        (["1,234.5", "12"], [1234.5, 12.0]),
        (["$ 1'000.50", "12 %", "€5"], [1000.5, 12.0, 5.0]),
        (["", "-", "N/A", "NA", "null", "NaN", "inf", "abc", None], [None] * 9),
    ],
)
def test_numbers_in_the_forms_that_people_write(texts: list[str | None], values: list[float | None]) -> None:
    assert cells.numbers(pl.Series(texts, dtype=pl.String)).to_list() == values


@pytest.mark.parametrize(
    ("texts", "ms"),
    [
        (["2026-01-01T12:00:00Z"], NOON),
        (["2026-01-01 13:00:00+01:00"], NOON),
        (["2026-01-01T07:00-0500"], NOON),
        (["2026-01-01 12:00:00.000"], NOON),
        (["2026-01-01 12:00:00"], NOON),
        (["01.01.2026 12:00"], NOON),
        (["1767268800"], NOON),
        (["1767268800000"], NOON),
        (["1767268800000000"], NOON),
        (["20260101120000"], NOON),
        (["01/01/2026 12:00:00 PM"], NOON),
        (["2026-01-01"], NIGHT),
        (["20260101"], NIGHT),
        (["Jan 1, 2026"], NIGHT),
    ],
)
def test_times_in_the_forms_that_people_write(texts: list[str], ms: int) -> None:
    assert cells.times(pl.Series(["N/A", *texts, None])).ms.to_list() == [None, ms, None]


def test_times_of_parquet_columns() -> None:
    for column in (
        pl.Series([datetime(2026, 1, 1, 12, tzinfo=UTC)]),
        pl.Series([datetime(2026, 1, 1, 12)]),
        pl.Series([NOON]),
        pl.Series([NOON / 1000]),
    ):
        assert cells.times(column).ms.to_list() == [NOON]
    days = cells.times(pl.Series([date(2026, 1, 1)]))
    assert (days.ms.to_list(), days.has_clock) == ([NIGHT], False)


def test_the_order_of_the_rows_tells_day_first_from_month_first() -> None:
    day_first = cells.times(pl.Series(["30/01/2026", "31/01/2026", "01/02/2026"]))
    month_first = cells.times(pl.Series(["01/02/2026", "01/03/2026", "02/01/2026"]))
    assert day_first.ms.diff().drop_nulls().to_list() == [86_400_000, 86_400_000]
    assert month_first.ms.diff().drop_nulls().to_list() == [86_400_000, 29 * 86_400_000]


def test_a_country_called_na_is_not_missing_and_ids_keep_their_zeros() -> None:
    assert cells.texts(pl.Series(["NA", "n/a", "007", " x "])).to_list() == ["NA", None, "007", "x"]
    assert cells.texts(pl.Series([7.0, 8.5, None])).to_list() == ["7", "8.5", None]


def test_labels_in_the_forms_that_people_write() -> None:
    assert cells.labels(pl.Series(["1", "no", "TRUE", "Fraud", "legit", "?", None])).to_list() == [
        1,
        0,
        1,
        1,
        0,
        None,
        None,
    ]
    assert cells.labels(pl.Series([1, 0])).to_list() == cells.labels(pl.Series([True, False])).to_list() == [1, 0]


def test_whole_numbers_beyond_two_to_the_53_stay_exact() -> None:
    assert cells.wholes(pl.Series(["9007199254740993", "1.0", "x"])).to_list() == [9007199254740993, 1, None]
