"""Fields that are generated from the rows if a file has no column for them."""

from collections.abc import Callable

import polars as pl

ROW_NUMBER = "row_number"
ROW_TIME = "row_time"
ALL_ROWS = "all_rows"
ROW_TIME_STEP_MS = 60_000
ROW_TIME_BEGIN_MS = 1_577_836_800_000  # 2020-01-01

MADE: dict[str, Callable[[int], pl.Series]] = {
    ROW_NUMBER: lambda n: pl.Series(ROW_NUMBER, range(1, n + 1), dtype=pl.Int64).cast(pl.String),
    ROW_TIME: lambda n: pl.Series(ROW_TIME, range(n), dtype=pl.Int64) * ROW_TIME_STEP_MS + ROW_TIME_BEGIN_MS,
    ALL_ROWS: lambda n: pl.repeat("all", n, eager=True),
}
WORDS = {
    ROW_NUMBER: "generated from the row number, because no column has a different value in every row",
    ROW_TIME: "generated from the row number, one minute per row from 2020-01-01 on, as requested",
    ALL_ROWS: "the same for all rows, because no column identifies a repeated customer, device or place",
}
