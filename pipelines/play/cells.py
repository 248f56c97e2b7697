"""Converts cells of a file to values of the field types: numbers, times, texts, labels."""

from dataclasses import dataclass

import polars as pl

from pipelines.contracts.stream import DAY_MS, HOUR_MS

MISSING_TEXTS = ("", "-", "--", "n/a", "null", "none", "nan", "<na>", "#n/a", "(null)", "\\n")
MISSING_VALUES = (*MISSING_TEXTS, "na", "?", ".")  # for numbers and times only: "NA" may be a country
_POSITIVE = ("1", "1.0", "true", "t", "yes", "y", "fraud", "fraudulent", "anomaly", "anomalous", "attack", "outlier")
_NEGATIVE = (
    "0",
    "0.0",
    "false",
    "f",
    "no",
    "n",
    "legit",
    "legitimate",
    "genuine",
    "normal",
    "ordinary",
    "ok",
    "benign",
)
_SIGNS = r"[\s'’€$£¥%]"
_DECIMAL_COMMA = r"^[-+]?(\d{1,3}(\.\d{3})+|\d+),\d+$"
_THOUSAND_COMMA = r"^[-+]?\d{1,3}(,\d{3})+(\.\d+)?$"
_DATES = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y%m%d", "%Y.%m.%d",
          "%d %b %Y", "%b %d %Y", "%b %d, %Y", "%d-%b-%Y", "%a %b %d %Y")  # fmt: skip
_CLOCKS = ("%H:%M:%S%.f", "%H:%M", "%I:%M:%S %p", "%I:%M %p", "")
_OFFSET = r"^(?P<local>.*:\d{2}(?:\.\d+)?)\s*(?P<zone>Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)$"
_PROBE_ROWS = 400


@dataclass(frozen=True)
class Times:
    """Event times of a column, `ms` since 1970 (null if missing), and how they were read."""

    ms: pl.Series
    how: str
    has_zone: bool
    has_clock: bool  # False: days without a time of day


def is_missing(column: pl.Series, *, of_values: bool) -> pl.Series:
    """Which cells are missing values; `of_values` for numbers and times."""
    if column.dtype != pl.String:
        nan = column.is_nan().fill_null(False) if column.dtype.is_float() else pl.repeat(False, len(column), eager=True)
        return column.is_null() | nan
    known = MISSING_VALUES if of_values else MISSING_TEXTS
    return column.is_null() | column.str.strip_chars().str.to_lowercase().is_in(known).fill_null(True)


def numbers(column: pl.Series) -> pl.Series:
    """Float64; null if a cell is missing or not a finite number.

    Spaces, currency signs and % are ignored; decimal commas and commas between thousands are understood.

    >>> numbers(pl.Series(["1.234,50 €", "-", "7"])).to_list(), numbers(pl.Series(["1,234.5", "12"])).to_list()
    ([1234.5, None, 7.0], [1234.5, 12.0])
    """
    if column.dtype != pl.String:
        if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
            return pl.Series(column.name, [None] * len(column), pl.Float64)
        found = column.cast(pl.Float64)
    else:
        plain = column.set(is_missing(column, of_values=True), None).str.replace_all(_SIGNS, "")
        if not plain.str.contains(",", literal=True).any():
            found = plain.cast(pl.Float64, strict=False)
        elif _share(plain, _THOUSAND_COMMA) >= _share(plain, _DECIMAL_COMMA):
            found = plain.str.replace_all(",", "", literal=True).cast(pl.Float64, strict=False)
        else:
            swapped = plain.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
            found = swapped.cast(pl.Float64, strict=False)
    return found.set(~found.is_finite().fill_null(False), None)


def wholes(column: pl.Series) -> pl.Series:
    """Int64; null if a cell is missing or not a whole number.

    >>> wholes(pl.Series(["12", "3.0", "3.5", None])).to_list()
    [12, 3, None, None]
    """
    if column.dtype == pl.String:
        exact = column.str.strip_chars().cast(pl.Int64, strict=False)
    elif column.dtype.is_integer():
        exact = column.cast(pl.Int64, strict=False)
    else:
        exact = pl.Series(column.name, [None] * len(column), pl.Int64)
    real = numbers(column)
    whole = real.set(~((real == real.round()) & (real.abs() < 2.0**53)).fill_null(False), None)
    return exact.fill_null(whole.cast(pl.Int64, strict=False))


def texts(column: pl.Series) -> pl.Series:
    """String without surrounding space; null if a cell is missing.

    >>> texts(pl.Series([" DE ", "N/A", "NA", ""])).to_list(), texts(pl.Series([7.0, None])).to_list()
    (['DE', None, 'NA', None], ['7', None])
    """
    missing = is_missing(column, of_values=False)
    if column.dtype == pl.String:
        found = column.str.strip_chars()
    elif column.dtype.is_float():
        whole = wholes(column)
        found = whole.cast(pl.String).fill_null(column.cast(pl.String))
    elif column.dtype == pl.Binary or column.dtype.is_nested():
        found = pl.Series(column.name, [None] * len(column), pl.String)
    else:
        found = column.cast(pl.String)
    return found.set(missing, None)


def labels(column: pl.Series) -> pl.Series:
    """Int8: 1 = fraud, 0 = legitimate, null if a cell is missing or neither.

    >>> labels(pl.Series(["yes", "No", "", "maybe"])).to_list(), labels(pl.Series([True, False])).to_list()
    ([1, 0, None, None], [1, 0])
    """
    words = texts(column).str.to_lowercase()
    return words.replace_strict(
        [*_POSITIVE, *_NEGATIVE], [1] * len(_POSITIVE) + [0] * len(_NEGATIVE), default=None, return_dtype=pl.Int8
    )


def times(column: pl.Series) -> Times:
    """Event times: time stamps with or without zone (then UTC), dates, seconds, ms, us or ns since 1970.

    Day first or month first: the order in which the column is sorted is chosen.

    >>> times(pl.Series(["2026-01-01 00:00:01", "N/A"])).ms.to_list()
    [1767225601000, None]
    >>> times(pl.Series(["13/01/2026", "14/01/2026"])).how
    'dates like 14/01/2026'
    """
    dtype = column.dtype
    if isinstance(dtype, pl.Datetime):
        zoned = dtype.time_zone is not None
        return Times(column.dt.epoch("ms"), "time stamps", zoned, True)
    if dtype == pl.Date:
        return Times(column.cast(pl.Datetime("ms")).dt.epoch("ms"), "dates", False, False)
    if dtype == pl.String:
        cells = column.set(is_missing(column, of_values=True), None).str.strip_chars()
        digits = cells.str.contains(r"^\d{8,19}(\.\d+)?$")
        if digits.fill_null(True).all() and cells.drop_nulls().len():
            return _since_1970(cells.cast(pl.Float64, strict=False), cells)
        return _stamps(cells)
    if dtype.is_numeric():
        return _since_1970(numbers(column), wholes(column).cast(pl.String))
    return Times(pl.Series(column.name, [None] * len(column), pl.Int64), "no times", False, False)


def _since_1970(real: pl.Series, digits: pl.Series) -> Times:
    middle = real.drop_nulls().median()
    size = float(middle) if isinstance(middle, int | float) else 0.0
    if 1.9e7 <= size < 2.11e7:
        return _stamps(digits)
    if 1.9e13 <= size < 2.11e13:
        stamps = digits.str.to_datetime("%Y%m%d%H%M%S", strict=False, time_unit="ms")
        return Times(stamps.dt.epoch("ms"), "time stamps like 20260131235959", False, True)
    for unit, name, low in ((1e-6, "ns", 1e17), (1e-3, "us", 1e14), (1.0, "ms", 1e11), (1e3, "seconds", 1e8)):
        if low <= size < 1e19:
            ms = (real * unit).round()
            kept = ms.set(~ms.is_between(0, 7_258_118_400_000).fill_null(False), None)
            return Times(kept.cast(pl.Int64), f"{name} since 1970", True, True)
    return Times(pl.Series(real.name, [None] * len(real), pl.Int64), "no times", False, False)


def _stamps(cells: pl.Series) -> Times:
    parts = cells.str.extract_groups(_OFFSET)
    zone = parts.struct.field("zone")
    local = parts.struct.field("local").fill_null(cells).str.replace(r"^(\S{6,11})[T_](\d)", "$1 $2")
    probe = local.drop_nulls()
    probe = probe.gather_every(max(1, len(probe) // _PROBE_ROWS))

    def fit(form: tuple[str, str]) -> tuple[float, float]:
        found = _parsed(probe, *form)
        rising = (found.diff() >= 0).mean()
        return 1 - found.null_count() / max(len(found), 1), float(rising) if isinstance(rising, int | float) else 0.0

    day, clock = max(((day, clock) for clock in _CLOCKS for day in _DATES), key=fit)
    ms = _parsed(local, day, clock)
    if ms.null_count() == len(ms):
        return Times(ms, "no times", False, False)
    shown = str(cells.drop_nulls()[-1])
    how = f"time stamps like {shown}" if clock else f"dates like {shown}"
    return Times(ms - _offset_ms(zone), how, bool(zone.is_not_null().any()), bool(clock))


def _parsed(local: pl.Series, day: str, clock: str) -> pl.Series:
    if clock:
        return local.str.to_datetime(f"{day} {clock}", strict=False, time_unit="ms").dt.epoch("ms")
    return local.str.to_date(day, strict=False).cast(pl.Int64) * DAY_MS


def _offset_ms(zone: pl.Series) -> pl.Series:
    sign = zone.str.starts_with("-").cast(pl.Int64) * -2 + 1
    hours = zone.str.slice(1, 2).cast(pl.Int64, strict=False)
    minutes = zone.str.extract(r"^.\d{2}:?(\d{2})$").cast(pl.Int64, strict=False).fill_null(0)
    return (sign * (hours * HOUR_MS + minutes * 60_000)).fill_null(0)


def _share(column: pl.Series, pattern: str) -> float:
    share = column.str.contains(pattern).mean()
    return float(share) if isinstance(share, int | float) else 0.0
