"""Refused events are sent again once, whatever happens in between, and the audit still balances."""

import json
import subprocess
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from kafka import KafkaConsumer, TopicPartition

from pipelines.contracts.stream import Stream
from pipelines.contracts.stream_file import parse
from pipelines.errors import UnmaskError
from pipelines.kafka import topics
from pipelines.kafka.letters import Choice, Place, letters
from pipelines.kafka.topics import KEEP_FOR_EVER
from pipelines.lake.audit import reconcile, skew_audit
from pipelines.lake.ingest import ingest
from pipelines.lake.tables import Lake
from pipelines.live.recover import Recovery
from pipelines.live.scorer import Scorer
from pipelines.live.serving import Serving
from pipelines.live.setting import ScorerSetting
from pipelines.operate import ledger
from pipelines.operate.ledger import Ledger, ResendingError
from pipelines.operate.resend import HEADER, resend
from pipelines.play.producer import create_stream_topics
from tests.flows.test_cli import unmask
from tests.pipelines.live.kill_stream import TEXTS
from tests.pipelines.live.live_scorer import Linear
from tests.pipelines.live.rig import Alone, Rig, running
from tests.pipelines.payments import payments_stream


class Crash(Exception):
    pass


class Refusing(Rig):
    """A stream with good events, and some that were refused by a stream file that was too strict."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        super().__init__(bootstrap, folder)
        topics.create_topics(self.connection, {self.stream.topic("resent"): 1}, config=KEEP_FOR_EVER)
        mended = TEXTS["merged"].replace("max = 100000", "max = 1000000").replace("bytes = 2000", "bytes = 20000")
        self.mended: Stream = parse(mended.format(name=self.stream.name))
        self.send(20)
        self.expensive = [f"dear{n}" for n in range(4)]
        self.large = "large0"
        for event_id in self.expensive:
            self.send_raw(self.event(event_id, amount=2e5), b"c1")
        self.send_raw(self.event(self.large, remark="x" * 6000), b"c1")
        self.send_raw(b"{", b"c1")
        self.send_raw(self.event("dear0", card="c2"), b"c1")
        self.send_raw(self.event("twice"), b"c1")
        self.send_raw(self.event("twice"), b"c1")
        with running(self.scorer()):
            self.wait_until_out()

    @staticmethod
    def event(event_id: str, **fields: object) -> bytes:
        return json.dumps({"id": event_id, "at": int(time.time() * 1000), "card": "c1", "amount": 5} | fields).encode()

    @property
    def lake(self) -> Lake:
        return Lake(self.folder / "lake", self.mended)

    def score_with_the_mended_file(self) -> None:
        """A changed stream file is another definition of the features: the state is built anew."""
        recovery = Recovery(self.connection, self.mended, snapshots=self.folder / "snapshots", lake=self.lake)
        plan = recovery.plan()
        assert plan is not None
        assert plan.name == "redefined"
        recovery.carry_out(plan)
        setting = ScorerSetting(self.mended, self.connection, self.folder / "snapshots")
        self.send(3)
        self.n_sent = sum(end for _, end in topics.bounds(self.connection, [self.stream.topic("events")]).values())
        with running(Scorer(setting, Serving(Linear(self.mended)), start=None, member=Alone(self.n_partitions))):
            self.wait_until_out()

    def sent_again(self) -> list[str]:
        """The headers that name the old place, of the events that were sent again."""
        spans = topics.bounds(self.connection, [self.stream.topic("events")])
        consumer = KafkaConsumer(bootstrap_servers=self.connection.bootstrap, auto_offset_reset="earliest")
        partitions = [TopicPartition(*position) for position in spans]
        consumer.assign(partitions)
        found, ends = [], {TopicPartition(*position): end for position, (_, end) in spans.items()}
        while any(consumer.position(p) < ends[p] for p in partitions):
            for records in consumer.poll(timeout_ms=200).values():
                found += [value.decode() for r in records for name, value in r.headers if name == HEADER]
        consumer.close()
        return found


@pytest.fixture
def refusing(kafka: str, tmp_path: Path) -> Refusing:
    return Refusing(kafka, tmp_path)


def test_letters_are_chosen_by_rule_time_and_partition(refusing: Refusing) -> None:
    def found(choice: Choice) -> Counter[str]:
        batches = letters(refusing.connection, refusing.stream, choice)
        return Counter(letter.refused.rule for batch in batches for letter in batch)

    rules = {"out_of_range": 4, "too_big": 1, "bad_json": 1, "wrong_key": 1, "duplicate": 1}
    assert found(Choice()) == rules
    assert found(Choice(rules=frozenset({"out_of_range", "bad_json"}))) == {"out_of_range": 4, "bad_json": 1}
    partition = topics.partition_of(b"c1", 2)
    assert found(Choice(partitions=frozenset({partition}))) == rules
    assert not found(Choice(partitions=frozenset({1 - partition})))
    now_ms = round(time.time() * 1000) + 60_000
    assert not found(Choice(from_ms=now_ms))
    assert found(Choice(from_ms=0, until_ms=now_ms)) == rules


def test_what_is_not_a_dead_letter_is_passed_over(refusing: Refusing, caplog: pytest.LogCaptureFixture) -> None:
    refusing.send_raw(b"no JSON", None, kind="refused", partition=0)
    assert sum(len(batch) for batch in letters(refusing.connection, refusing.stream)) == 8
    assert "is not a dead letter of Unmask; skipped" in caplog.text


def test_refused_events_are_sent_again_once_and_the_audit_balances(refusing: Refusing) -> None:
    ingest(refusing.connection, refusing.stream, Lake(refusing.folder / "lake", refusing.stream))
    strict = resend(refusing.connection, refusing.stream, send=True)
    assert (strict.n_fit, strict.n_sent, strict.is_whole) == (0, 0, False)
    assert strict.rules["out_of_range"].again == {"out_of_range": 4}

    dry = resend(refusing.connection, refusing.mended, send=False)
    assert (dry.n_fit, dry.n_sent) == (5, 0)
    assert not refusing.sent_again()

    found = resend(refusing.connection, refusing.mended, send=True)
    assert found.n_sent == found.n_fit == 5
    assert found.rules["out_of_range"].n_sent == 4
    assert found.rules["too_big"].n_sent == 1  # its letter has only the beginning
    assert found.rules["wrong_key"].again == {"wrong_key": 1}
    assert found.rules["bad_json"].again == {"bad_json": 1}
    assert found.left_out == {"duplicate": 1}
    chosen = (x for batch in letters(refusing.connection, refusing.stream) for x in batch)
    due = [x.refused.source for x in chosen if x.refused.rule in ("out_of_range", "too_big")]
    assert sorted(refusing.sent_again()) == sorted(f"{s.topic}/{s.partition}/{s.offset}" for s in due)

    again = resend(refusing.connection, refusing.mended, Choice(rules=frozenset({"out_of_range"})), send=True)
    assert (again.n_sent, again.rules["out_of_range"].n_before, again.is_whole) == (0, 4, True)
    assert len(refusing.sent_again()) == 5

    refusing.score_with_the_mended_file()
    scored = Counter(score["event_id"] for score in refusing.scores())
    assert all(scored[event_id] == 1 for event_id in [*refusing.expensive, refusing.large])
    audit = reconcile(refusing.connection, refusing.stream)
    assert audit.is_complete
    assert (audit.n_events, audit.n_scored, audit.n_refused, audit.n_duplicates) == (37, 29, 7, 1)

    lakes = {"kept": refusing.lake, "anew": Lake(refusing.folder / "anew", refusing.mended)}
    for name, lake in lakes.items():
        ingest(refusing.connection, refusing.mended, lake)
        skew = skew_audit(
            lake,
            refusing.mended,
            refusing.folder / name / "features",
            models=lambda digest: Linear(refusing.mended),
            since=audit.since,
        )
        assert skew.holds, (name, skew.examples)
        assert skew.checked == audit.n_scored_since == 5 + 3


@pytest.mark.parametrize("point", ["after_claim", "after_send"])
def test_a_process_that_dies_between_claim_and_settlement_sends_none_twice_and_loses_none(
    refusing: Refusing, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(passed: str) -> None:
        if passed == point:
            raise Crash

    with pytest.raises(Crash):
        resend(refusing.connection, refusing.mended, send=True, fault=fault)
    with pytest.raises(ResendingError, match=r"repeat this in [0-9]+ s"):
        resend(refusing.connection, refusing.mended, send=True)
    monkeypatch.setattr(ledger, "SETTLED_AFTER_S", 0.0)
    found = resend(refusing.connection, refusing.mended, send=True)
    assert found.n_sent == (5 if point == "after_claim" else 0)
    headers = refusing.sent_again()
    assert len(headers) == len(set(headers)) == 5


def test_the_first_claim_of_an_event_wins(refusing: Refusing) -> None:
    one, other = (Ledger(refusing.connection, refusing.stream) for _ in range(2))
    places = [Place(0, n, f"{n:016x}") for n in range(4)]
    first, won = one.claim(places[:3])
    _, won_later = other.claim(places)
    assert (won, won_later) == (set(places[:3]), {places[3]})
    one.settle(first, unsent=places[:1])
    assert places[0] not in Ledger(refusing.connection, refusing.stream)
    assert other.claim(places)[1] == {places[0]}


def test_an_original_that_was_replaced_by_another_event_is_not_sent(refusing: Refusing) -> None:
    events = refusing.stream.topic("events")
    topics.delete_topics(refusing.connection, [events])
    topics.create_topics(refusing.connection, {events: 2}, config={"message.timestamp.type": "LogAppendTime"})
    refusing.send(60)
    found = resend(refusing.connection, refusing.mended, send=True)
    assert (found.rules["too_big"].n_gone, found.rules["too_big"].n_sent) == (1, 0)
    assert found.rules["out_of_range"].n_sent == 4  # their letters have the whole event


def test_a_replay_with_its_own_clock_is_left_alone(refusing: Refusing) -> None:
    stream = payments_stream(f"{refusing.stream.name}-past")
    create_stream_topics(refusing.connection, stream, n_partitions=1, append_time=False)
    with pytest.raises(UnmaskError, match="has the clock of its producer"):
        resend(refusing.connection, stream, send=False)


def test_letters_of_earlier_formats_are_read(refusing: Refusing) -> None:
    letter = msgspec.structs.asdict(refusing.refused()[0])
    letter["mend"] = letter.pop("fix")
    refusing.send_raw(msgspec.json.encode(letter), None, kind="refused", partition=0)
    assert sum(len(batch) for batch in letters(refusing.connection, refusing.stream)) == 9


def test_the_command_line_lists_and_sends_again(refusing: Refusing, tmp_path: Path) -> None:
    def refused(*words: str) -> subprocess.CompletedProcess[str]:
        given = ("refused", *words, "--stream", str(stream_file))
        return unmask(*given, home=tmp_path / "home", KAFKA_BOOTSTRAP_SERVERS=refusing.connection.bootstrap)

    stream_file = tmp_path / "stream.toml"
    strict = TEXTS["merged"].format(name=refusing.stream.name)
    stream_file.write_text(strict)
    listed = refused("list")
    assert listed.returncode == 0, listed.stderr
    assert "8 refused (4 out_of_range, 1 " in listed.stdout
    assert listed.stdout.count("amount is 200000.0; it must be between 0 and 100000") == 4
    assert "xxx" not in listed.stdout  # a field that the dead letter does not name

    lines = [json.loads(line) for line in refused("list", "--json", "--rule", "too_big").stdout.splitlines()]
    assert [(line["rule"], line["sent_again"], line["raw_bytes"] > 6000) for line in lines] == [
        ("too_big", False, True)
    ]
    wrong = refused("list", "--rule", "too_dear")
    assert (wrong.returncode, "--rule is 'too_dear'; it must be one of bad_json" in wrong.stderr) == (2, True)

    dry = refused("replay", "--rule", "out_of_range")
    assert dry.returncode == 1  # the file is not mended
    assert "out_of_range: 4 refused: 0 sent before, 0 fit the stream file, 4 break out_of_range" in dry.stdout
    stream_file.write_text(strict.replace("max = 100000", "max = 1000000"))
    dry = refused("replay", "--rule", "out_of_range")
    assert dry.returncode == 0, dry.stderr
    assert "Nothing was sent. To send 4 events again" in dry.stdout
    sent = refused("replay", "--rule", "out_of_range", "--yes")
    assert sent.returncode == 0, sent.stderr
    assert f"4 events were sent to {refusing.stream.topic('events')}" in sent.stdout
    again = refused("replay", "--yes", "--json")
    assert again.returncode == 1
    assert json.loads(again.stdout)["rules"]["out_of_range"]["n_before"] == 4
    few = refused("list", "-n", "2").stdout
    assert "8 refused (4 out_of_range, 1 " in few
    assert "4 were sent again" in few
    assert len(few.splitlines()) == 4
