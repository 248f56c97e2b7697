"""Features of a data frame are those that the lake's replay makes of the same events, bit for bit."""

from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import polars as pl
import pytest

from pipelines.contracts.contract import hash64
from pipelines.contracts.stream import DAY_MS, Feature, Stream
from pipelines.features.offline import features_of
from pipelines.lake.feature_table import FeatureTable, feature_table
from tests.pipelines.lake.test_lake_replay import N_PARTITIONS, into_lake
from tests.pipelines.payments import Log, few_payments, label_message, payments_stream


def replayed(root: Path, stream: Stream, frame: pl.DataFrame, *, delay_ms: int) -> FeatureTable:
    """The frame through a lake of several partitions; each label is reported `delay_ms` after its event."""
    assert stream.labels is not None
    events, labels = Log(stream.topic("events")), Log(stream.topic("labels"))
    for row in frame.iter_rows(named=True):
        time_ms, customer = round(row["time"].timestamp() * 1000), row["customer_id"]
        partition = hash64(customer) % N_PARTITIONS
        cells = {name: cell for name, cell in row.items() if name != "label" and cell is not None} | {"time": time_ms}
        events.add(partition, time_ms, customer, msgspec.json.encode(cells))
        if row["label"] in stream.labels.sent:
            report = label_message(row["event_id"], customer, time_ms, row["label"], terminal_id=row["terminal_id"])
            labels.add(partition, time_ms + delay_ms, customer, report)
    return feature_table(into_lake(root, stream, events, labels, batch=211), stream, root / "features")


@pytest.mark.parametrize("reports", ["frauds", "both"])
@pytest.mark.parametrize(("delay_days", "chunk"), [(None, 50_000), (2, 101)])
def test_features_of_a_frame_are_those_of_the_lake_bit_for_bit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    delay_days: int | None,
    chunk: int,
    reports: Literal["frauds", "both"],
) -> None:
    monkeypatch.setattr("pipelines.features.offline._CHUNK", chunk)
    stream = payments_stream("t")
    assert stream.labels is not None
    labels = msgspec.structs.replace(stream.labels, maturity_ms=3 * DAY_MS, reports=reports)
    stream = msgspec.structs.replace(stream, labels=labels)
    if reports == "both":
        more = (
            Feature(f"terminal_id.{stat}", stat, "terminal_id")
            for stat in ("since_legit", "fraud_run", "fraud_run_age")
        )
        stream = msgspec.structs.replace(stream, features=(*stream.features, *more))
    frame = few_payments(days=20).with_columns(
        amount=pl.when(pl.col("amount").rank("ordinal") % 50 > 0).then("amount"),
        label=pl.when(pl.col("amount").rank("ordinal") % 3 > 0).then("label"),
    )
    frame = frame.with_columns(time=pl.col("time").dt.truncate("1ms")).sort("time", "event_id")
    delay_ms = (3 if delay_days is None else delay_days) * DAY_MS
    replay = replayed(tmp_path, stream, frame, delay_ms=delay_ms)
    ours = features_of(frame, stream, label_delay_ms=None if delay_days is None else delay_ms)
    place = {event_id: row for row, event_id in enumerate(frame["event_id"])}
    rows = np.array([place[event_id] for event_id in replay.event_id])
    assert np.array_equal(np.sort(rows), np.arange(len(frame)))
    assert np.array_equal(ours.numeric[rows].view(np.uint64), np.asarray(replay.numeric).view(np.uint64))
    assert np.array_equal(ours.categorical[rows], replay.categorical)
    assert np.array_equal(ours.time_ms[rows], replay.time_ms)
    fed = [i for i, column in enumerate(stream.columns) if column.label_fed]
    assert np.nansum(ours.numeric[:, fed]) > 10
    assert all(len(np.unique(ours.numeric[:, i])) > 1 for i in fed)
    assert set(ours.category_names.values()) >= {"online", "grocery", "NL"}


def test_a_frame_without_labels_has_no_known_fraud() -> None:
    stream, frame = payments_stream("t"), few_payments(days=12)
    hidden = features_of(frame.with_columns(label=pl.lit(None, pl.Int8)), stream).numeric
    absent = features_of(frame.drop("label"), stream).numeric
    assert np.array_equal(hidden.view(np.uint64), absent.view(np.uint64))
    frauds = [column.stat in ("fraud_rate", "fraud_count") for column in stream.columns if column.kind == "numeric"]
    assert np.nansum(hidden[:, frauds]) == 0
