from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from flows.offline.columns import noun_of, words_of
from flows.offline.init import Guess, guess
from pipelines.contracts.stream import Stream
from pipelines.contracts.stream_file import parse
from pipelines.errors import StreamFileError

N = 600


def hostile(n: int = N) -> pl.DataFrame:
    """Payments as a spreadsheet may hold them: every cell is text."""
    rng = np.random.default_rng(0)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    times = [start + timedelta(minutes=90 * i) for i in range(n)]
    fraud = rng.random(n) < 0.05
    return pl.DataFrame(
        {
            "Transaction No": [f"{i:07d}" for i in range(n)],
            "Zeitpunkt": [f"{t:%d.%m.%Y %H:%M}" for t in times],
            "card no": [f"{rng.integers(20):04d}" for _ in range(n)],
            "Händler": [f"shop {rng.integers(300)}" for _ in range(n)],
            "Betrag (EUR)": [f"{v:.2f}".replace(".", ",") for v in rng.lognormal(3, 1, n)],
            "items": [str(rng.integers(1, 9)) if i % 10 else "N/A" for i in range(n)],
            "mcc": [str(rng.choice([5411, 5812, 5999])) for _ in range(n)],
            "online": [str(rng.choice(["true", "false"])) for _ in range(n)],
            "signup date": ["2020-01-02"] * (n - 1) + ["2021-01-02"],
            "note": [f"free text {i}" for i in range(n)],
            "version": ["3"] * n,
            "comment": ["-"] * n,
            "is fraud": ["yes" if f else "no" for f in fraud],
            "fraud type": ["stolen" if f else "" for f in fraud],
        }
    )


def guessed(tmp_path: Path, frame: pl.DataFrame, *, time_from_rows: bool = False) -> tuple[Stream, Guess]:
    frame.write_csv(tmp_path / "my payments.csv")
    found = guess(tmp_path / "my payments.csv", time_from_rows=time_from_rows)
    return parse(found.text), found


def test_every_column_gets_a_part_and_a_reason(tmp_path: Path) -> None:
    stream, found = guessed(tmp_path, hostile())
    assert (stream.name, stream.event_id, stream.event_time) == ("my_payments", "transaction_no", "Zeitpunkt")
    assert stream.key == "card_no"
    assert set(stream.numbers) == {"betrag_eur", "items"}
    assert set(stream.categories) == {"mcc", "online"}
    assert stream.labels is not None
    assert stream.labels.column == "is_fraud"
    words = dict(line.split(": ", 1) for line in found.columns)
    assert len(words) == hostile().width
    assert words["`card no` → card_no"] == "text, used as key: 20 different values, each seen 30 times on average"
    assert words["`items`"].endswith("missing in 10% of the rows")
    for omitted in ("signup date", "note", "version", "comment", "fraud type"):
        assert any(title.startswith(f"`{omitted}`") and text.startswith("omitted") for title, text in words.items())
    assert "tell the model the answer" in words["`fraud type` → fraud_type"]


def test_a_row_without_a_label_is_unknown_where_the_others_say_fraud_or_not(tmp_path: Path) -> None:
    gaps = hostile().with_columns(pl.when(pl.int_range(pl.len()) % 3 > 0).then(pl.col("is fraud")))
    for frame, reports in ((hostile(), "frauds"), (gaps, "both")):
        stream, _ = guessed(tmp_path, frame)
        assert stream.labels is not None
        assert stream.labels.reports == reports


def test_the_histories_fit_the_file(tmp_path: Path) -> None:
    names = {feature.name for feature in guessed(tmp_path, hostile())[0].features}
    assert {"card_no.count.10m", "card_no.count.7d", "card_no.since_last", "card_no.betrag_eur.zscore.all"} <= names
    assert not any(name.endswith(".30d") for name in names)  # the file has 37 days
    days = hostile().with_columns(pl.col("Zeitpunkt").str.slice(0, 10))
    names = {feature.name for feature in guessed(tmp_path, days)[0].features}
    assert not any(name.endswith((".10m", ".1h")) for name in names)


def test_without_an_id_a_key_or_a_time_fields_are_made_from_the_rows(tmp_path: Path) -> None:
    frame = pl.DataFrame({"x1": np.random.default_rng(0).normal(size=50), "x2": np.arange(50) % 7})
    with pytest.raises(StreamFileError, match=r"no column holds the time .*`x1`, `x2`.*--time-from-rows"):
        guessed(tmp_path, frame)
    stream, found = guessed(tmp_path, frame, time_from_rows=True)
    assert (stream.event_id, stream.event_time, stream.key) == ("row_number", "row_time", "all_rows")
    assert stream.numbers == ("x1", "x2")
    assert sum(note.startswith(("row_number", "row_time", "all_rows")) for note in found.notes) == 3


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1.5", "2", "-"], "number"),
        (["1,5", "2,5", "3"], "number"),
        (["007", "012", "311"], "category"),
        (["0", "1", "1"], "category"),
        (["true", "False", "true"], "category"),
        (["DE", "NA", "FR"], "category"),
        (["5", "6", "7"], "number"),
        (["", "", ""], None),
        (["a", "a", "a"], None),
    ],
)
def test_types_follow_from_the_cells(tmp_path: Path, values: list[str], kind: str | None) -> None:
    frame = hostile().select("Zeitpunkt", "card no", pl.Series("thing", values * (N // 3)))
    stream, _ = guessed(tmp_path, frame)
    assert {f.name: f.type for f in stream.fields}.get("thing") == kind


@pytest.mark.parametrize(
    ("name", "values", "is_label"),
    [
        ("Class", ["0"] * 9 + ["1"], True),
        ("isFraud", ["false"] * 9 + ["true"], True),
        ("target", ["no"] * 9 + ["yes"], True),
        ("label", ["1"] * 9 + ["0"], False),  # nine of ten are no fraud
        ("class", ["first"] * 9 + ["second"], False),
        ("is_fraud", ["0"] * 10, False),
    ],
)
def test_a_label_is_known_by_name_and_values(tmp_path: Path, name: str, values: list[str], is_label: bool) -> None:
    frame = hostile().select("Zeitpunkt", "card no", "items", pl.Series(name, values * (N // 10)))
    assert (guessed(tmp_path, frame)[0].labels is not None) == is_label


def test_what_describes_the_key_has_no_history(tmp_path: Path) -> None:
    years = pl.when(pl.int_range(pl.len()) < N // 2).then(20).otherwise(21)
    frame = hostile().with_columns(age=pl.col("card no").cast(pl.Int64) + years)
    stream, _ = guessed(tmp_path, frame)
    assert "age" in stream.numbers
    assert not any(f.field == "age" for f in stream.features)
    assert any(f.field == "items" for f in stream.features)


def test_a_parquet_file_with_types_of_its_own(tmp_path: Path) -> None:
    frame = hostile().with_columns(
        pl.col("Zeitpunkt").str.to_datetime("%d.%m.%Y %H:%M"),
        pl.col("online") == "true",
        tags=pl.Series([["a"]] * N),
        when_done=pl.Series([datetime(2026, 1, 1, tzinfo=UTC)] * N),
    )
    frame.write_parquet(tmp_path / "a.parquet")
    found = guess(tmp_path / "a.parquet")
    stream = parse(found.text)
    assert stream.event_time == "Zeitpunkt"
    assert "online" in stream.categories
    assert any("tags" in line and "lists" in line for line in found.columns)


def test_names_are_read_as_words() -> None:
    assert [noun_of(words_of(name)) for name in ("CUSTOMER_ID", "user agent", "cc_num", "userid", "nameOrig")] == [
        "customer", "agent", "cc", "user", "orig",
    ]  # fmt: skip


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StreamFileError, match="has 5 rows; at least 20"):
        guessed(tmp_path, hostile(5))


def test_a_hostile_cell_or_name_stays_a_comment(tmp_path: Path) -> None:
    frame = hostile().rename({"mcc": 'm"cc\nname = "x"'}).with_columns(items=pl.lit('a"\n[fields]').cast(pl.String))
    frame = frame.with_columns(pl.Series("items", ['a"\n[stream]', "b"] * (N // 2)))
    stream, _ = guessed(tmp_path, frame)
    assert "items" in stream.categories


def test_names_that_unmask_uses_itself_do_not_clash(tmp_path: Path) -> None:
    frame = hostile().select(
        "Zeitpunkt", "items", event_id=pl.lit("same"), row_number=pl.lit("7"), hour="mcc", source="mcc", label="note"
    )
    stream, _ = guessed(tmp_path, frame)
    assert stream.event_id == "row_number"
    assert {f.name for f in stream.fields} == {"row_number", "Zeitpunkt", "items", "source_"}
