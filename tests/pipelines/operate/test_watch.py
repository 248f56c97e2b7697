"""The continuous audit on a real broker: it finds what a faulty scorer leaves out or repeats, and continues."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipelines.contracts.messages import Progress, encode
from pipelines.contracts.stream_file import parse
from pipelines.errors import BrokerError, RestoreError
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Adapter, Message, Position, TransactionalWriter
from pipelines.kafka.progress import read_progress
from pipelines.lake.audit import reconcile
from pipelines.live.scorer import Scorer
from pipelines.live.serving import Serving
from pipelines.live.setting import ScorerSetting
from pipelines.operate.books import Problem
from pipelines.operate.watch import Watch, Watched
from tests.patience import wait_until
from tests.pipelines.kafka.link import Linked
from tests.pipelines.live.kill_stream import TEXTS
from tests.pipelines.live.live_scorer import Linear
from tests.pipelines.live.rig import Alone, Rig, running

Edit = Callable[[bytes], bytes | None]


class FaultyWriter(TransactionalWriter):
    """Changes the scores of every transaction: `edit` gets a line and returns it, another one, or None."""

    def __init__(self, writer: TransactionalWriter, edit: Edit) -> None:
        self._writer, self._edit = writer, edit

    def commit(self, messages: Iterable[Message], *, before_commit: Callable[[], None] | None = None) -> None:
        self._writer.commit(list(filter(None, map(self._edited, messages))), before_commit=before_commit)

    def abort(self, messages: Iterable[Message]) -> None:
        self._writer.abort(messages)

    def _edited(self, message: Message) -> Message | None:
        if not message.topic.endswith(".scores"):
            return message
        lines = [line for line in map(self._edit, (message.value or b"").splitlines()) if line is not None]
        return message._replace(value=b"\n".join(lines)) if lines else None

    def close(self) -> None:
        self._writer.close()


class FaultyConnection(Connection):
    """The connection of a scorer with a defect in what it publishes."""

    edit: Edit

    def transactional_writer(
        self, transactional_id: str, positions: Collection[Position] = (), **named: Any
    ) -> TransactionalWriter:
        return FaultyWriter(super().transactional_writer(transactional_id, positions, **named), self.edit)


class Audited(Rig):
    """A stream that a scorer scores, with a defect or without, while it is audited."""

    def __init__(self, bootstrap: str, folder: Path, *, packed: bool = False) -> None:
        super().__init__(bootstrap, folder)
        text = TEXTS["merged"].format(name=self.stream.name)
        self.file = folder / "stream.toml"
        self.file.write_text(text.replace("[fields]", "packed_scores = true\n\n[fields]", 1) if packed else text)
        self.stream = parse(self.file.read_text())
        self.found: list[Problem] = []
        self.seen: list[Watched] = []
        self.audited_by: Connection | None = None

    @contextmanager
    def scoring(self, edit: Edit | None = None) -> Iterator[None]:
        connection = self.connection
        if edit is not None:
            connection = FaultyConnection(self.connection.bootstrap)
            object.__setattr__(connection, "edit", edit)
        setting = ScorerSetting(self.stream, connection, self.folder / "snapshots")
        serving = Serving(Linear(self.stream))
        with running(Scorer(setting, serving, start="earliest", member=Alone(self.n_partitions))):
            yield

    def score(self, n: int, edit: Edit | None = None) -> None:
        with self.scoring(edit):
            self.send(n)
            self.wait_until_out()

    @property
    def watch(self) -> Watch:
        return Watch(self.audited_by or self.connection, self.stream, kept=self.folder / "audit.json")

    def audit(self, until: Callable[[Watched], bool]) -> Watched:
        """Audit until a report; what is found is in `found`."""
        self.seen = []
        watch, stop = self.watch, threading.Event()

        def run() -> None:
            watch.run(stop.is_set, every_s=0.2, on_report=self.seen.append, on_problem=self.found.append)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            wait_until(
                lambda: bool(self.seen) and until(self.seen[-1]),
                seen=lambda: self.seen[-1].words() if self.seen else "",
                alive=thread.is_alive,
            )
        finally:
            stop.set()
            thread.join()
        return self.seen[-1]


def all_is_audited(n: int) -> Callable[[Watched], bool]:
    return lambda report: report.n_events + report.n_unaudited >= n and report.n_open == 0


def event_id(line: bytes) -> str:
    return str(json.loads(line)["event_id"])


@pytest.mark.parametrize("packed", [False, True], ids=["one by one", "packed"])
def test_a_scorer_that_leaves_out_and_repeats_scores_is_found(kafka: str, tmp_path: Path, packed: bool) -> None:
    def edit(line: bytes) -> bytes | None:
        if event_id(line) == "e7":
            return None
        return line + b"\n" + line if event_id(line) == "e11" else line

    audited = Audited(kafka, tmp_path, packed=packed)
    if packed:
        audited.score(120, edit)
    else:  # one record per event: the repetition comes in a record of its own
        audited.score(120, lambda line: None if event_id(line) == "e7" else line)
        [again] = [r for r in audited.published("scores") if event_id(r.value or b"") == "e11"]
        audited.send_raw(again.value or b"", again.key, kind="scores", partition=again.partition)
    assert bool([r for r in audited.published("scores") if (r.value or b"").count(b"\n") > 1]) == packed
    foreign = {"event_id": "e", "source": {"topic": audited.stream.topic("events"), "partition": 1, "offset": 10_000}}
    audited.send_raw(json.dumps(foreign).encode(), None, kind="scores", partition=1)

    report = audited.audit(lambda report: all_is_audited(120)(report) and sum(report.n_problems.values()) >= 3)
    once = reconcile(audited.connection, audited.stream)
    assert (report.n_events, report.n_scored, report.holds) == (120, 119, False)
    found = {kind: n for kind, n in report.n_problems.items() if n}
    assert found == {"missing": 1, "doubled": 1, "stray": 1}
    assert {(p.kind, p.partition, p.offset) for p in audited.found} == {
        ("missing", *once.missing[0]),
        ("doubled", *once.doubled[0]),
        ("stray", 1, 10_000),
    }
    assert (once.n_events, once.n_scored) == (120, 119)

    audited.found.clear()
    audited.score(80)
    report = audited.audit(all_is_audited(200))
    assert (report.n_scored, audited.found) == (199, [])  # what was found before is counted, and not found again
    assert {kind: n for kind, n in report.n_problems.items() if n} == found


def test_a_good_scorer_gives_no_alarm_and_the_audit_follows_it(kafka: str, tmp_path: Path) -> None:
    audited = Audited(kafka, tmp_path)
    with audited.scoring():
        audited.send(10)
        audited.wait_until_out()
        for _ in range(4):  # each time it is stopped and continued
            for _ in range(20):
                audited.send(10)
            audited.send_raw(b"{", b"c1")
            audited.audit(lambda report: report.n_events > 0)
        twice = json.dumps({"id": "twice", "at": 1, "card": "c1", "amount": 5.0}).encode()
        audited.send_many([twice, twice], b"c1")
        report = audited.audit(all_is_audited(audited.n_sent))
    assert audited.found == []
    assert report.holds
    assert (report.n_events, report.n_refused, report.n_duplicates) == (audited.n_sent, 4, 1)
    assert report.n_scored == audited.n_sent - 5
    assert report.oldest is None


def test_events_that_wait_are_counted_and_the_oldest_is_named(kafka: str, tmp_path: Path) -> None:
    audited = Audited(kafka, tmp_path)
    audited.score(10)
    audited.audit(all_is_audited(10))
    audited.send(5)
    report = audited.audit(lambda report: report.oldest is not None and report.oldest[2] > 0.5 and report.n_open == 5)
    assert report.oldest is not None
    assert report.n_events == 10
    assert "5 are not scored yet, the oldest (" in report.words()


def test_what_waits_is_bounded_while_events_and_outcomes_are_far_apart(
    kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: Adapter
) -> None:
    monkeypatch.setattr("pipelines.operate.watch.MOST_OPEN", 40)
    monkeypatch.setattr("pipelines.operate.watch._POLL_RECORDS", 20)
    most = [0]
    step = Watch._step

    def measured(self: Watch, reader: object) -> Iterator[Problem]:
        yield from step(self, reader)  # type: ignore[arg-type]
        most[0] = max(most[0], *(max(len(b.open), len(b.early)) for b in self.books.values()))

    monkeypatch.setattr(Watch, "_step", measured)
    audited = Audited(kafka, tmp_path)
    audited.audited_by = Connection(kafka, adapter=adapter)
    audited.score(10)
    audited.send(600)
    report = audited.audit(lambda report: report.n_open == 600)
    assert report.n_behind > 500
    with audited.scoring():
        report = audited.audit(all_is_audited(610))
    assert audited.found == []
    assert report.holds
    assert most[0] <= 60


def test_more_missing_events_than_are_kept_do_not_stop_it(
    kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.operate.watch.MOST_OPEN", 40)
    monkeypatch.setattr("pipelines.operate.watch._POLL_RECORDS", 20)
    monkeypatch.setattr("pipelines.operate.watch.STUCK_S", 2.0)
    audited = Audited(kafka, tmp_path)
    audited.score(600, lambda line: None if 100 <= int(event_id(line)[1:]) < 400 else line)
    report = audited.audit(all_is_audited(600))
    assert (report.n_events, report.n_scored, report.n_problems["missing"]) == (600, 300, 300)
    assert {problem.kind for problem in audited.found} == {"missing"}


def test_books_begin_anew_after_a_recovery_and_with_other_topics(kafka: str, tmp_path: Path) -> None:
    audited = Audited(kafka, tmp_path)
    audited.score(20, lambda line: None if event_id(line) == "e7" else line)
    assert audited.audit(all_is_audited(20)).n_problems["missing"] == 1
    for partition in range(audited.n_partitions):
        told = read_progress(audited.connection, audited.stream, partition)
        assert isinstance(told, Progress)
        n_outcomes = sum(r.partition == partition for r in audited.published("scores"))
        anew = msgspec.structs.replace(told, start=told.next_offset, outcomes_from={"scores": n_outcomes + 100})
        audited.send_raw(encode(anew), None, kind="progress", partition=partition)
    report = audited.audit(lambda report: report.n_events == 0)
    assert report.holds


def test_foreign_progress_and_a_damaged_file_are_said(kafka: str, tmp_path: Path) -> None:
    audited = Audited(kafka, tmp_path)
    with pytest.raises(BrokerError, match="nothing has been scored yet"):
        _ = audited.watch
    audited.score(4)
    (tmp_path / "audit.json").write_text('{"books"')
    with pytest.raises(RestoreError, match=r"audit\.json is not a file of this audit"):
        _ = audited.watch


def test_while_kafka_cannot_be_reached_it_waits_and_then_goes_on(linked: Linked, tmp_path: Path) -> None:
    audited = Audited(linked.broker.bootstrap, tmp_path)
    audited.score(20)
    audited.audited_by = Connection(linked.bootstrap)

    troubles: list[str] = []

    def is_mended_and_whole(report: Watched) -> bool:
        if report.n_events == 20 and not linked.link.is_cut and not troubles:
            linked.link.cut()
            audited.score(20)
        if report.trouble and linked.link.is_cut:
            troubles.append(report.trouble)
            linked.link.mend()
        return report.n_events == 40 and not report.trouble

    assert audited.audit(is_mended_and_whole).holds
    assert audited.found == []
    assert troubles


def test_the_command_reports_until_it_is_ended(kafka: str, tmp_path: Path) -> None:
    audited = Audited(kafka, tmp_path)
    command = [sys.executable, "-m", "flows.cli", "reconcile", "--follow", "--every", "0.3", "--json"]
    env = {"UNMASK_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "KAFKA_BOOTSTRAP_SERVERS": kafka}

    def followed(until: Callable[[dict[str, object]], bool]) -> tuple[int, list[dict[str, object]]]:
        lines, is_told = [], False
        with subprocess.Popen([*command, "--stream", str(audited.file)], stdout=subprocess.PIPE, env=env) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(json.loads(line))
                if until(lines[-1]) and not is_told:
                    process.send_signal(signal.SIGTERM)  # once: a second one would kill a process that is ending
                    is_told = True
        return process.returncode, lines

    audited.score(50)
    code, lines = followed(lambda line: line["n_events"] == 50)
    assert (code, lines[-1]["holds"], lines[-1]["n_scored"]) == (0, True, 50)
    audited.score(10, lambda line: None if event_id(line) == "e55" else line)
    code, lines = followed(lambda line: line.get("n_events") == 60)
    assert (code, lines[-1]["holds"], lines[-1]["n_scored"]) == (1, False, 59)
    [problem] = [line for line in lines if "problem" in line]
    assert (problem["problem"], "offset" in problem) == ("missing", True)
