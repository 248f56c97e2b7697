"""A table of past events in a file: CSV in any common form, or Parquet."""

import csv
import gzip
import io
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from pipelines.contracts.stream import RESERVED
from pipelines.errors import StreamFileError

MAX_COLUMNS = 500
_SEPARATORS = (",", ";", "\t", "|")
_VALUE = re.compile(r"\s*[-+]?\d[\d.,:/\- ]*\s*")
_LETTERS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ß": "ss", "ø": "o"})
_TAKEN = (RESERVED - {"event_id", "event_time_ms", "label"}) | {"hour", "weekday"}
_MARKS = (("utf-8-sig", b"\xef\xbb\xbf"), ("utf-16", b"\xff\xfe"), ("utf-16", b"\xfe\xff"))
_NOT_A_TABLE = (
    (b"PK\x03\x04", "is an Excel or zip file; save the table as CSV"),
    (b"\xd0\xcf\x11\xe0", "is an old Excel file; save the table as CSV"),
    (b"%PDF", "is a PDF; a CSV or Parquet file is needed"),
    (b"SQLite format", "is an SQLite database; export the table as CSV"),
)


class TableFileError(StreamFileError):
    """A file of past events cannot be read as a table."""


@dataclass(frozen=True)
class TableFile:
    """A table read from a file.

    Args:
        path: path of the file.
        frame: columns under their field names. CSV: all columns are text, null if the cell is empty.
        columns: field name -> the column's name in the file.
        notes: remarks for the user on how it was read, one sentence each.
    """

    path: Path
    frame: pl.DataFrame
    columns: Mapping[str, str]
    notes: tuple[str, ...] = ()


def field_name(column: str) -> str:
    """Turn a column name into a field name: letters, digits and _.

    >>> field_name("card no"), field_name("Beträge (EUR)"), field_name("amount"), field_name("2nd"), field_name("hour")
    ('card_no', 'betraege_eur', 'amount', '_2nd', 'hour_')
    """
    name = column
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        plain = unicodedata.normalize("NFKD", column.translate(_LETTERS)).encode("ascii", "ignore").decode()
        name = re.sub(r"[^A-Za-z0-9_]+", "_", plain).strip("_").lower()
        if name[:1].isdigit():
            name = f"_{name}"
    return f"{name}_" if name in _TAKEN else name


def field_names(columns: Sequence[str]) -> dict[str, str]:
    """Unique field names: field name -> column, in the order of the columns.

    >>> field_names(["card no", "card_no", "金額"])
    {'card_no': 'card no', 'card_no_2': 'card_no', 'column_3': '金額'}
    """
    names: dict[str, str] = {}
    for number, column in enumerate(columns, start=1):
        wanted = field_name(column) or f"column_{number}"
        name, again = wanted, 2
        while name in names:
            name, again = f"{wanted}_{again}", again + 1
        names[name] = column
    return names


def read_table(path: Path) -> TableFile:
    """Read a CSV or Parquet file; the format is detected from the content.

    CSV may be UTF-8, UTF-16 or Windows-1252, separated by comma, semicolon, tab or |, and compressed with gzip.

    Raises:
        TableFileError: the file is missing, empty, of another format or too wide.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TableFileError(f"{path}: cannot be read ({error.strerror}); give a CSV or Parquet file") from error
    if data[:4] == b"PAR1":
        return _parquet(path, data)
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise TableFileError(f"{path}: is a damaged gzip file ({error}); compress it again") from error
    for mark, words in _NOT_A_TABLE:
        if data.startswith(mark):
            raise TableFileError(f"{path}: {words}")
    return _csv(path, data)


def _parquet(path: Path, data: bytes) -> TableFile:
    try:
        frame = pl.read_parquet(io.BytesIO(data))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise TableFileError(f"{path}: cannot be read as Parquet ({error})") from error
    return _named(path, frame, [])


def _csv(path: Path, data: bytes) -> TableFile:
    text, notes = _decoded(path, data)
    text = text.lstrip("\r\n ")
    lines = [line for line in text[:65_536].splitlines(keepends=True) if line.strip()]
    if not lines:
        raise TableFileError(f"{path}: is empty; give a CSV file with a header line, or a Parquet file")
    if lines[0][:1] in "{[" and ":" in lines[0]:
        raise TableFileError(f"{path}: is JSON; give a CSV or Parquet file")
    try:
        separator = _separator(lines[:20])
        header = next(csv.reader(lines, delimiter=separator))
    except csv.Error as error:
        raise TableFileError(f"{path}: cannot be read as CSV ({error})") from error
    if any(_VALUE.fullmatch(cell) for cell in header):
        raise TableFileError(
            f"{path}: the first line has values ({lines[0].strip()[:80]}) instead of column names; add a header line"
        )
    _check_width(path, len(header))
    extra: Literal["raise", "ignore"]
    for extra in ("raise", "ignore"):
        try:
            frame = pl.read_csv(text.encode(), separator=separator, infer_schema=False, extra_columns=extra)
            break
        except pl.exceptions.PolarsError as error:
            if extra == "ignore":
                words = str(error).splitlines()[0]
                raise TableFileError(f"{path}: cannot be read as CSV ({words})") from error
            notes.append(f"some lines have more cells than the header ({len(header)}); the extra cells were skipped")
    return _named(path, frame.rename(dict(zip(frame.columns, _distinct(header), strict=True))), notes)


def _decoded(path: Path, data: bytes) -> tuple[str, list[str]]:
    for encoding, mark in _MARKS:
        if data.startswith(mark):
            try:
                return data.decode(encoding), []
            except UnicodeDecodeError as error:
                raise TableFileError(
                    f"{path}: has the byte-order mark of {encoding}, but byte {error.start} is wrong; save it as UTF-8"
                ) from error
    if b"\x00" in data[:1000]:
        raise TableFileError(f"{path}: is not text; give a CSV or Parquet file")
    try:
        return data.decode("utf-8"), []
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace"), ["the file is not UTF-8; it was read as Windows-1252"]


def _separator(lines: Sequence[str]) -> str:
    """The separator that divides the first lines into the same, largest number of cells."""

    def fit(separator: str) -> tuple[int, int]:
        rows = list(csv.reader(lines, delimiter=separator))
        n = len(rows[0])
        # a quote inside a cell: the separator cut a quoted cell apart
        return sum(len(row) == n and not any('"' in cell for cell in row) for row in rows) * (n > 1), n

    return max(_SEPARATORS, key=fit)


def _distinct(header: Sequence[str]) -> list[str]:
    """Column names without surrounding space; repeated names are numbered."""
    seen: dict[str, int] = {}
    names = []
    for number, cell in enumerate(header, start=1):
        name = cell.strip() or f"column {number}"
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return names


def _named(path: Path, frame: pl.DataFrame, notes: list[str]) -> TableFile:
    _check_width(path, frame.width)
    if frame.is_empty():
        raise TableFileError(f"{path}: has no rows")
    names = field_names(frame.columns)
    return TableFile(path, frame.rename({column: name for name, column in names.items()}), names, tuple(notes))


def _check_width(path: Path, width: int) -> None:
    if width > MAX_COLUMNS:
        raise TableFileError(
            f"{path}: has {width:,} columns, at most {MAX_COLUMNS} are supported; keep the columns that describe the "
            "event"
        )
