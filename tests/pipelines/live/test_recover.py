"""What stops a scorer loudly names `unmask recover`, and after that it goes on and the books balance."""

import base64
import gzip
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from msgspec.structs import replace

from pipelines.contracts.alert_memory import AlertMemory, CapDay
from pipelines.contracts.messages import PROGRESS_FORMAT, Progress
from pipelines.contracts.stream import StormRules
from pipelines.contracts.stream_file import parse
from pipelines.errors import BrokerError, FencedError, RestoreError, UnmaskError
from pipelines.features.state import State
from pipelines.kafka import topics
from pipelines.kafka.port import Message
from pipelines.kafka.progress import read_progress
from pipelines.kafka.topics import KEEP_FOR_EVER
from pipelines.lake.audit import SkewAudit, reconcile, skew_audit
from pipelines.lake.ingest import ingest
from pipelines.lake.tables import Lake
from pipelines.live.recover import Recovery
from pipelines.live.recovery_plan import Facts, Published, RecoveryPlan, plan
from pipelines.live.takeover import first_progress
from pipelines.order import EVENT, LABEL, Source
from tests.patience import HANG_S, wait_until
from tests.pipelines.live.kill_stream import KEY, TEXTS, stream_named
from tests.pipelines.live.live_scorer import Linear
from tests.pipelines.live.rig import N_PARTITIONS, Rig, Running, running

ROOT = Path(__file__).parents[3]
APPEND_TIME = KEEP_FOR_EVER | {"message.timestamp.type": "LogAppendTime"}


class Books(Rig):
    """A stream that can be spoilt and recovered."""

    @property
    def lake(self) -> Lake:
        return Lake(self.folder / "lake", self.stream)

    @property
    def recovery(self) -> Recovery:
        return Recovery(self.connection, self.stream, snapshots=self.folder / "snapshots", lake=self.lake)

    def send_labels(self, n: int) -> None:
        """Frauds reported among the events sent."""
        with self.connection.writer() as writer:
            for i in range(n):
                card = f"c{i % 7}"
                label = {"id": f"e{i}", "at": int(time.time() * 1000), "card": card, "label": 1,
                         "labelled_at": int(time.time() * 1000), "source": "test"}  # fmt: skip
                writer.send(Message(self.stream.topic("labels"), json.dumps(label).encode(), card.encode()))
            writer.flush()

    def score_and_ingest(self) -> None:
        """A scorer runs until nothing is pending, then the lake is filled."""
        with running(self.scorer()):
            self.wait_until_balanced()
        ingest(self.connection, self.stream, self.lake)

    def wait_until_balanced(self) -> None:
        told: dict[int, Progress | None] = {}

        def nothing_is_pending() -> bool:
            spans = topics.bounds(self.connection, [self.stream.topic("events")])
            told.update({p: read_progress(self.connection, self.stream, p) for _, p in spans})
            return all((r := told[p]) and r.next_offset >= end for (_, p), (_, end) in spans.items())

        wait_until(nothing_is_pending, seen=lambda: {p: r and r.next_offset for p, r in told.items()})

    def remake(self, *kinds: str, n_partitions: int = N_PARTITIONS) -> None:
        names = [self.stream.topic(kind) for kind in kinds]
        topics.delete_topics(self.connection, names)
        topics.create_topics(self.connection, dict.fromkeys(names, n_partitions), config=APPEND_TIME)

    def recover(self) -> RecoveryPlan:
        """The one thing that was the matter."""
        found = self.recovery.plan()
        assert found is not None
        self.recovery.carry_out(found)
        assert self.recovery.plan() is None
        return found

    def skew(self, *, since: Mapping[int, int] | None = None) -> SkewAudit:
        return skew_audit(
            self.lake,
            self.stream,
            self.lake.folder.parent / "features",
            models=lambda digest: Linear(self.stream),
            since=since,
        )

    def check(self, *, n_scored: int, since: bool = False) -> None:
        """Nothing lost or doubled, and live is offline."""
        found = reconcile(self.connection, self.stream)
        assert found.holds, found
        assert (found.n_scored, found.pending) == (n_scored, 0)
        skew = self.skew(since=found.since if since else None)
        assert skew.holds, skew.examples
        assert skew.checked == (found.n_scored_since if since else n_scored)


@pytest.fixture
def books(kafka: str, tmp_path: Path) -> Books:
    return Books(kafka, tmp_path)


def test_recreated_events_begin_new_books(books: Books) -> None:
    n_new = 130  # longer than the old topic
    books.send(60)
    books.score_and_ingest()
    books.remake("events")
    books.send(n_new)
    with pytest.raises(RestoreError, match=r"recreated .* run `unmask recover`"):
        books.scorer()
    with pytest.raises(UnmaskError, match=r"recreated.* run `unmask recover`"):
        ingest(books.connection, books.stream, books.lake)
    found = books.recover()
    assert found.name == "remade"
    assert str(n_new) in found.scored_again
    books.score_and_ingest()
    books.check(n_scored=n_new)
    assert len(books.scores()) == 60 + n_new  # what was published stays
    assert len(list(books.folder.glob("snapshots.*"))) == 1
    assert len(list(books.folder.glob(f"lake/{books.stream.topics}.*"))) == 1


def test_recreated_labels_score_no_event_again(books: Books) -> None:
    books.send(60)
    books.send_labels(10)
    books.score_and_ingest()
    books.remake("labels")
    books.send_labels(3)
    with pytest.raises(RestoreError, match=r"labels was deleted and recreated .* run `unmask recover`"):
        books.scorer()
    assert "only labels were recreated" in books.recover().scored_again
    books.send(20)
    books.score_and_ingest()
    books.check(n_scored=20)
    assert len({s["event_id"] for s in books.scores()}) == len(books.scores()) == 80


def test_partitions_that_were_added_are_scored_from_their_beginning(books: Books) -> None:
    books.send(60)
    books.score_and_ingest()
    topics.add_partitions(books.connection, {books.stream.topic("events"): N_PARTITIONS + 1})
    books.send(60)
    with pytest.raises(BrokerError, match=r"different numbers of partitions: .* run `unmask recover`"):
        books.scorer()
    assert books.recover().name == "widened"
    with running(books.scorer()) as run:
        books.wait_until_balanced()
        assert run.scorer.counters.n_folded == 60  # the snapshot of fewer partitions was used
    ingest(books.connection, books.stream, books.lake)
    books.check(n_scored=120)
    books.send(30)
    books.score_and_ingest()
    books.check(n_scored=150)


def test_partitions_added_to_every_topic_are_reported_too(books: Books) -> None:
    books.send(30)
    books.score_and_ingest()
    kinds = ("events", "labels", "scores", "alerts", "refused", "progress")
    topics.add_partitions(books.connection, dict.fromkeys(map(books.stream.topic, kinds), N_PARTITIONS + 1))
    with pytest.raises(RestoreError, match=r"had 2 partitions .* now 3: .* run `unmask recover`"):
        books.scorer()
    assert books.recover().name == "widened"
    with running(books.scorer()):
        books.wait_until_balanced()


def test_emptied_progress_is_rebuilt_from_what_was_published(books: Books) -> None:
    books.send(60)
    books.score_and_ingest()
    books.remake("progress")
    with pytest.raises(RestoreError, match=r"was emptied, .* run `unmask recover`"):
        books.scorer()
    assert books.recover().name == "emptied"
    books.send(20)
    books.score_and_ingest()
    books.check(n_scored=80)


def test_recreated_scores_are_counted_from_then_on(books: Books) -> None:
    books.send(60)
    books.score_and_ingest()
    books.remake("scores")
    with pytest.raises(UnmaskError, match=r"recreated.* run `unmask recover`"):
        ingest(books.connection, books.stream, books.lake)
    assert books.recover().name == "unlike_lake"
    books.send(20)
    books.score_and_ingest()
    found = reconcile(books.connection, books.stream)
    assert (found.holds, found.n_scored, books.lake.read("scores").height) == (True, 20, 80)
    assert books.skew().holds


def test_a_foreign_record_in_progress_is_stepped_over(books: Books) -> None:
    books.send(60)
    books.score_and_ingest()
    with books.connection.writer() as writer:
        writer.send(Message(books.stream.topic("progress"), b"not ours", None, 1))
        writer.flush()
    with pytest.raises(RestoreError, match=r"progress \[1\], offset \d+, is not a progress record .* `unmask recover`"):
        books.scorer()
    assert books.recover().name == "garbled"
    books.send(20)
    books.score_and_ingest()
    books.check(n_scored=80)


def test_features_that_changed_begin_where_the_old_ones_end(books: Books) -> None:
    books.send(60)
    books.score_and_ingest()
    books.stream = parse(TEXTS["merged"].format(name=books.stream.name).replace('"sum", ', ""))
    with pytest.raises(RestoreError, match=r"the features have changed since the last run .* `unmask recover`"):
        books.scorer()
    assert books.recover().name == "redefined"
    books.send(25)
    with running(books.scorer()) as run:
        books.wait_until_balanced()
        assert run.scorer.counters.n_folded == 25  # the state was built before the switch
    ingest(books.connection, books.stream, books.lake)
    books.check(n_scored=85, since=True)
    found = reconcile(books.connection, books.stream)
    assert (sum(found.since.values()), found.n_scored_since) == (60, 25)
    assert not books.skew().holds  # the first 60 were made under the old features


@pytest.mark.parametrize(
    ("kind", "is_headless"),
    [("", False), ("", True), (KEY, True)],
    ids=["merged", "merged, by the lake", "key, by the lake"],
)
def test_changed_features_are_built_while_a_scorer_goes_on_with_the_old_ones(
    kafka: str, tmp_path: Path, kind: str, is_headless: bool
) -> None:
    books = Books(kafka, tmp_path, kind=kind)
    for _ in range(3):  # so that the deleted half ends before the last batch of any partition
        books.send(700)
    books.send_labels(300)
    if is_headless:
        books.score_and_ingest()
        delete_half_of_the_events(books)
    old, is_over = Running(books.scorer()), threading.Event()

    def send_on() -> None:
        while not is_over.is_set():
            books.send(20)

    sending = threading.Thread(target=send_on)
    sending.start()
    try:
        wait_until(lambda: old.scorer.caught_up, alive=lambda: old.is_alive)
        text = TEXTS["key" if kind else "merged"].format(name=books.stream.name)
        books.stream = parse(text.replace('"ratio", ', ""))
        plan = books.recovery.plan()
        assert plan is not None
        assert plan.name == "redefined"
        n_scored, told = old.scorer.setting.published.n_scored, list[tuple[int, int, bool]]()
        books.recovery.carry_out(plan, on_progress=lambda n, of: told.append((n, of, old.is_alive)))
        assert old.scorer.setting.published.n_scored > n_scored
        old.join()
    finally:
        is_over.set()
        sending.join()
    assert isinstance(old.error, FencedError)
    assert [n for n, _, _ in told] == sorted(n for n, _, _ in told)
    assert told[-1][0] == told[-1][1] > 2_000
    assert all(is_alive for *_, is_alive in told)
    with running(books.scorer()) as new:
        books.wait_until_balanced()
    assert new.scorer.counters.n_folded < books.n_sent - 2_000
    ingest(books.connection, books.stream, books.lake)
    books.check(n_scored=books.n_sent, since=True)


def spoil_snapshots_and_head(books: Books) -> None:
    """All snapshots lost, and the first half of what was scored is gone from Kafka."""
    for path in (books.folder / "snapshots").glob("*"):
        path.unlink()
    delete_half_of_the_events(books)


def delete_half_of_the_events(books: Books) -> None:
    topic = books.stream.topic("events")
    ends = topics.bounds(books.connection, [topic])
    admin = KafkaAdminClient(bootstrap_servers=books.connection.bootstrap)
    admin.delete_records({TopicPartition(topic, p): end // 2 for (_, p), (_, end) in ends.items()})
    admin.close()


def test_without_snapshots_and_the_beginning_the_state_comes_from_the_lake(books: Books) -> None:
    books.send(60)
    books.send_labels(10)
    books.score_and_ingest()
    books.send(20)  # not scored when everything is lost, and not in the lake
    spoil_snapshots_and_head(books)
    with pytest.raises(
        RestoreError, match=r"its first \d+ records were deleted, and no snapshot can be used; run `unmask recover"
    ):
        books.scorer()
    assert books.recover().from_lake
    books.send(20)
    with running(books.scorer()) as run:
        books.wait_until_balanced()
        assert run.scorer.counters.n_folded < 60
    ingest(books.connection, books.stream, books.lake)
    books.check(n_scored=100)


@pytest.mark.parametrize("has_lake", [False, True], ids=["no lake", "a lake that ends before"])
def test_changed_features_without_the_beginning_say_what_is_lost(books: Books, has_lake: bool) -> None:
    books.send(20)
    with running(books.scorer()):
        books.wait_until_balanced()
    if has_lake:
        ingest(books.connection, books.stream, books.lake)
        books.send(100)
        with running(books.scorer()):
            books.wait_until_balanced()
    delete_half_of_the_events(books)
    books.stream = parse(TEXTS["merged"].format(name=books.stream.name).replace('"sum", ', ""))
    found = books.recovery.plan()
    assert found is not None
    books.recovery.carry_out(found)
    assert found.name == "redefined"
    assert "the history of entities before the first record that Kafka has" in found.lost
    assert "run `unmask recover` once more" in found.scored_again
    assert books.recover().name == "forgotten"
    books.send(20)
    books.score_and_ingest()
    books.check(n_scored=books.n_sent, since=True)


def test_without_a_lake_the_state_begins_with_what_kafka_keeps(books: Books) -> None:
    books.send(60)
    with running(books.scorer()):
        books.wait_until_balanced()
    spoil_snapshots_and_head(books)
    found = books.recover()
    assert found.name == "forgotten"
    assert "history of entities before the first record" in found.lost
    books.send(20)
    books.score_and_ingest()
    books.check(n_scored=80, since=True)


class Older(Books):
    """What version 0.1.0 (commit 7186300) had written: 42 events, 40 of them scored, and a snapshot.

    Args:
        definition: of the features, as its progress records tell it; by default that of this version.
    """

    def __init__(self, bootstrap: str, folder: Path, *, definition: str | None = None) -> None:
        super().__init__(bootstrap, folder)
        written = json.loads((Path(__file__).parents[1] / "data" / "version_0_1_0.json").read_text())
        theirs = json.loads(written["records"]["progress"][-1][3])["definition"]
        ours = definition or State(self.stream, N_PARTITIONS).digest
        inputs = [self.stream.topic(kind) for kind in ("events", "labels")]
        topics.delete_topics(self.connection, inputs)
        topics.create_topics(self.connection, dict.fromkeys(inputs, N_PARTITIONS), config=KEEP_FOR_EVER)
        with self.connection.writer() as writer:
            for kind, records in written["records"].items():
                for partition, stamp_ms, key, value in records:
                    value = value.replace("TOPICS", self.stream.name).replace(theirs, ours).encode()
                    writer.send(Message(self.stream.topic(kind), value, key and key.encode(), partition, stamp_ms))
                writer.flush()
        admin = KafkaAdminClient(bootstrap_servers=bootstrap)
        stamped = {"message.timestamp.type": "LogAppendTime"}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, stamped) for topic in inputs])
        admin.close()
        name, content = written["snapshot"]
        (folder / "snapshots").mkdir()
        (folder / "snapshots" / name).write_bytes(gzip.decompress(base64.b64decode(content)))
        self.n_sent = len(written["records"]["events"])


def test_data_of_version_0_1_0_is_taken_over_where_the_features_are_the_same(kafka: str, tmp_path: Path) -> None:
    books = Older(kafka, tmp_path)
    before = {
        p: record.next_offset
        for p in range(N_PARTITIONS)
        if (record := read_progress(books.connection, books.stream, p))
    }
    books.send(20)
    books.score_and_ingest()
    found = reconcile(books.connection, books.stream)
    assert (found.holds, found.n_scored, found.n_refused, found.n_duplicates) == (True, 60, 1, 1)
    skew = books.skew(since=before)
    assert (skew.checked, skew.equal) == (20, 20), skew.examples
    told = read_progress(books.connection, books.stream, 0)
    assert told is not None
    assert (told.format, set(told.topic_ids)) == (PROGRESS_FORMAT, {"events", "labels"})


def test_data_of_version_0_1_0_goes_on_by_the_command_where_they_are_not(kafka: str, tmp_path: Path) -> None:
    books = Older(kafka, tmp_path, definition="0" * 64)
    with pytest.raises(RestoreError, match=r"this version of Unmask computes them differently.* run `unmask recover`"):
        books.scorer()
    assert books.recover().name == "redefined"
    books.send(20)
    books.score_and_ingest()
    books.check(n_scored=60, since=True)
    assert reconcile(books.connection, books.stream).n_scored_since == 20


def test_a_recovery_fences_a_scorer_that_still_runs(books: Books) -> None:
    books.send(30)
    run = Running(books.scorer())
    books.wait_until_balanced()
    books.remake("labels")  # the events go on: the scorer may not notice yet
    books.recover()
    books.send(10)
    run.join()
    assert run.error is not None
    books.score_and_ingest()
    books.check(n_scored=10)
    assert len({s["event_id"] for s in books.scores()}) == len(books.scores()) == 40


def test_the_command_only_reports_without_yes(books: Books, tmp_path: Path) -> None:
    books.send(30)
    books.score_and_ingest()
    books.remake("events")
    books.send(10)
    stream_file = tmp_path / "stream.toml"
    stream_file.write_text(TEXTS["merged"].format(name=books.stream.name))

    def unmask(*words: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"UNMASK_HOME": str(tmp_path), "KAFKA_BOOTSTRAP_SERVERS": books.connection.bootstrap}
        command = [sys.executable, "-m", "flows.cli", *words, "--stream", str(stream_file)]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=HANG_S, check=False)

    told = unmask("recover")
    assert told.returncode == 1, told.stderr
    for words in ("what happened", "recreated", "kept", "lost", "every event of the new topic: 10", "records are read"):
        assert words in told.stdout
    assert books.recovery.plan() is not None
    done = unmask("recover", "--yes")
    assert (done.returncode, books.recovery.plan()) == (0, None), done.stderr
    assert "Next: unmask score" in done.stdout
    again = unmask("recover")
    assert again.returncode == 0
    assert "Nothing keeps the scorer from starting" in again.stdout


# Decisions, without a broker.

STREAM = stream_named("plans")
SPANS = {Source(kind, p): (0, 10) for kind in (LABEL, EVENT) for p in range(2)}
KINDS = ("events", "labels", "scores", "alerts", "refused", "progress")


def facts(**changes: object) -> Facts:
    record = first_progress(
        5, n_partitions=2, definition="d", model="m", owner="o", bounds=SPANS, topic_ids={"events": "e", "labels": "l"}
    )
    good = Facts(
        STREAM, "d", dict.fromkeys(KINDS, 2), {"events": "e", "labels": "l"}, SPANS,
        {kind: {0: 7, 1: 8} for kind in ("scores", "refused", "progress")}, {0: record, 1: record},
    )  # fmt: skip
    return Facts(**(vars(good) | changes))  # type: ignore[arg-type]


def test_where_nothing_is_the_matter_there_is_no_plan() -> None:
    assert plan(facts()) is None
    assert plan(facts(topic_ids={})) is None  # a broker without ids
    never = {0: None, 1: None}
    assert plan(facts(progress=never)) is None  # a first start names --from


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"topic_ids": {"events": "other", "labels": "l"}}, "remade"),
        ({"topic_ids": {"events": "e", "labels": "other"}}, "remade"),
        ({"spans": SPANS | {Source(EVENT, 1): (0, 4)}}, "remade"),
        (
            {
                "counts": dict.fromkeys(KINDS, 2) | {"events": 3},
                "spans": SPANS | {Source(LABEL, 2): (0, 0), Source(EVENT, 2): (0, 4)},
            },
            "widened",
        ),
        ({"definition": "other"}, "redefined"),
        ({"outdated": ("progress",)}, "unlike_lake"),
        ({"snapshot_fits": False, "spans": SPANS | {Source(EVENT, 1): (3, 10)}}, "forgotten"),
        (
            {
                "snapshot_fits": False,
                "spans": SPANS | {Source(LABEL, 0): (3, 10)},
                "lake_ends": dict.fromkeys(SPANS, 9),
            },
            "headless",
        ),
    ],
)
def test_each_trouble_has_its_plan(changes: dict[str, object], name: str) -> None:
    found = plan(facts(**changes))
    assert found is not None
    assert found.name == name
    assert all(words for _, words in found.words(1000.0))


def test_recreated_labels_leave_the_events_books_where_they_are() -> None:
    found = plan(facts(topic_ids={"events": "e", "labels": "other"}))
    assert found is not None
    assert [record.next_offset for records in found.progress.values() for record in records] == [5, 5]
    assert found.progress[1][0].outcomes_from == {"scores": 8, "refused": 8, "progress": 8}


def test_open_groups_of_alerts_go_on_where_the_events_do_and_are_lost_with_the_progress() -> None:
    memory = AlertMemory((), CapDay(20_000, n_alerts=3))
    known = {p: replace(record, alert_memory=memory) for p, record in facts().known.items()}
    cases: list[tuple[dict[str, object], AlertMemory | None]] = [
        ({"topic_ids": {"events": "e", "labels": "other"}}, memory),
        ({"topic_ids": {"events": "other", "labels": "l"}}, None),
        ({"definition": "other"}, memory),
    ]
    for changes, expected in cases:
        found = plan(facts(progress=known, **changes))
        assert found is not None
        assert [record.alert_memory for records in found.progress.values() for record in records] == [expected] * 2
    for storms, is_said in ((StormRules(), False), (StormRules(per_day=9), True)):
        stream = replace(STREAM, storms=storms)
        gone: dict[int, None] = {0: None, 1: None}
        found = plan(facts(stream=stream, progress=gone, published={0: Published(2, 8, 5, 1, 1, 0, "m")}))
        assert found is not None
        assert ("open groups of alerts" in found.lost) == is_said


def test_a_remade_topic_with_fewer_partitions_has_no_way_on_but_more_of_them() -> None:
    one = {s: span for s, span in SPANS.items() if s.partition == 0}
    counts = dict.fromkeys(KINDS, 2) | {"events": 1}
    with pytest.raises(RestoreError, match="add partitions to the events topic"):
        plan(facts(topic_ids={"events": "other"}, counts=counts, spans=one))


def test_what_came_out_of_turn_is_recorded_again_from_the_lake() -> None:
    told = [[EVENT, 0, n, 9, EVENT, 1, 0, 1] for n in range(2_500)]
    gone = {0: None, 1: None}
    found = plan(facts(progress=gone, published={0: Published(2, 8, 5, 1, 1, 0, "m")}, told=told))
    assert found is not None
    assert found.name == "emptied"
    assert [place for record in found.progress[0] for place in record.out_of_turn] == told
    assert (found.progress[0][-1].start, found.progress[0][-1].next_offset) == (2, 9)
    assert (found.progress[0][-1].n_scored, found.progress[0][-1].n_out_of_turn) == (5, 2_500)
