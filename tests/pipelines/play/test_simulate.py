from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import polars as pl
import pytest

from pipelines.contracts.contract import Event, EventContract
from pipelines.contracts.stream import Stream
from pipelines.errors import StreamFileError
from pipelines.play.simulate import payments, read_folder
from tests.pipelines.payments import START, few_payments, payments_stream


@pytest.fixture
def stream() -> Stream:
    return payments_stream("simulate")


def area_under_curve(score: pl.Series, label: pl.Series) -> float:
    rank = score.rank().to_numpy()
    n_fraud = int(label.sum())
    return float((rank[label.to_numpy() == 1].sum() - n_fraud * (n_fraud + 1) / 2) / (n_fraud * (len(label) - n_fraud)))


def test_about_one_payment_in_a_hundred_is_fraud_and_the_amount_alone_does_not_tell() -> None:
    frame = payments(seed=3, n_customers=800, n_terminals=1_200, days=40, start=START)
    assert 55_000 < frame.height < 75_000
    assert 0.007 < frame["label"].mean() < 0.013  # type: ignore[operator]
    assert 0.55 < area_under_curve(frame["amount"], frame["label"]) < 0.85


def test_the_same_seed_gives_the_same_payments() -> None:
    assert few_payments(seed=5).equals(few_payments(seed=5))
    assert not few_payments(seed=5).equals(few_payments(seed=6))


def test_every_payment_keeps_the_contract_of_its_stream_file(stream: Stream) -> None:
    frame, contract = few_payments(), EventContract(stream)
    assert frame["event_id"].is_unique().all()
    assert frame["time"].is_sorted()
    for row in frame.drop("label").iter_rows(named=True):
        arrival_ms = round(row["time"].timestamp() * 1000)
        event = contract.decode(msgspec.json.encode(row), row["customer_id"].encode(), arrival_ms)
        assert isinstance(event, Event)
        assert not event.has_unknown_fields


def test_some_cells_are_missing() -> None:
    missing = few_payments(n_customers=300).null_count().row(0, named=True)
    assert {name for name, n in missing.items() if n} == {"channel", "category", "country"}


def test_frauds_come_in_runs_at_terminals_and_customers() -> None:
    frame = payments(seed=3, n_customers=800, n_terminals=1_200, days=40, start=START)
    frauds = frame.filter(pl.col("label") == 1)
    for entity in ("terminal_id", "customer_id"):
        most = frauds.group_by(entity).len()["len"].max()
        assert isinstance(most, int)
        assert most >= 5


def test_a_start_without_time_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="start has no time zone"):
        payments(seed=1, n_customers=5, n_terminals=5, days=1, start=datetime(2026, 1, 1))


def write(folder: Path, name: str, frame: pl.DataFrame) -> None:
    frame.write_parquet(folder / f"{name}.parquet")


def test_a_folder_is_read_as_one_frame_by_event_time(tmp_path: Path, stream: Stream) -> None:
    frame = few_payments().with_columns(pl.lit(1).alias("other"), pl.col("time").dt.cast_time_unit("us"))
    write(tmp_path, "a", frame[500:])
    write(tmp_path, "b", frame[:500])
    read = read_folder(stream, tmp_path)
    assert read.columns == [*(f.name for f in stream.fields), "label"]
    assert read.schema["time"] == pl.Datetime("ms", "UTC")
    assert read.equals(few_payments().select(read.columns))


def test_integer_times_are_milliseconds_since_1970(tmp_path: Path, stream: Stream) -> None:
    frame = few_payments()
    write(tmp_path, "a", frame.with_columns(pl.col("time").dt.epoch("ms")))
    assert read_folder(stream, tmp_path)["time"].equals(frame["time"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop("amount"), r"a.parquet: column amount is missing; add the column, or remove the field"),
        (
            lambda f: f.drop("label"),
            r"column label is missing; add the truth \(0 or 1\), or name its column in \[labels\]",
        ),
        (
            lambda f: f.with_columns(pl.lit("x").alias("amount")),
            r"amount is String, but its type .* is number; cast",
        ),
        (
            lambda f: f.with_columns(pl.lit(0.5).alias("label")),
            r"label is Float64; it must be an integer, 0 or 1",
        ),
        (lambda f: f.with_columns(pl.lit(2).alias("label")), r"column label has values other than 0 and 1"),
        (
            lambda f: f.with_columns(pl.when(pl.col("amount") > 20).then("customer_id").alias("customer_id")),
            r"column customer_id is null in \d+ rows; fill it or drop the rows",
        ),
        (
            lambda f: f.with_columns(pl.col("time").dt.replace_time_zone(None)),
            r"time is Datetime.*, but its type in the stream file is time; add a time zone \(UTC\)",
        ),
    ],
)
def test_a_folder_that_does_not_fit_the_stream_file_is_reported_with_the_fix(
    tmp_path: Path, stream: Stream, change: Callable[[pl.DataFrame], pl.DataFrame], message: str
) -> None:
    write(tmp_path, "a", change(few_payments()))
    with pytest.raises(StreamFileError, match=message):
        read_folder(stream, tmp_path)


def test_a_truth_that_nobody_knows_may_be_empty_where_both_are_reported(tmp_path: Path, stream: Stream) -> None:
    frame = few_payments().with_columns(pl.when(pl.int_range(pl.len()) % 2 > 0).then(pl.col("label")))
    for folder in ("parquet", "csv"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "parquet", "a", frame)
    frame.write_csv(tmp_path / "csv" / "a.csv")
    assert stream.labels is not None
    both = msgspec.structs.replace(stream, labels=msgspec.structs.replace(stream.labels, reports="both"))
    for folder in ("parquet", "csv"):
        assert read_folder(both, tmp_path / folder)["label"].to_list() == frame["label"].to_list()
        with pytest.raises(StreamFileError, match="column label"):
            read_folder(stream, tmp_path / folder)


def test_an_empty_folder_is_reported(tmp_path: Path, stream: Stream) -> None:
    with pytest.raises(StreamFileError, match=r"has no \.parquet or \.csv file"):
        read_folder(stream, tmp_path)


def test_a_first_day_may_be_any_day() -> None:
    frame = payments(seed=1, n_customers=20, n_terminals=30, days=3, start=datetime(2024, 2, 28, tzinfo=UTC))
    assert str(frame["time"].min()).startswith("2024-02-28")


def test_a_csv_file_is_read_by_the_stream_files_types(tmp_path: Path, stream: Stream) -> None:
    frame = few_payments()
    frame.rename({"customer_id": "customer id"}).write_csv(tmp_path / "a.csv", separator=";")
    read = read_folder(stream, tmp_path)
    assert read.equals(frame.select(read.columns))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"amount": pl.lit("a lot")},
            r"a.csv: column amount has 'a lot' in row 1, but its type in the stream file is number; fix the cell",
        ),
        ({"label": pl.lit("maybe")}, r"column label has 'maybe' in row 1; it must be 0 or 1"),
    ],
)
def test_a_cell_of_a_csv_file_that_does_not_fit_is_named(
    tmp_path: Path, stream: Stream, change: dict[str, pl.Expr], message: str
) -> None:
    few_payments().with_columns(**change).write_csv(tmp_path / "a.csv")
    with pytest.raises(StreamFileError, match=message):
        read_folder(stream, tmp_path)
