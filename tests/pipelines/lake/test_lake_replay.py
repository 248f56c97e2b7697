import random
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import polars as pl
import pytest

from pipelines.contracts.block import Block
from pipelines.contracts.contract import hash64
from pipelines.contracts.decode import Decoder
from pipelines.contracts.messages import Progress
from pipelines.contracts.stream import DAY_MS, LABEL_STATS, LEGIT_STATS, Feature, Reports, Stream
from pipelines.features.state import State
from pipelines.lake.feature_table import FeatureTable, feature_table
from pipelines.lake.ingest import Intake
from pipelines.lake.tables import Lake
from pipelines.lake.training_table import training_table
from pipelines.order import EVENT, LABEL, Mark, Merge, Run, Source, sources
from pipelines.record import Received
from tests.pipelines.items import items_of
from tests.pipelines.payments import START_MS, Log, event_message, few_payments, label_message, payments_stream

N_PARTITIONS = 3


class Live(NamedTuple):
    """What a scorer would fold: the events that get a score, the duplicates, what came out of turn."""

    rows: Block
    repeated: Block
    places: list[list[int]]


def payments_logs(stream: Stream, *, seed: int) -> tuple[Log, Log]:
    """Payments with late, broken and repeated events; frauds reported two days later, one in five taken back."""
    rng = random.Random(seed)
    events, labels = Log(stream.topic("events")), Log(stream.topic("labels"))
    sends: list[tuple[int, Log, int, str, bytes]] = []
    for row in few_payments(seed=seed).iter_rows(named=True):
        partition = hash64(row["customer_id"]) % N_PARTITIONS
        time_ms = round(row["time"].timestamp() * 1000)
        value = msgspec.json.encode({name: cell for name, cell in row.items() if name != "label"})
        stamp = time_ms + (rng.randrange(2 * DAY_MS) if rng.random() < 0.05 else rng.randrange(1_000))
        sends.append((stamp, events, partition, row["customer_id"], value))
        if rng.random() < 0.05:
            sends.append((stamp + rng.randrange(DAY_MS), events, partition, row["customer_id"], value))
        if rng.random() < 0.03:
            sends.append((stamp, events, partition, row["customer_id"], value[:-1]))
        if row["label"] or rng.random() < 0.02:
            at = stamp + 2 * DAY_MS
            for label in (1, 0) if rng.random() < 0.2 else (1,):
                customer, terminal = row["customer_id"], row["terminal_id"]
                report = label_message(row["event_id"], customer, time_ms, label, terminal_id=terminal)
                sends.append((at, labels, partition, customer, report))
                at += DAY_MS // 2
    for stamp, log, partition, key, value in sorted(sends, key=lambda send: send[0]):
        log.add(partition, stamp, key, value)
    return events, labels


def fold_live(stream: Stream, events: Log, labels: Log, *, held_back: int = 0) -> Live:
    """Merge and fold as the scorer does; `held_back` events of partition 0 come after a mark denied them."""
    by_source: dict[Source, list[Received]] = {source: [] for source in merge_sources()}
    for kind, log in ((LABEL, labels), (EVENT, events)):
        for record in log.records:
            by_source[Source(kind, record.partition)].append(record)
    ends = {source: len(records) for source, records in by_source.items()}
    first = Source(EVENT, 0)
    early = ends | {first: ends[first] - held_back}
    merge = Merge(dict.fromkeys(by_source, 0), label_lag_ms=stream.labels.lag_ms if stream.labels else 0)
    for source, records in by_source.items():
        merge.add(source, records[: early[source]])
    merge.mark(Mark(float("inf"), early))
    runs = [merge.release()]
    merge.add(first, by_source[first][early[first] :])
    merge.mark(Mark(float("inf"), ends))
    run = Run.concat([*runs, merge.release()])
    folded = State(stream, N_PARTITIONS).fold(Decoder(stream).block(run))
    places = [[*i.source, i.record.offset, *i.key] for i in items_of(run) if i.out_of_turn]
    return Live(folded.take(folded.is_scored), folded.take(folded.is_duplicate), places)


def merge_sources() -> list[Source]:
    return sources(N_PARTITIONS, labels=True)


def progress_record(stream: Stream, places: list[list[int]]) -> Received:
    told = Progress(
        next_offset=0, start=0, n_scored=0, n_refused=0, n_duplicates=0, n_out_of_turn=len(places), definition="",
        n_partitions=N_PARTITIONS, model="", owner="", origin={}, frontier=None, out_of_turn=places,
    )  # fmt: skip
    return Received(stream.topic("progress"), 0, 0, START_MS, None, msgspec.json.encode(told))


def into_lake(root: Path, stream: Stream, events: Log, labels: Log, *, batch: int = 10**9) -> Lake:
    lake = Lake(root, stream)
    for log in (events, labels):
        for at in range(0, len(log.records), batch):
            intake = Intake(stream, lake)
            chunk = log.records[at : at + batch]
            take = intake.events if log is events else intake.labels
            take(log.topic, chunk, {r.partition: r.offset for r in chunk})
    return lake


def assert_bit_equal(replay: FeatureTable, live: Live) -> None:
    assert np.array_equal(replay.partition, live.rows.partition)
    assert np.array_equal(replay.offset, live.rows.offset)
    assert replay.event_id.to_list() == live.rows.event_id.tolist()
    assert np.array_equal(replay.numeric.view(np.uint64), np.ascontiguousarray(live.rows.numeric).view(np.uint64))
    assert np.array_equal(replay.categorical, live.rows.category_hashes)
    assert np.array_equal(replay.hashes, live.rows.features_hash)
    assert np.array_equal(replay.late_ms, live.rows.late_ms)
    repeated = live.repeated
    assert np.array_equal(
        replay.duplicates, np.stack([repeated.partition, repeated.offset, repeated.duplicate_of], axis=1)
    )


def both_stream() -> Stream:
    """Payments whose labels report legitimate ones too, with the statistics that need that."""
    stream = payments_stream("t")
    assert stream.labels is not None
    more = tuple(Feature(f"terminal_id.{stat}", stat, "terminal_id") for stat in LEGIT_STATS)
    labels = msgspec.structs.replace(stream.labels, reports="both")
    return msgspec.structs.replace(stream, labels=labels, features=(*stream.features, *more))


@pytest.mark.parametrize(("seed", "reports"), [(1, "frauds"), (2, "frauds"), (3, "both")])
def test_features_made_from_the_lake_are_those_folded_live_bit_for_bit(
    tmp_path: Path, seed: int, reports: Reports
) -> None:
    stream = both_stream() if reports == "both" else payments_stream("t")
    events, labels = payments_logs(stream, seed=seed)
    live = fold_live(stream, events, labels)
    replay = feature_table(into_lake(tmp_path, stream, events, labels, batch=97), stream, tmp_path / "features")
    assert_bit_equal(replay, live)
    assert len(replay.duplicates) == len(live.repeated) > 10
    assert int((replay.late_ms > 0).sum()) > 10


def test_what_was_folded_out_of_turn_is_folded_at_its_recorded_place(tmp_path: Path) -> None:
    stream = payments_stream("t")
    events, labels = payments_logs(stream, seed=4)
    live = fold_live(stream, events, labels, held_back=40)
    assert len(live.places) > 20
    lake = into_lake(tmp_path, stream, events, labels)
    features = tmp_path / "features"
    first = feature_table(lake, stream, features)
    assert not np.array_equal(np.sort(first.hashes), np.sort(live.rows.features_hash))
    Intake(stream, lake).places(stream.topic("progress"), [progress_record(stream, live.places)], {0: 0})
    assert_bit_equal(feature_table(lake, stream, features), live)


@pytest.mark.parametrize("place", ["CHUNK", "SLICE"])
def test_chunks_and_slices_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    stream = payments_stream("t")
    events, labels = payments_logs(stream, seed=5)
    live = fold_live(stream, events, labels, held_back=40)
    lake = into_lake(tmp_path, stream, events, labels, batch=301)
    Intake(stream, lake).places(stream.topic("progress"), [progress_record(stream, live.places)], {0: 0})
    monkeypatch.setattr(f"pipelines.lake.replay.{place}", 101)
    assert_bit_equal(feature_table(lake, stream, tmp_path / "features"), live)


@pytest.mark.parametrize("days", [0, 3, 8, 40])
def test_a_training_table_is_what_a_lake_of_that_time_gives(tmp_path: Path, days: int) -> None:
    stream = payments_stream("t")
    events, labels = payments_logs(stream, seed=6)
    as_of_ms = START_MS + days * DAY_MS
    late = into_lake(tmp_path / "late", stream, events, labels)
    early_events, early_labels = Log(events.topic), Log(labels.topic)
    for log, early, lag_ms in ((events, early_events, 0), (labels, early_labels, 60_000)):
        early.records += [r for r in log.records if r.timestamp_ms + lag_ms < as_of_ms]
    early_lake = into_lake(tmp_path / "early", stream, early_events, early_labels)
    whole = feature_table(late, stream, tmp_path / "late" / "features")
    table = training_table(late, stream, tmp_path / "late" / "features", as_of_ms=as_of_ms)
    same = training_table(early_lake, stream, tmp_path / "early" / "features", as_of_ms=as_of_ms)
    assert len(same) == len(same.features)
    assert len(same) == {0: 0, 40: len(whole)}.get(days, len(same))
    for name in ("time_ms", "label", "known"):
        assert np.array_equal(getattr(table, name), getattr(same, name)), name
    assert table.event_id.equals(same.event_id)
    for name in ("partition", "offset", "categorical", "hashes", "late_ms"):
        ours, theirs = (getattr(t.features, name)[t.rows] for t in (table, same))
        assert np.array_equal(ours, theirs), name
    ours, theirs = (t.features.numeric[t.rows].view(np.uint64) for t in (table, same))
    assert np.array_equal(ours, theirs)
    assert np.all(np.diff(table.time_ms) >= 0)
    assert set(table.category_names.values()) >= {"online", "grocery", "NL"}


def labelled(tmp_path: Path, stream: Stream, reports: list[tuple[str, int, int]]) -> pl.DataFrame:
    """Label and known of three events, a day apart, as of day 10; reports are (event id, label, arrival in days)."""
    events, labels = Log(stream.topic("events")), Log(stream.topic("labels"))
    for day, event_id in enumerate(("a", "b", "c")):
        time_ms = START_MS + day * DAY_MS
        events.add(0, time_ms, "c1", event_message(event_id, "c1", time_ms))
    for event_id, label, at_ms in sorted(reports, key=lambda report: report[2]):
        labels.add(0, START_MS + at_ms, "c1", label_message(event_id, "c1", START_MS, label))
    lake = into_lake(tmp_path, stream, events, labels)
    table = training_table(lake, stream, tmp_path / "features", as_of_ms=START_MS + 10 * DAY_MS)
    return pl.DataFrame({"id": table.event_id, "label": table.label, "known": table.known})


def test_the_latest_report_wins_and_0_takes_one_back(tmp_path: Path) -> None:
    reports = [
        ("a", 1, 3 * DAY_MS),
        ("b", 1, 3 * DAY_MS),
        ("b", 0, 4 * DAY_MS),
        ("c", 0, 3 * DAY_MS),
        ("c", 1, 4 * DAY_MS),
    ]
    assert labelled(tmp_path, payments_stream("t"), reports)["label"].to_list() == [1, 0, 1]


def test_a_report_counts_from_the_label_lag_after_its_arrival(tmp_path: Path) -> None:
    reports = [("a", 1, 10 * DAY_MS - 60_001), ("b", 1, 10 * DAY_MS - 60_000)]
    assert labelled(tmp_path, payments_stream("t"), reports)["label"].to_list() == [1, 0, 0]


def test_a_label_is_known_once_its_event_is_older_than_the_maturity(tmp_path: Path) -> None:
    stream = payments_stream("t")
    assert stream.labels is not None
    mature = msgspec.structs.replace(stream, labels=msgspec.structs.replace(stream.labels, maturity_ms=9 * DAY_MS))
    assert labelled(tmp_path, mature, [])["known"].to_list() == [True, False, False]


def test_where_both_are_reported_a_label_is_known_once_there_is_one(tmp_path: Path) -> None:
    table = labelled(tmp_path, both_stream(), [("a", 1, 3 * DAY_MS), ("c", 0, 3 * DAY_MS), ("b", 0, 10 * DAY_MS)])
    assert table["label"].to_list() == [1, 0, 0]
    assert table["known"].to_list() == [True, False, True]


def test_without_labels_in_the_stream_no_label_is_known(tmp_path: Path) -> None:
    stream = payments_stream("t")
    unlabelled = msgspec.structs.replace(
        stream, labels=None, features=tuple(f for f in stream.features if f.stat not in LABEL_STATS)
    )
    table = labelled(tmp_path, unlabelled, [])
    assert (table["label"].sum(), table["known"].sum(), table.height) == (0, 0, 3)


def test_an_empty_lake_gives_an_empty_table(tmp_path: Path) -> None:
    stream = payments_stream("t")
    table = training_table(Lake(tmp_path, stream), stream, tmp_path / "features", as_of_ms=START_MS)
    shapes = table.features.numeric.shape, table.features.categorical.shape
    assert shapes == ((0, len(stream.numeric_columns)), (0, len(stream.categories)))
    assert (len(table), table.category_names) == (0, {})
