"""The command line: help with examples, and for each mistake of the user one message that says how to fix it."""

import json
import re
import subprocess
import sys
import time
import uuid
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.root import app
from flows.streams.shipped import SHIPPED, load
from pipelines.contracts.stream import TOPICS
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.live.scorer import Scorer
from pipelines.live.serving import Serving
from pipelines.live.setting import ScorerSetting
from pipelines.live.topic_checks import checked_partitions
from tests.patience import HANG_S
from tests.pipelines.live.kill_stream import TEXTS
from tests.pipelines.live.live_scorer import Linear
from tests.pipelines.live.rig import Alone, Rig, running

FLOWS = ["ingest", "pretrain", "finetune", "promote", "backtest"]
COMMANDS = ["demo", "simulate", *FLOWS, "score", "alerts", "label", "reconcile", "recover", "doctor", "explain"]
COMMANDS += ["schemas", "labels", "suppress", "unsuppress", "suppressions"]
COMMANDS += ["use-model", "rollback", "set-threshold", "set-budget", "shadow"]
COMMANDS += ["topics create", "topics live", "refused list", "refused replay"]
COMMANDS += [f"{server} {action}" for server in ("kafka", "ui") for action in ("start", "stop", "status")]


def unmask(*words: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the real command in a process of its own."""
    command = [sys.executable, "-m", "flows.cli", *words]
    env = {"UNMASK_HOME": str(home), "PATH": "/usr/bin:/bin", "COLUMNS": "200", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, env=env, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert f"unmask {command}" in result.output


def test_shipped_stream_files_load() -> None:
    assert {"payments", "handbook"} <= set(SHIPPED)
    for path in SHIPPED.values():
        assert load(path).features


def test_a_mistake_in_a_stream_file_is_shown_with_line_value_and_fix(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('[stream]\nname = "x"\nevent_id = "id"\nevent_time = "at"\nentities = ["who"]\n[fields]\n'
                     'id = { type = "text" }\nat = { type = "time" }\nwho = { type = "txt" }\n')  # fmt: skip
    ran = unmask("reconcile", "--stream", str(wrong), home=tmp_path, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9")
    assert ran.returncode == 2
    assert "line 9" in ran.stderr
    assert "'txt'" in ran.stderr
    assert "text" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["reconcile"], "--stream"),
        (["reconcile", "--stream", "payments"], "unmask kafka start"),
        (["ingest", "--stream", "payments"], "unmask ui start"),
        (["score", "--stream", "payments", "--from", "yesterday"], "earliest or latest"),
        (["pretrain", "--stream", "payments", "--as-of", "soon"], "2018-07-01"),
        (["set-threshold", "--stream", "payments"], "--own"),
    ],
)
def test_what_is_missing_is_named_with_how_to_give_it(words: list[str], fix: str, tmp_path: Path) -> None:
    ran = unmask(*words, home=tmp_path)
    assert ran.returncode == 2, ran.stderr
    assert fix in ran.stderr
    assert "Traceback" not in ran.stderr


def test_status_of_servers_that_do_not_run_is_exit_code_1(tmp_path: Path) -> None:
    assert unmask("kafka", "status", home=tmp_path).returncode == 1
    assert unmask("ui", "status", home=tmp_path).returncode == 1


def test_a_simulated_stream_can_be_written_as_parquet(tmp_path: Path) -> None:
    words = ("simulate", "--to", str(tmp_path / "data"), "--days", "3", "--customers", "50", "--terminals", "80")
    ran = unmask(*words, home=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "data" / "events.parquet").stat().st_size > 1000


def test_the_version_is_shown(tmp_path: Path) -> None:
    ran = unmask("--version", home=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"unmask {version('unmask')}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["ingest"],
        ["pretrain"],
        ["finetune"],
        ["promote"],
        ["backtest", "--from", "2026-01-01"],
        ["score", "--from", "latest"],
        ["alerts"],
        ["label", "e1", "1"],
        ["reconcile"],
        ["recover"],
        ["explain", "e1"],
        ["refused", "list"],
        ["refused", "replay"],
        ["topics", "create"],
        ["demo", "--data", "nowhere"],
    ],
)
def test_a_mistake_in_the_stream_file_comes_before_any_server(words: list[str], tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[stream]\nname = 5\n")
    ran = unmask(*words, "--stream", str(wrong), home=tmp_path)
    assert ran.returncode == 2, ran.stderr
    assert f"{wrong}" in ran.stderr
    assert "no Kafka" not in ran.stderr
    assert "no Prefect" not in ran.stderr


def test_a_shipped_stream_is_known_by_its_name_everywhere(tmp_path: Path) -> None:
    ran = unmask("reconcile", home=tmp_path, UNMASK_STREAM="handbok")
    assert ran.returncode == 2
    assert (
        "handbok: no such file, nor a shipped stream (handbook, payments, sparkov); did you mean 'handbook'?"
        in ran.stderr
    )
    ran = unmask("reconcile", home=tmp_path, UNMASK_STREAM="handbook")
    assert "unmask kafka start" in ran.stderr


def test_topics_are_created_once_and_checked(kafka: str, tmp_path: Path) -> None:
    def create(*words: str) -> subprocess.CompletedProcess[str]:
        given = ("topics", "create", "--stream", str(stream_file), *words)
        return unmask(*given, home=tmp_path, KAFKA_BOOTSTRAP_SERVERS=kafka)

    name = f"created-{uuid.uuid4().hex[:8]}"
    stream_file = tmp_path / "stream.toml"
    stream_file.write_text(SHIPPED["payments"].read_text().replace("[stream]\n", f'[stream]\ntopics = "{name}"\n', 1))
    first = create("--partitions", "3")
    assert first.returncode == 0, first.stderr
    stream, connection = load(stream_file), Connection(kafka)
    assert all(stream.topic(kind) in first.stdout for kind in TOPICS)
    assert "3 partitions each" in first.stdout
    assert checked_partitions(connection, stream) == 3
    assert topics.stamps_appends(connection, stream.topic("events"), stream.topic("labels"))

    again = create("--partitions", "8")
    assert again.returncode == 0, again.stderr
    assert f"All topics of {name} exist.\n3 partitions each" in again.stdout
    replay = create("--replay")
    assert replay.returncode == 2
    assert "message.timestamp.type=LogAppendTime; a replay needs CreateTime" in replay.stderr
    assert "omit --replay" in replay.stderr


class Quiet(Linear):
    """A model that alerts on nothing."""

    threshold = 1.0


@pytest.mark.timeout(600)
def test_without_alerts_the_command_says_whether_anything_was_scored(kafka: str, tmp_path: Path) -> None:
    rig = Rig(kafka, tmp_path)
    stream_file = tmp_path / "stream.toml"
    stream_file.write_text(TEXTS["merged"].format(name=rig.stream.name))

    def alerts() -> str:
        ran = unmask("alerts", "--stream", str(stream_file), home=tmp_path / "home", KAFKA_BOOTSTRAP_SERVERS=kafka)
        assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
        return ran.stderr

    assert f"no event of stream {rig.stream.name} has been scored" in alerts()
    assert f"unmask score --stream {stream_file}" in alerts()
    rig.send(20)
    setting = ScorerSetting(rig.stream, rig.connection, tmp_path / "snapshots")
    with running(Scorer(setting, Serving(Quiet(rig.stream)), start="earliest", member=Alone(rig.n_partitions))):
        rig.wait_until_out()
    assert f"20 events of stream {rig.stream.name} were scored, and none was above the threshold" in alerts()


@pytest.mark.timeout(600)
def test_a_burst_is_shown_as_one_alert_with_its_newest_update_on_one_line(kafka: str, tmp_path: Path) -> None:
    rig = Rig(kafka, tmp_path)
    stream_file = tmp_path / "stream.toml"
    limits = '[alerts]\ngroup = { entity = "card", within = "1h" }\n'
    stream_file.write_text(TEXTS["merged"].format(name=rig.stream.name) + limits)
    event = {"at": int(time.time() * 1000), "card": "c0", "amount": 1e5}
    rig.send_many([json.dumps({"id": f"e{n}"} | event).encode() for n in range(5)], b"c0")
    setting = ScorerSetting(load(stream_file), rig.connection, tmp_path / "snapshots")
    serving = Serving(Linear(rig.stream))
    with running(Scorer(setting, serving, start="earliest", member=Alone(rig.n_partitions))):
        rig.wait_until_out()

    def alerts(*options: str) -> str:
        ran = unmask(
            "alerts", "--stream", str(stream_file), *options, home=tmp_path / "home", KAFKA_BOOTSTRAP_SERVERS=kafka
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        return ran.stdout

    shown = alerts().splitlines()
    assert sum("threshold" in line for line in shown) == 1
    assert re.search("alert [0-9a-f]{12}: card c0   4 alerts, highest score 1.000   last event e3", shown[-1])
    full, update = map(json.loads, alerts("--json").splitlines())
    assert (full["event_id"], full["count"], full["group_id"]) == ("e0", 1, full["alert_id"])
    assert (update["kind"], update["count"], update["group_id"]) == ("update", 4, full["group_id"])
