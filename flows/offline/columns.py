"""Properties of the columns of a file: kind, repetition of values, and the meaning of the name."""

import re
from dataclasses import dataclass
from enum import StrEnum

import polars as pl

from pipelines.play import cells
from pipelines.play.table_file import TableFile

MOSTLY = 0.98  # minimum share of cells of a kind for a column to have this kind
_LEADING_ZEROS = r"^0\d+$"
_ID_WORDS = {"id", "no", "nr", "num", "number", "key", "code", "uuid", "guid", "hash", "name", "ref", "identifier"}
_TIME_WORDS = {"time", "ts", "timestamp", "date", "datetime", "at", "when", "created", "epoch", "unix", "day", "zeit"}
_TIME_WORDS |= {"datum", "zeitpunkt", "occurred", "created", "utc", "ms"}


class Kind(StrEnum):
    """The kind of the cells of a column."""

    NUMBER = "number"
    TEXT = "text"
    TIME = "time"
    EMPTY = "empty"
    NESTED = "nested"


@dataclass(frozen=True)
class Column:
    """Properties of one column.

    Args:
        name: its field name.
        title: its name in the file.
        kind: what its cells are.
        text: every cell as text, null where it is missing.
        n_rows, n_missing, n_distinct: rows, cells without a value, different values.
        is_whole: every number is whole.
        times: of a time column.
    """

    name: str
    title: str
    kind: Kind
    text: pl.Series
    n_rows: int
    n_missing: int
    n_distinct: int
    is_whole: bool = False
    times: cells.Times | None = None

    @property
    def rows_a_value(self) -> float:
        """How often a value is seen on average."""
        return (self.n_rows - self.n_missing) / max(self.n_distinct, 1)

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the column's name, in lower case."""
        return words_of(self.title)

    @property
    def noun(self) -> str:
        """The noun of the name: "customer" of "customer id", "agent" of "user agent"."""
        return noun_of(self.words)

    @property
    def says_id(self) -> bool:
        """Whether the name ends like that of an identifier."""
        last = self.words[-1] if self.words else ""
        return last in _ID_WORDS - {"name"} or (last.endswith("id") and len(last) > 3) or last.endswith("uuid")


def words_of(title: str) -> tuple[str, ...]:
    """The words of a name.

    >>> words_of("CustomerID"), words_of("card no"), words_of("nameOrig")
    (('customer', 'id'), ('card', 'no'), ('name', 'orig'))
    """
    parted = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", title)
    return tuple(word.lower() for word in re.split(r"[^A-Za-z0-9À-ÿ]+", parted) if word)


def noun_of(words: tuple[str, ...]) -> str:
    """The last word that does not mean "identifier".

    >>> noun_of(("customer", "id")), noun_of(("userid",)), noun_of(("user", "agent"))
    ('customer', 'user', 'agent')
    """
    for word in reversed(words):
        if word not in _ID_WORDS:
            return word.removesuffix("id") if len(word) > 4 else word
    return ""


def columns_of(table: TableFile) -> list[Column]:
    """Properties of every column of a file, in order."""
    return [_column(name, title, table.frame[name]) for name, title in table.columns.items()]


def _column(name: str, title: str, cell: pl.Series) -> Column:
    n = len(cell)
    if cell.dtype.is_nested() or cell.dtype == pl.Binary:
        return Column(name, title, Kind.NESTED, pl.Series([None] * n, dtype=pl.String), n, n, 0)
    text = cells.texts(cell)
    known = ~cells.is_missing(cell, of_values=True)
    n_known = int(known.sum())
    n_distinct = text.drop_nulls().n_unique()
    if n_known == 0 or n_distinct == 0:
        return Column(name, title, Kind.EMPTY, text, n, n, 0)
    times = cells.times(cell)
    if times.ms.len() - times.ms.null_count() >= MOSTLY * n_known and _is_time(title, cell, times):
        return Column(name, title, Kind.TIME, text, n, n - n_known, n_distinct, times=times)
    number = cells.numbers(cell)
    is_number = len(number) - number.null_count() >= MOSTLY * n_known and cell.dtype != pl.Boolean
    if is_number and not (cell.dtype == pl.String and text.str.contains(_LEADING_ZEROS).any()):
        is_whole = bool((number.drop_nulls() == number.drop_nulls().round()).all())
        return Column(name, title, Kind.NUMBER, text, n, n - n_known, number.drop_nulls().n_unique(), is_whole)
    return Column(name, title, Kind.TEXT, text, n, text.null_count(), n_distinct)


def _is_time(title: str, cell: pl.Series, times: cells.Times) -> bool:
    """Recognise times by their format. Plain digits are times only if the name also says so."""
    digits = cell.dtype.is_numeric() or (cell.dtype == pl.String and not cell.str.contains(r"\d[-/.:, ]\S*\d").any())
    if not digits:
        return True
    return bool(_TIME_WORDS & set(words_of(title))) and times.ms.drop_nulls().n_unique() > 1
