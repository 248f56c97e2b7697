import time
import uuid
from collections import Counter

import msgspec
import polars as pl
import pytest

from pipelines.contracts.contract import EventContract, Label, LabelContract, Refusal
from pipelines.contracts.stream import DAY_MS, LABEL_STATS, Stream
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.live.marks import mark_of
from pipelines.order import EVENT, LABEL, Source
from pipelines.play.producer import Replayer, create_stream_topics
from pipelines.record import Received
from tests.pipelines.payments import START_MS, few_payments, payments_stream

N_PARTITIONS = 3


@pytest.fixture
def connection(kafka: str) -> Connection:
    return Connection(kafka)


def new_stream(connection: Connection) -> Stream:
    stream = payments_stream(f"replay-{uuid.uuid4().hex[:8]}")
    create_stream_topics(connection, stream, n_partitions=N_PARTITIONS, append_time=False)
    return stream


@pytest.fixture
def stream(connection: Connection) -> Stream:
    return new_stream(connection)


def records(connection: Connection, stream: Stream, kind: str) -> list[Received]:
    spans = topics.bounds(connection, [stream.topic(kind)])
    return [record for batch in topics.read_between(connection, spans) for record in batch]


def test_events_carry_their_own_time_and_frauds_are_reported_after_the_delay(
    connection: Connection, stream: Stream
) -> None:
    frame = few_payments()
    played = Replayer(connection, stream, n_partitions=N_PARTITIONS).play(frame, label_delay_ms=2 * DAY_MS)
    events, labels = records(connection, stream, "events"), records(connection, stream, "labels")
    assert (played.n_events, played.n_labels) == (frame.height, frame["label"].sum()) == (len(events), len(labels))
    contract = EventContract(stream)
    times = dict(zip(frame["event_id"], frame["time"].dt.epoch("ms"), strict=True))
    for record in events:
        event = contract.decode(record.value, record.key, record.timestamp_ms)
        assert not isinstance(event, Refusal)
        assert record.timestamp_ms == event.time_ms == times[event.event_id]
        assert record.partition == topics.partition_of(record.key or b"", N_PARTITIONS)
    for record in labels:
        label = LabelContract(stream).decode(record.value, record.key)
        assert isinstance(label, Label)
        assert (label.label, label.source, label.time_ms) == (1, "replay", times[label.event_id])
        assert record.timestamp_ms == label.labelled_at_ms == label.time_ms + 2 * DAY_MS


def test_where_both_are_reported_a_label_follows_every_event_whose_truth_is_known(connection: Connection) -> None:
    stream = new_stream(connection)
    assert stream.labels is not None
    stream = msgspec.structs.replace(stream, labels=msgspec.structs.replace(stream.labels, reports="both"))
    frame = few_payments(days=4).with_columns(pl.when(pl.int_range(pl.len()) % 3 > 0).then(pl.col("label")))
    played = Replayer(connection, stream, n_partitions=N_PARTITIONS).play(frame, label_delay_ms=DAY_MS)
    decode = LabelContract(stream).decode
    sent = [decode(record.value, record.key) for record in records(connection, stream, "labels")]
    known = frame.filter(pl.col("label").is_not_null())
    assert played.n_labels == len(sent) == known.height
    assert {(s.event_id, s.label) for s in sent if isinstance(s, Label)} == set(known["event_id", "label"].rows())


def test_two_halves_send_what_one_play_sends(connection: Connection, stream: Stream) -> None:
    frame, other, middle_ms = few_payments(), new_stream(connection), START_MS + 5 * DAY_MS
    shares = {"broken_share": 0.05, "duplicate_share": 0.05, "seed": 4}
    whole = Replayer(connection, stream, n_partitions=N_PARTITIONS)
    whole.play(frame, label_delay_ms=DAY_MS, **shares)  # type: ignore[arg-type]
    half = Replayer(connection, other, n_partitions=N_PARTITIONS)
    half.play(frame, label_delay_ms=DAY_MS, until_ms=middle_ms, **shares)  # type: ignore[arg-type]
    half.play(frame, label_delay_ms=DAY_MS, from_ms=middle_ms, **shares)  # type: ignore[arg-type]
    for kind in ("events", "labels"):
        one, two = (
            sorted((r.partition, r.offset, r.timestamp_ms) for r in records(connection, s, kind))
            for s in (stream, other)
        )
        assert one == two


def test_every_kind_of_broken_message_is_refused_by_the_rule_it_is_meant_to_break(
    connection: Connection, stream: Stream
) -> None:
    frame = few_payments(days=6)
    played = Replayer(connection, stream, n_partitions=N_PARTITIONS).play(frame, broken_share=0.2, seed=1)
    contract, rules = EventContract(stream), Counter[str]()
    for record in records(connection, stream, "events"):
        event = contract.decode(record.value, record.key, record.timestamp_ms)
        rules[event.rule if isinstance(event, Refusal) else "accepted"] += 1
    assert rules == Counter(played.n_broken) + Counter(accepted=frame.height)
    assert len(played.n_broken) == 9


def test_a_duplicate_is_the_same_message_a_little_later(connection: Connection, stream: Stream) -> None:
    frame = few_payments(days=6)
    played = Replayer(connection, stream, n_partitions=N_PARTITIONS).play(frame, duplicate_share=0.1)
    sent: dict[tuple[int, bytes | None, bytes | None], list[int]] = {}
    for record in sorted(records(connection, stream, "events"), key=lambda r: r.offset):
        sent.setdefault((record.partition, record.key, record.value), []).append(record.timestamp_ms)
    gaps = [stamps[1] - stamps[0] for stamps in sent.values() if len(stamps) > 1]
    assert len(gaps) == played.n_duplicates > 20
    assert all(1_000 <= gap < 600_000 for gap in gaps)


def test_a_mark_promises_that_nothing_earlier_comes_after_it(
    connection: Connection, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.play.producer.BULK_RECORDS", 200)
    replayer = Replayer(connection, stream, n_partitions=N_PARTITIONS)
    frame, middle_ms = few_payments(), START_MS + 6 * DAY_MS
    replayer.play(frame, label_delay_ms=DAY_MS, until_ms=middle_ms, duplicate_share=0.1)
    replayer.play(frame, label_delay_ms=DAY_MS, from_ms=middle_ms, duplicate_share=0.1, rate=20_000)
    replayer.finish()
    marks = [mark for record in records(connection, stream, "clock") if (mark := mark_of(record))]
    assert len(marks) > 6
    assert [m.below_ms for m in marks] == sorted(m.below_ms for m in marks)
    assert marks[-1].below_ms == float("inf")
    for kind, name in ((EVENT, "events"), (LABEL, "labels")):
        for record in records(connection, stream, name):
            source = Source(kind, record.partition)
            assert record.offset < marks[-1].ends[source]
            for mark in marks:
                assert record.offset < mark.ends[source] or record.timestamp_ms >= mark.below_ms


def test_a_live_replay_is_no_faster_than_its_rate_and_tells_when_each_event_went_out(
    connection: Connection, stream: Stream
) -> None:
    frame = few_payments(days=4)
    sent: dict[str, float] = {}
    began = time.monotonic()
    played = Replayer(connection, stream, n_partitions=N_PARTITIONS).play(
        frame, rate=400, duplicate_share=0.02, broken_share=0.02, on_sent=sent.__setitem__
    )
    wall_s = time.monotonic() - began
    assert wall_s > 0.9 * played.n_events / 400
    assert set(sent) == set(frame["event_id"])
    assert max(sent.values()) - min(sent.values()) > 0.8 * frame.height / 400


def test_a_play_without_records_still_moves_the_clock(connection: Connection, stream: Stream) -> None:
    replayer = Replayer(connection, stream, n_partitions=N_PARTITIONS)
    played = replayer.play(few_payments().filter(pl.lit(False)), until_ms=START_MS)
    assert played.n_events == 0
    assert [m.below_ms for r in records(connection, stream, "clock") if (m := mark_of(r))] == [START_MS]


def test_a_stream_without_labels_is_replayed_too(connection: Connection) -> None:
    labelled = new_stream(connection)
    features = tuple(f for f in labelled.features if f.stat not in LABEL_STATS)
    stream = msgspec.structs.replace(labelled, labels=None, features=features)
    frame = few_payments(days=2).drop("label")
    assert Replayer(connection, stream, n_partitions=N_PARTITIONS).play(frame).n_labels == 0


def test_live_topics_are_stamped_by_the_broker_and_replayed_ones_by_their_producer(connection: Connection) -> None:
    live = payments_stream(f"live-{uuid.uuid4().hex[:8]}")
    create_stream_topics(connection, live, n_partitions=2, append_time=True)
    assert topics.stamps_appends(connection, live.topic("events"))
    assert topics.stamps_appends(connection, live.topic("labels"))
    assert not topics.stamps_appends(connection, new_stream(connection).topic("events"))
    assert len(topics.partitions_of(connection, live.topic("clock"))) == 1
