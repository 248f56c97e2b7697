import hashlib
import threading
import tracemalloc
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import polars as pl
import pyarrow.compute as pc
import pytest

from pipelines.contracts.messages import PROGRESS_FORMAT, Progress, RecordSource, Refused, Score
from pipelines.contracts.stream import DAY_MS, Stream
from pipelines.errors import BrokerError, RestoreError
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message
from pipelines.kafka.topics import delete_topics
from pipelines.lake.audit import Findings, NoModelError, Outcomes, Reconciliation, reconcile, skew_audit
from pipelines.lake.ingest import ingest
from pipelines.lake.tables import Lake
from pipelines.live.scorer import Scorer
from pipelines.live.serving import Serving
from pipelines.live.setting import ScorerSetting, StartFrom
from pipelines.play.producer import Replayer, create_stream_topics
from pipelines.record import Received
from tests.patience import wait_until
from tests.pipelines.live.rig import Alone
from tests.pipelines.payments import START_MS, ShiftedSum, event_message, few_payments, payments_stream


@pytest.fixture
def connection(kafka: str) -> Connection:
    return Connection(kafka)


@pytest.fixture
def stream(connection: Connection) -> Stream:
    stream = payments_stream(f"audit-{uuid.uuid4().hex[:8]}")
    create_stream_topics(connection, stream, n_partitions=1, append_time=False)
    return stream


@pytest.fixture
def stream_without_broker() -> Stream:
    return payments_stream("audit")


def progress_record(next_offset: int, **fields: Any) -> Progress:
    record = Progress(
        next_offset=next_offset, start=0, n_scored=0, n_refused=0, n_duplicates=0, n_out_of_turn=0,
        n_partitions=1, definition="", model="", owner="", origin={}, frontier=None, out_of_turn=[],
    )  # fmt: skip
    return msgspec.structs.replace(record, **fields)


class Topics:
    """Writes what a scorer would have written, right or wrong, about events of partition 0."""

    def __init__(self, connection: Connection, stream: Stream) -> None:
        self.connection, self.stream = connection, stream

    def events(self, n: int, *, prefix: str = "e") -> None:
        topic = self.stream.topic("events")
        values = (event_message(f"{prefix}{i}", "c1", START_MS) for i in range(n))
        self._send(*(Message(topic, value, b"c1", 0, START_MS) for value in values))

    def scored(self, *offsets: int) -> None:
        for offset in offsets:
            score = Score(
                event_id=f"e{offset}", score=0.1, alert=False, model="linear", source=self._source(offset),
                event_time="", arrival="", late_ms=0, out_of_order=False, features_hash="0" * 16,
            )  # fmt: skip
            self._send(Message(self.stream.topic("scores"), msgspec.json.encode(score), None, 0))

    def refused(self, offset: int, *, duplicate_of: int | None = None) -> None:
        rule = "bad_json" if duplicate_of is None else "duplicate"
        digest = hashlib.sha256(event_message(f"e{offset}", "c1", START_MS)).hexdigest()
        letter = Refused(
            rule=rule, detail="", fix="", source=self._source(offset), raw_base64="", raw_bytes=0, sha256=digest,
            duplicate_of=duplicate_of,
        )  # fmt: skip
        self._send(Message(self.stream.topic("refused"), msgspec.json.encode(letter), None, 0))

    def progress(self, next_offset: int, **fields: Any) -> None:
        record = progress_record(next_offset, **fields)
        self._send(Message(self.stream.topic("progress"), msgspec.json.encode(record), None, 0))

    def _source(self, offset: int) -> RecordSource:
        return RecordSource(self.stream.topic("events"), 0, offset)

    def _send(self, *messages: Message) -> None:
        with self.connection.writer() as writer:
            for message in messages:
                writer.send(message)
            writer.flush()


@pytest.fixture
def topics(connection: Connection, stream: Stream) -> Topics:
    return Topics(connection, stream)


def test_every_event_scored_refused_or_a_duplicate_reconciles(
    connection: Connection, stream: Stream, topics: Topics
) -> None:
    topics.events(7)
    topics.scored(2, 4)
    topics.refused(3)
    topics.refused(5, duplicate_of=4)
    topics.refused(6, duplicate_of=0)  # its original lies before the start
    topics.progress(7, start=2)
    found = reconcile(connection, stream)
    assert found.holds
    assert (found.n_events, found.n_scored, found.n_refused, found.n_duplicates, found.pending) == (5, 2, 1, 2, 0)


def test_what_lies_beyond_the_progress_is_pending_and_not_missing(
    connection: Connection, stream: Stream, topics: Topics
) -> None:
    topics.events(5)
    topics.scored(0, 1, 2)
    topics.progress(2)
    found = reconcile(connection, stream)
    assert found.holds
    assert (found.n_events, found.n_scored, found.pending) == (2, 2, 3)


def test_lost_doubled_and_strange_events_are_found_with_their_places(
    connection: Connection, stream: Stream, topics: Topics
) -> None:
    topics.events(6)
    topics.scored(0, 1, 3, 3)
    topics.refused(1)
    topics.refused(4)
    topics.refused(5, duplicate_of=4)
    topics.progress(6, start=1)
    found = reconcile(connection, stream)
    assert not found.holds
    assert found.missing == [(0, 2)]
    assert found.doubled == [(0, 1), (0, 3)]
    assert found.stray == [(0, 0)]
    assert found.unscored_duplicates == [(0, 5)]


def test_other_events_at_the_same_offsets_are_found(connection: Connection, stream: Stream, topics: Topics) -> None:
    topics.events(5)
    topics.scored(0, 1, 2)
    topics.refused(3)
    topics.refused(4, duplicate_of=2)
    topics.progress(5)
    delete_topics(connection, [stream.topic("events")])
    create_stream_topics(connection, stream, n_partitions=1, append_time=False)
    topics.events(5, prefix="other")
    found = reconcile(connection, stream)
    assert not found.holds
    assert found.mismatched == [(0, n) for n in range(5)]
    assert {kind for kind, n in found.n_problems.items() if n} == {"mismatched"}


def test_garbage_among_scores_and_dead_letters_is_named_and_steps_over(
    connection: Connection, stream: Stream, topics: Topics
) -> None:
    topics.events(3)
    topics.scored(0, 1)
    for kind, value in (("scores", b"\xff{"), ("scores", b""), ("refused", b"{}"), ("refused", b"[" * 100_000)):
        topics._send(Message(stream.topic(kind), value, None, 0))
    topics.refused(2)
    topics.progress(3)
    found = reconcile(connection, stream)
    assert not found.holds
    assert len(found.unreadable) == found.n_problems["unreadable"] == 4
    assert (found.n_scored, found.n_refused, found.missing, found.stray) == (2, 1, [], [])


@pytest.mark.parametrize("value", [b"no JSON", b"{}", b"\xff", b"", b"[" * 100_000])
def test_a_foreign_progress_record_is_reported_with_its_place_and_the_command(
    connection: Connection, stream: Stream, topics: Topics, value: bytes
) -> None:
    topics.events(1)
    topics.progress(1)
    topics._send(Message(stream.topic("progress"), value, None, 0))
    with pytest.raises(RestoreError, match=r"progress \[0\], offset 1, is not a progress record .* `unmask recover`"):
        reconcile(connection, stream)


def test_progress_of_a_newer_version_is_refused(connection: Connection, stream: Stream, topics: Topics) -> None:
    topics.progress(0, format=PROGRESS_FORMAT + 1)
    with pytest.raises(RestoreError, match=r"progress \[0\], offset 0, has format 3, .* newer version of Unmask"):
        reconcile(connection, stream)


def test_after_a_recovery_earlier_outcomes_do_not_count(connection: Connection, stream: Stream, topics: Topics) -> None:
    topics.events(3)
    topics.scored(0, 1, 2)
    topics.refused(0)
    topics.scored(0, 1)
    topics.progress(2, outcomes_from={"scores": 3, "refused": 1})
    found = reconcile(connection, stream)
    assert found.holds, found
    assert (found.n_scored, found.n_refused, found.pending) == (2, 0, 1)


def test_the_audit_holds_about_twenty_bytes_of_an_event(stream_without_broker: Stream) -> None:
    """A Counter and sets of tuples took 392."""
    stream, n = stream_without_broker, 200_000
    found = Findings()
    topic = stream.topic("scores")
    score = b'{"source":{"topic":"%s","partition":0,"offset":%%d},"event_id":"e%%d"}' % stream.topic("events").encode()
    event = event_message("e%d", "c1", START_MS)
    batches = [range(at, at + 500) for at in range(0, n, 500)]
    outcomes = Outcomes(stream, 0, progress_record(n), found)
    tracemalloc.start()
    try:
        for batch in batches:
            outcomes.published([Received(topic, 0, i, 0, None, score % (i, i)) for i in batch])
        outcomes.compare_with(0)
        for batch in batches:
            outcomes.events([Received(topic, 0, i, 0, b"c1", event % i) for i in batch])
        outcomes.close(lost=range(0), pending=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (found.n_events, found.n_scored, any(found.n_problems.values())) == (n, n, False)
    assert peak / n < 32, f"{peak / n:.1f} bytes an event"


def test_without_progress_there_is_nothing_to_reconcile(connection: Connection, stream: Stream) -> None:
    with pytest.raises(BrokerError, match="nothing has been scored yet; start the scorer first"):
        reconcile(connection, stream)


class Scored:
    """A stream that real scorers have scored, with a promotion in between, and its lake."""

    def __init__(self, connection: Connection, folder: Path, *, packed: bool) -> None:
        self.connection, self.folder = connection, folder
        stream = payments_stream(f"scored-{uuid.uuid4().hex[:8]}")
        self.stream = msgspec.structs.replace(stream, packed_scores=packed)
        self.models = {
            "first": ShiftedSum(self.stream, digest="first"),
            "second": ShiftedSum(self.stream, digest="second", shift=0.05),
        }
        create_stream_topics(connection, self.stream, n_partitions=2, append_time=False)
        replayer, frame = Replayer(connection, self.stream, n_partitions=2), few_payments()
        shares = {"label_delay_ms": DAY_MS, "broken_share": 0.05, "duplicate_share": 0.05}
        start, promotion = (START_MS + days * DAY_MS for days in (6, 9))
        replayer.play(frame, until_ms=start, **shares)  # type: ignore[arg-type]
        with self._scoring(self.models["first"], start="latest"):
            first = replayer.play(frame, from_ms=start, until_ms=promotion, **shares)  # type: ignore[arg-type]
            self._wait_until_scored(but=first.n_events // 2)
        with self._scoring(self.models["second"]):
            second = replayer.play(frame, from_ms=promotion, **shares)  # type: ignore[arg-type]
            replayer.finish()
            self._wait_until_scored()
        self.n_events = first.n_events + second.n_events
        self.n_broken = sum(first.n_broken.values()) + sum(second.n_broken.values())
        self.n_duplicates = first.n_duplicates + second.n_duplicates
        self.lake, self.features = Lake(folder / "lake", self.stream), folder / "features"
        ingest(connection, self.stream, self.lake)

    def model(self, digest: str) -> ShiftedSum:
        """What `skew_audit` asks for."""
        if digest not in self.models:
            raise NoModelError(f"the registry has no {digest}")
        return self.models[digest]

    @contextmanager
    def _scoring(self, model: ShiftedSum, *, start: StartFrom | None = None) -> Iterator[None]:
        setting = ScorerSetting(self.stream, self.connection, self.folder / "snapshots")
        scorer = Scorer(setting, Serving(model), start=start, member=Alone(2))
        stop = threading.Event()
        thread = threading.Thread(target=lambda: scorer.run(stop.is_set))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _wait_until_scored(self, *, but: int = 0) -> None:
        pending = [0]

        def enough_is_scored() -> bool:
            pending[0] = reconcile(self.connection, self.stream).pending
            return pending[0] <= but

        wait_until(enough_is_scored, seen=lambda: pending[0])


@pytest.fixture(scope="module", params=[False, True], ids=["one by one", "packed"])
def scored(request: pytest.FixtureRequest, kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return Scored(Connection(kafka), tmp_path_factory.mktemp("scored"), packed=request.param)


def test_a_scorer_s_stream_reconciles(scored: Scored) -> None:
    found = reconcile(scored.connection, scored.stream)
    assert found.holds, found
    assert found.pending == 0
    assert (found.n_events, found.n_refused) == (scored.n_events, scored.n_broken)
    assert found.n_duplicates == scored.n_duplicates


def test_live_features_and_scores_are_those_of_the_lake_and_of_the_models_they_name(scored: Scored) -> None:
    found = skew_audit(scored.lake, scored.stream, scored.features, models=scored.model)
    assert found.holds, found.examples
    assert found.checked == found.equal == found.n_model_checked > 500
    assert found.worst_score_difference < 1e-5
    assert [m.digest for m in found.models if m.n_checked == m.n_scores > 100] == ["first", "second"]


def test_scores_of_before_a_promotion_are_checked_with_the_model_of_then(scored: Scored) -> None:
    found = skew_audit(scored.lake, scored.stream, scored.features, models=lambda digest: scored.models["second"])
    first, second = found.models
    assert not found.holds
    assert first.n_differs == first.n_checked > 0
    assert (second.n_differs, found.equal) == (0, found.checked)
    assert abs(found.worst_score_difference - 0.05) < 1e-5


def test_an_audit_of_no_score_is_no_success(scored: Scored) -> None:
    nothing = skew_audit(
        scored.lake, scored.stream, scored.features, models=scored.model, since=dict.fromkeys(range(4), 10**9)
    )
    assert (nothing.checked, nothing.holds) == (0, False)


def test_scores_whose_model_cannot_be_loaded_do_not_hold(scored: Scored) -> None:
    with mock.patch.dict(scored.models):
        del scored.models["first"]
        some = skew_audit(scored.lake, scored.stream, scored.features, models=scored.model)
        scored.models.clear()
        none = skew_audit(scored.lake, scored.stream, scored.features, models=scored.model)
    assert not some.holds
    assert [(m.why_not, m.n_checked == m.n_scores) for m in some.models] == [
        ("the registry has no first", False),
        (None, True),
    ]
    assert not none.holds
    assert (none.n_model_checked, none.equal) == (0, none.checked)


class Tampered(Lake):
    """A lake where the last scored event of a partition has another amount."""

    def read(self, table: str, *, columns: list[str] | None = None, where: pc.Expression | None = None) -> pl.DataFrame:
        frame = super().read(table, columns=columns, where=where)
        if table != "events" or "amount" not in frame.columns:
            return frame
        last = (pl.col("partition") == 0) & (
            pl.col("offset") == super().read("scores").filter(pl.col("partition") == 0)["offset"].max()
        )
        return frame.with_columns(
            pl.when(last).then(pl.col("amount") + 0.01).otherwise(pl.col("amount")).alias("amount")
        )


def test_one_cell_that_differs_is_found_with_its_place(scored: Scored, tmp_path: Path) -> None:
    lake = Tampered(scored.lake.folder.parent, scored.stream)
    found = skew_audit(lake, scored.stream, tmp_path, models=scored.model)
    assert 0 < found.checked - found.equal < 20
    assert found.examples
    assert found.examples[0].offline_hash != found.examples[0].live_hash


def test_the_books_in_words_name_every_kind_of_problem_and_its_first_places() -> None:
    good = Reconciliation(9, 6, 2, 1, pending=0, n_problems={"missing": 0})
    assert good.is_complete
    assert good.words() == "9 events = 6 scored + 2 refused + 1 duplicates; 0 are not scored yet"
    behind = Reconciliation(9, 6, 2, 1, pending=3)
    assert (behind.holds, behind.is_complete) == (True, False)
    places = [(0, n) for n in range(7)]
    bad = Reconciliation(9, 5, 2, 1, 0, unscored_duplicates=places, n_problems={"unscored_duplicates": 1_200})
    assert not bad.holds
    first = "(0, 0), (0, 1), (0, 2), (0, 3), (0, 4)"
    assert bad.words().splitlines()[1] == f"1,200 unscored duplicates, first (partition, offset): {first}"
