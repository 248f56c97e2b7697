import hashlib
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import msgspec
import polars as pl
import pytest

from pipelines.contracts.messages import Progress, RecordSource, Score
from pipelines.contracts.stream import DAY_MS, Stream
from pipelines.errors import LakeError
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message
from pipelines.lake.ingest import IngestCounts, Intake, group_of, ingest
from pipelines.lake.tables import Lake
from pipelines.order import EVENT
from pipelines.play.producer import Replayer, create_stream_topics
from tests.patience import HANG_S
from tests.pipelines.kafka import batches
from tests.pipelines.kafka.batches import ZSTD, Raw
from tests.pipelines.payments import START_MS, Log, event_message, few_payments, label_message, payments_stream

ROOT = Path(__file__).parents[3]


@pytest.fixture
def connection(kafka: str) -> Connection:
    return Connection(kafka)


@pytest.fixture
def stream(connection: Connection) -> Stream:
    stream = payments_stream(f"ingest-{uuid.uuid4().hex[:8]}")
    create_stream_topics(connection, stream, n_partitions=2, append_time=False)
    return stream


def send(connection: Connection, *messages: Message) -> None:
    with connection.writer() as writer:
        for message in messages:
            writer.send(message)
        writer.flush()


def event(stream: Stream, event_id: str, stamp_ms: int, *, partition: int = 0, **fields: object) -> Message:
    value = event_message(event_id, "c1", int(fields.pop("time", stamp_ms)), **fields)  # type: ignore[call-overload]
    return Message(stream.topic("events"), value, b"c1", partition, stamp_ms)


def score(stream: Stream, partition: int, offset: int) -> Message:
    value = Score(
        event_id=f"e{offset}", score=0.25, alert=False, model="m", late_ms=7, out_of_order=True,
        features_hash="00ff" * 4, event_time="", arrival="", threshold=0.125,
        source=RecordSource(stream.topic("events"), partition, offset),
    )  # fmt: skip
    return Message(stream.topic("scores"), msgspec.json.encode(value), b"c1", partition)


def progress(stream: Stream, partition: int, places: list[list[int]]) -> Message:
    value = Progress(
        next_offset=1, start=0, n_scored=0, n_refused=0, n_duplicates=0, n_out_of_turn=len(places), n_partitions=2,
        definition="d", model="m", owner="o", origin={}, frontier=None, out_of_turn=places,
    )  # fmt: skip
    return Message(stream.topic("progress"), msgspec.json.encode(value), None, partition)


def test_every_record_goes_to_its_table_once(connection: Connection, stream: Stream, tmp_path: Path) -> None:
    broken = event_message("e1", "c1", START_MS)[:-1]
    send(
        connection,
        event(stream, "e0", START_MS, channel="chip"),
        Message(stream.topic("events"), broken, b"c1", 0, START_MS + 1),
        event(stream, "e0", START_MS + 2, channel="chip"),
        event(stream, "e3", START_MS + 3, partition=1, amount=None),
        Message(stream.topic("labels"), label_message("e0", "c1", START_MS), b"c1", 0, START_MS + 4),
        Message(stream.topic("labels"), label_message("e0", "c1", START_MS, 7), b"c1", 0, START_MS + 5),
        score(stream, 0, 0),
        progress(stream, 0, [[EVENT, 0, 2, START_MS + 9, EVENT, 1, 0, 1]]),
    )
    lake = Lake(tmp_path, stream)
    assert ingest(connection, stream, lake) == IngestCounts(3, 1, 2, 1, 1)
    assert ingest(connection, stream, lake) == IngestCounts()
    events = lake.read("events")
    assert events.select("partition", "offset", "arrival_ms", "event_id", "amount", "channel").rows() == [
        (0, 0, START_MS, "e0", 9.5, "chip"),
        (0, 2, START_MS + 2, "e0", 9.5, "chip"),
        (1, 0, START_MS + 3, "e3", None, None),
    ]
    refused = lake.read("refused")
    assert refused.select("topic", "offset", "rule").sort("topic").rows() == [
        (stream.topic("events"), 1, "bad_json"),
        (stream.topic("labels"), 1, "out_of_range"),
    ]
    bad = refused.filter(pl.col("rule") == "bad_json").row(0, named=True)
    assert (bad["raw"], bad["sha256"]) == (broken, hashlib.sha256(broken).hexdigest())
    assert lake.read("labels").select("event_id", "label", "source", "customer_id").rows() == [("e0", 1, "test", "c1")]
    assert lake.read("scores").select(
        "partition", "offset", "score", "features_hash", "late_ms", "out_of_order", "threshold"
    ).rows() == [(0, 0, 0.25, "00ff" * 4, 7, True, 0.125)]
    assert lake.read("places").drop("told_partition", "told_offset").rows() == [
        (EVENT, 0, 2, START_MS + 9, EVENT, 1, 0, 1)
    ]


def test_what_nobody_can_read_stops_no_ingest(
    kafka: str, connection: Connection, stream: Stream, tmp_path: Path
) -> None:
    bad = Raw(b"?", b"c1", [(b"\xff", b"x")])
    good = [Raw(event_message(f"e{n}", "c1", START_MS), b"c1", [(b"h", b"x")]) for n in range(2)]
    reports = [Raw(label_message(f"e{n}", "c1", START_MS), b"c1") for n in range(2)]
    for kind, (first, last) in (("events", good), ("labels", reports)):
        batches.send(kafka, stream.topic(kind), 0, batches.batch([first, bad, last], codec=ZSTD, stamp_ms=START_MS))
    for kind in ("scores", "progress"):
        batches.send(kafka, stream.topic(kind), 0, batches.batch([bad, Raw(b"{}"), Raw(b"\xff"), Raw(None)]))
    send(connection, score(stream, 0, 0), progress(stream, 0, []))
    lake = Lake(tmp_path, stream)
    assert ingest(connection, stream, lake) == IngestCounts(2, 2, 2, 1, 0, n_unreadable=8)
    refused = lake.read("refused").sort("topic").select("topic", "partition", "offset", "arrival_ms", "rule", "detail")
    assert refused.rows() == [
        (stream.topic(kind), 0, 1, START_MS, "unreadable_record", "the name of a header is not UTF-8")
        for kind in ("events", "labels")
    ]
    assert lake.read("events")["offset"].to_list() == [0, 2]


def test_the_group_s_offsets_in_kafka_are_the_lake_s_positions(
    connection: Connection, stream: Stream, tmp_path: Path
) -> None:
    send(connection, event(stream, "e0", START_MS), event(stream, "e1", START_MS, partition=1))
    told: list[tuple[int, int]] = []
    ingest(connection, stream, Lake(tmp_path, stream), progress=lambda done, total: told.append((done, total)))
    noted = topics.group_positions(connection, group_of(stream))
    assert {p: noted[(stream.topic("events"), p)] for p in (0, 1)} == {0: 1, 1: 1}
    assert told[-1] == (2, 2)


def test_a_kill_between_lake_and_kafka_loses_and_doubles_nothing(
    kafka: str, connection: Connection, stream: Stream, tmp_path: Path
) -> None:
    replayer = Replayer(connection, stream, n_partitions=2)
    frame = few_payments(days=20, n_customers=120)
    played = replayer.play(frame, label_delay_ms=2 * DAY_MS, broken_share=0.05, duplicate_share=0.05)
    send(connection, *(score(stream, 0, offset) for offset in range(50)), progress(stream, 1, []))
    command = [sys.executable, "-m", "tests.pipelines.lake.ingest_run", kafka, stream.topics, str(tmp_path / "killed")]
    for _ in range(3):  # after the events, the labels, the scores: each process finds what the one before left
        done = subprocess.run([*command, "between_lake_and_kafka"], cwd=ROOT, capture_output=True, timeout=HANG_S)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    killed, calm = Lake(tmp_path / "killed", stream), Lake(tmp_path / "calm", stream)
    ingest(connection, stream, killed)
    counts = ingest(connection, stream, calm)
    assert counts.n_events + counts.n_refused == played.n_events
    assert counts.n_labels == played.n_labels
    for table in ("events", "labels", "refused", "scores", "places"):
        assert killed.read(table).sort(pl.all()).equals(calm.read(table).sort(pl.all())), table
    assert killed.arrivals() == calm.arrivals()
    assert killed.positions() == calm.positions()


def test_a_crash_between_the_refused_and_the_events_doubles_nothing(tmp_path: Path) -> None:
    stream = payments_stream("crash")
    lake, log = Lake(tmp_path, stream), Log("crash.events")
    for i in range(10):
        log.add(0, START_MS + i, "c1", event_message(f"e{i}", "c1", START_MS)[: None if i % 2 else -1])

    class Crash(Exception):
        pass

    class Crashing(Lake):
        def append(self, table: str, *args: object, **named: object) -> int:
            if table == "events":
                raise Crash
            return super().append(table, *args, **named)  # type: ignore[arg-type]

    with pytest.raises(Crash):
        Intake(stream, Crashing(tmp_path, stream)).events(log.topic, log.records[:6], {0: 5})
    assert (lake.read("refused").height, lake.positions()) == (3, {})
    Intake(stream, lake).events(log.topic, log.records, {0: 9})
    assert lake.read("refused")["offset"].to_list() == [0, 2, 4, 6, 8]
    assert lake.read("events")["offset"].to_list() == [1, 3, 5, 7, 9]


def test_a_future_stamp_is_judged_by_the_running_arrival_over_all_records_and_ingests(tmp_path: Path) -> None:
    stream = payments_stream("future")
    lake, log = Lake(tmp_path, stream), Log("future.events")
    ahead_ms = stream.future_tolerance_ms
    first = log.add(0, START_MS + 1_000, "c1", b"{broken")  # refused, and yet it moves the arrival on
    fine = log.add(0, START_MS, "c1", event_message("e1", "c1", START_MS + 1_000 + ahead_ms))
    future = log.add(0, START_MS, "c1", event_message("e2", "c1", START_MS + 1_001 + ahead_ms))
    for record in (first, fine, future):
        Intake(stream, lake).events(log.topic, [record], {0: record.offset})
    assert lake.read("events").select("event_id", "arrival_ms").rows() == [("e1", START_MS + 1_000)]
    assert lake.read("refused")["rule"].to_list() == ["bad_json", "future_timestamp"]


def test_garbage_among_scores_and_progress_is_skipped_and_counted(
    connection: Connection, stream: Stream, tmp_path: Path
) -> None:
    garbage = [Message(stream.topic(k), v, None, 0) for k in ("scores", "progress") for v in (b"{", b"{}", b"\xff")]
    garbage.append(Message(stream.topic("progress"), b'{"out_of_turn":[[1]]}', None, 0))
    places = [[EVENT, 0, 2, START_MS + 9, EVENT, 1, 0, 1]]
    send(connection, *garbage, score(stream, 0, 0), progress(stream, 0, places), progress(stream, 1, []))
    assert ingest(connection, stream, Lake(tmp_path, stream)) == IngestCounts(n_scores=1, n_places=1, n_unreadable=7)


def test_a_longer_topic_of_the_same_name_stops_the_ingest(
    connection: Connection, stream: Stream, tmp_path: Path
) -> None:
    send(connection, event(stream, "e0", START_MS))
    ingest(connection, stream, Lake(tmp_path, stream))
    topics.delete_topics(connection, [stream.topic("events")])
    create_stream_topics(connection, stream, n_partitions=2, append_time=False)
    send(connection, *(event(stream, f"n{i}", START_MS + i) for i in range(3)))
    with pytest.raises(LakeError, match=r"filled from another topic named .*events, .* `unmask recover`"):
        ingest(connection, stream, Lake(tmp_path, stream))


def test_a_recreated_topic_stops_the_ingest(connection: Connection, stream: Stream, tmp_path: Path) -> None:
    lake = Lake(tmp_path, stream)
    lake.append("events", lake.frame("events", []), topic=stream.topic("events"), through={0: 41})
    with pytest.raises(
        LakeError, match="ends at offset 0, but the lake is at 42: the topic was recreated; run `unmask recover`"
    ):
        ingest(connection, stream, lake)
