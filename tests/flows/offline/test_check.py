import re
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from flows.cli.root import app
from flows.offline.check import Checked, check
from flows.offline.init import guess
from pipelines.play.table_file import TableFileError
from tests.flows.offline.test_init import N, hostile


def checked(tmp_path: Path, frame: pl.DataFrame, *, change: tuple[str, str] = ("", "")) -> Checked:
    """A changed file against the stream file that was guessed from the unchanged one."""
    hostile().write_csv(tmp_path / "sample.csv")
    text = guess(tmp_path / "sample.csv").text
    assert change[0] in text
    (tmp_path / "stream.toml").write_text(text.replace(*change))
    frame.write_csv(tmp_path / "file.csv", separator=";")
    return check(tmp_path / "stream.toml", tmp_path / "file.csv")


def at(rows: dict[int, str], name: str) -> pl.Expr:
    """The column with other cells in some rows, counted from 0."""
    found = pl.col(name)
    for row, cell in rows.items():
        found = pl.when(pl.int_range(pl.len()) == row).then(pl.lit(cell)).otherwise(found).alias(name)
    return found


def test_the_file_that_was_guessed_from_fits(tmp_path: Path) -> None:
    found = checked(tmp_path, hostile())
    assert found.holds
    assert (found.n_rows, found.n_accepted) == (N, N)
    assert any(note.startswith("columns that are not in the stream file") for note in found.notes)
    assert any("has no time zone, so UTC is assumed" in note for note in found.notes)


def test_every_rule_that_is_broken_is_counted_with_an_example(tmp_path: Path) -> None:
    frame = hostile().with_columns(
        at({3: "a lot", 7: "12 apples"}, "Betrag (EUR)"),
        at({5: "", 6: "N/A", 9: "-"}, "card no"),
        at({11: "31.12.2199 00:00", 13: "not a day"}, "Zeitpunkt"),
        at({2: "-5"}, "items"),
    )
    found = checked(tmp_path, frame, change=('items = { type = "number"', 'items = { type = "number", min = 0'))
    seen = {(one.rule, one.field): (one.n_rows, one.row) for one in found.refused}
    assert seen == {
        ("wrong_type", "betrag_eur"): (2, 4),
        ("missing_field", "card_no"): (3, 6),
        ("future_timestamp", "Zeitpunkt"): (1, 12),
        ("wrong_type", "Zeitpunkt"): (1, 14),
        ("out_of_range", "items"): (1, 3),
    }
    assert found.n_accepted == N - 8
    assert not found.holds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop("card no"), r"has no column for the field card_no, which every event needs; the columns are"),
        (lambda f: f.drop("is fraud"), r"has no column is_fraud, the label column in the stream file"),
        (
            lambda f: f.with_columns(at({1: "perhaps"}, "is fraud")),
            r"neither 0 nor 1 in 1 of 600 rows \(such as 'perhaps'\)",
        ),
        (lambda f: f.with_columns(pl.lit("no").alias("is fraud")), r"no row is labelled fraud"),
        (lambda f: f.with_columns(pl.col("note").alias("card no")), r"key card_no: 600 different values in 600 rows"),
        (lambda f: f.with_columns(pl.lit("1").alias("card no")), r"key card_no: every row has the same value"),
        (
            lambda f: f.with_columns(at({1: "0000000"}, "Transaction No")),
            r"event id transaction_no: repeated in 1 of 600 rows",
        ),
    ],
)
def test_what_does_not_fit_is_a_problem(tmp_path: Path, change, message: str) -> None:
    found = checked(tmp_path, change(hostile()))
    assert not found.holds
    assert any(re.search(message, problem) for problem in found.problems), found.problems


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.reverse(), r"earlier than the row above in 599 of 600 rows"),
        (lambda f: f.drop("items"), r"fields that the file does not have \(treated as missing\): items"),
        (lambda f: f.with_columns(pl.lit("7").alias("items")), r"field items: every row has the same value \(7"),
        (lambda f: f.with_columns(pl.lit("").alias("items")), r"field items: has no value in any row"),
        (lambda f: f.with_columns(pl.col("note").alias("mcc")), r"category mcc: 600 different values"),
        (lambda f: f.head(60), r"window 7 days of card_no: is longer than the file"),
        (lambda f: f.with_columns(pl.col("Zeitpunkt").str.slice(0, 10)), r"has no time of day"),
    ],
)
def test_what_may_be_as_it_is_is_a_note(tmp_path: Path, change, message: str) -> None:
    found = checked(tmp_path, change(hostile()))
    assert any(re.search(message, note) for note in found.notes), found.notes


def test_a_broken_stream_file_is_a_problem_and_a_missing_file_an_error(tmp_path: Path) -> None:
    found = checked(tmp_path, hostile(), change=("budget = { rate = 0.005 }", "budget = { rate = 5 }"))
    assert "rate must be a share" in found.problems[0] or "between 0 and 1" in found.problems[0]
    with pytest.raises(TableFileError, match="cannot be read"):
        check(tmp_path / "stream.toml", tmp_path / "none.csv")


def test_the_commands_explain_and_exit_with_0_or_1(tmp_path: Path) -> None:
    hostile().write_csv(tmp_path / "a.csv")
    stream, run = tmp_path / "a.toml", CliRunner().invoke
    said = run(app, ["init", str(tmp_path / "a.csv"), "--to", str(stream)])
    assert said.exit_code == 0
    assert "`card no` → card_no: text, used as key" in said.stdout
    said = run(app, ["init", str(tmp_path / "a.csv"), "--to", str(stream)])
    assert "exists; give another name with --to" in str(said.exception)
    said = run(app, ["check", str(stream), str(tmp_path / "a.csv")])
    assert (said.exit_code, "all 600 rows satisfy the contract" in said.stdout) == (0, True)
    hostile().with_columns(at({4: "x"}, "Betrag (EUR)")).write_csv(tmp_path / "a.csv")
    said = run(app, ["check", str(stream), str(tmp_path / "a.csv")])
    assert said.exit_code == 1
    assert "refused, wrong_type of betrag_eur: 1 of 600 rows, e.g. row 5: betrag_eur" in said.stdout
