import gzip
from pathlib import Path

import polars as pl
import pytest

from pipelines.play.table_file import TableFileError, field_name, field_names, read_table

ROWS = "card no;Betrag;Größe\n1;1,5;ä\n2;2,5;ö\n"
READ = {"card_no": ["1", "2"], "Betrag": ["1,5", "2,5"], "groesse": ["ä", "ö"]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_a_csv_file_is_read_in_any_common_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.csv").write_bytes(ROWS.encode(encoding))
    read = read_table(tmp_path / "a.csv")
    assert read.frame.to_dict(as_series=False) == READ
    assert read.columns == {"card_no": "card no", "Betrag": "Betrag", "groesse": "Größe"}
    assert ["Windows-1252" in note for note in read.notes] == [True] * (encoding == "cp1252")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found(tmp_path: Path, separator: str) -> None:
    text = f'a{separator}"b, c; d|e"\n1{separator}"x,y;z\t|"\n'
    (tmp_path / "a.csv").write_text(text)
    assert read_table(tmp_path / "a.csv").frame.row(0) == ("1", "x,y;z\t|")


def test_what_a_file_is_follows_from_its_content(tmp_path: Path) -> None:
    frame = pl.DataFrame({"card no": [1], "when": [2.5]})
    frame.write_parquet(tmp_path / "a.csv")
    assert read_table(tmp_path / "a.csv").frame.schema == {"card_no": pl.Int64, "when": pl.Float64}
    (tmp_path / "b.parquet").write_bytes(gzip.compress(ROWS.encode()))
    assert read_table(tmp_path / "b.parquet").frame.to_dict(as_series=False) == READ


def test_a_repeated_or_empty_column_name_gets_one_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,a,,hour\n1,2,3,4\n")
    assert list(read_table(tmp_path / "a.csv").columns) == ["a", "a_2", "column_3", "hour_"]


def test_surplus_cells_are_omitted_and_noted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3,4,5\n6\n")
    read = read_table(tmp_path / "a.csv")
    assert read.frame.rows() == [("1", "2"), ("3", "4"), ("6", None)]
    assert "more cells than the header (2)" in read.notes[0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty; give a CSV file with a header line"),
        (b"a,b\n", "has no rows"),
        (b"1,2.5\n3,4\n", r"the first line has values \(1,2.5\) instead of column names"),
        (b"PK\x03\x04....", "is an Excel or zip file; save the table as CSV"),
        (b'{"a": 1}\n', "is JSON; give a CSV or Parquet file"),
        (b"PAR1....", "cannot be read as Parquet"),
        (b"\x1f\x8b....", "is a damaged gzip file"),
        (b"a\x00b\x00c", "is not text"),
        (
            (",".join(f"c{i}" for i in range(2_000)) + "\n" + "1," * 1_999 + "1\n").encode(),
            "has 2,000 columns, at most",
        ),
    ],
)
def test_what_is_no_table_is_refused_with_the_way_to_fix_it(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(TableFileError, match=message):
        read_table(tmp_path / "a.csv")


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(TableFileError, match="cannot be read"):
        read_table(tmp_path / "none.csv")


def test_a_field_name_is_a_field_name_already() -> None:
    for column in ("card no", "Betrag (€)", "hour", "source", "2nd", "label", "event_id", "a-b"):
        assert field_name(field_name(column)) == field_name(column) or field_name(column).endswith("_")
    assert field_names(["source", "source_"]) == {"source_": "source", "source__2": "source_"}
