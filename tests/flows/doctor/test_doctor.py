"""`unmask doctor` on real servers: a healthy stream, planted faults, and the commands that it names."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from flows.cli.root import app
from flows.doctor.finding import Level
from flows.doctor.sizing import Load
from flows.local.servers import Servers
from flows.serve.status import StatusFile
from pipelines.kafka import topics
from pipelines.kafka.topics import KEEP_FOR_EVER
from pipelines.live.scorer import Scorer
from pipelines.live.serving import Serving
from pipelines.live.setting import ScorerSetting
from tests.flows.doctor.patient import Patient
from tests.patience import wait_until
from tests.pipelines.live.live_scorer import Linear
from tests.pipelines.live.rig import Alone, running
from tests.silent_server import SilentServer


@pytest.fixture
def patient(kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Patient:
    return Patient(kafka, tmp_path, monkeypatch)


def create(patient: Patient) -> None:
    assert "Created" in patient.run(f"unmask topics create {patient.words} --partitions 2")


def test_a_new_stream_on_live_servers_has_no_error(patient: Patient, servers: Servers) -> None:
    create(patient)
    patient.environment.setenv("MLFLOW_TRACKING_URI", servers.mlflow_uri)
    patient.environment.setenv("PREFECT_API_URL", servers.prefect_api)
    ran = CliRunner().invoke(app, ["doctor", "--stream", str(patient.file), "--json"])
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.output)
    assert (told["stream"], told["errors"]) == (patient.stream.name, 0)
    words = {one["what"]: one["found"] for one in told["findings"]}
    assert words["partitions"] == "2 each"
    assert words["timestamps"] == "set by the broker on arrival (live)"
    assert "version 3." in words["MLflow"]
    assert "version 3." in words["Prefect"]
    assert words["start"] == "nothing keeps a scorer from starting"
    fixes = {one["what"]: one["fix"] for one in told["findings"] if one["fix"]}
    assert fixes["deployments"] == f"unmask deploy {patient.words}"
    assert fixes["champion"].startswith("unmask ingest, pretrain, finetune, promote")


def test_a_place_of_a_deployment_that_no_run_has_is_named_and_freed(patient: Patient, servers: Servers) -> None:
    from flows.deployments import deploy

    create(patient)
    patient.environment.setenv("PREFECT_API_URL", servers.prefect_api)
    with temporary_settings({PREFECT_API_URL: servers.prefect_api}), get_client(sync_client=True) as client:
        ingest = deploy(patient.file, paused=True)[0]
        client.increment_concurrency_slots([f"deployment:{ingest.id}"], slots=1, mode="concurrency")
    problems = patient.problems(but=("MLflow",))
    assert "paused" in problems["deployments"].found
    assert problems["worker"].fix == "prefect worker start --pool unmask"
    taken = problems[ingest.name]
    assert "no run is active" in taken.found
    command = shlex.split(taken.fix.partition(": ")[2])
    environment = {**os.environ, "PREFECT_API_URL": servers.prefect_api}
    subprocess.run([sys.executable, "-m", *command], check=True, env=environment, capture_output=True)
    assert ingest.name not in patient.problems(but=("MLflow",))


def test_settings_of_topics_that_lose_records_are_named_and_mended(patient: Patient) -> None:
    create(patient)
    patient.send(4)
    patient.set("events", message_timestamp_type="CreateTime")
    patient.set("labels", retention_ms="3600000")
    patient.set("progress", retention_ms="3600000")
    patient.set("control", cleanup_policy="compact")
    patient.set("refused", max_message_bytes="5000")
    problems = patient.problems()
    name = patient.stream.topic
    wanted = {
        "events": ("CreateTime", "unmask topics live"),
        "labels": ("shorter than a day", "retention.ms=-1"),
        "progress": ("last records are needed", "retention.ms=-1"),
        "control": ("compact", "cleanup.policy=delete"),
        "refused": ("max.message.bytes=5000", "max.message.bytes=1048576"),
    }
    for kind, (found, fix) in wanted.items():
        assert found in problems[name(kind)].found
        assert fix in problems[name(kind)].fix
        assert problems[name(kind)].level is (Level.WARNING if kind == "refused" else Level.ERROR)
        patient.obey(problems[name(kind)].fix)
    wait_until(lambda: set(patient.problems()) <= {"status"})


def test_missing_topics_and_other_numbers_of_partitions_are_named_and_mended(patient: Patient) -> None:
    create(patient)
    name = patient.stream.topic
    topics.delete_topics(patient.connection, [name("alerts"), name("scores"), name("shadow")])
    topics.create_topics(patient.connection, {name("scores"): 1}, config=KEEP_FOR_EVER)
    problems = patient.problems()
    assert (problems[name("alerts")].level, problems[name("shadow")].level) == (Level.ERROR, Level.WARNING)
    assert problems[name("scores")].found == "1 partitions; must have 2"
    for kind in ("alerts", "scores"):
        patient.obey(problems[name(kind)].fix)
    assert set(patient.problems()) == {"status"}


def test_a_replay_has_its_own_clock_and_is_well(patient: Patient) -> None:
    patient.run(f"unmask topics create {patient.words} --partitions 2 --replay")
    assert set(patient.problems()) == {"status"}


def test_what_does_not_answer_is_named_in_bounded_time_and_no_password_is_shown(
    patient: Patient, silent_server: SilentServer, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    host = silent_server.removeprefix("http://")
    for variable, value in {
        "KAFKA_BOOTSTRAP_SERVERS": host,
        "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "KAFKA_SASL_MECHANISM": "PLAIN",
        "KAFKA_SASL_USERNAME": "ann",
        "KAFKA_SASL_PASSWORD": "hunter2",
        "MLFLOW_TRACKING_URI": f"http://ann:hunter2@{host}",
        "PREFECT_API_URL": f"http://ann:hunter2@{host}/api",
        "UNMASK_SNAPSHOTS": str(tmp_path / "file"),
    }.items():
        patient.environment.setenv(variable, value)
    ran = CliRunner().invoke(app, ["doctor", "--stream", str(patient.file), "--json"])
    assert ran.exit_code == 1, ran.output
    assert "hunter2" not in ran.output
    errors = {one["what"]: one for one in json.loads(ran.output)["findings"] if one["level"] == "error"}
    assert set(errors) == {"MLflow", "Prefect", "Kafka", "snapshots"}
    assert "unmask ui start" in errors["MLflow"]["fix"]
    assert "unmask kafka start" in errors["Kafka"]["fix"]
    assert "UNMASK_SNAPSHOTS" in errors["snapshots"]["fix"]
    assert host in errors["Kafka"]["found"]


def test_the_scorer_its_state_and_what_retention_took_from_its_snapshot(patient: Patient) -> None:
    create(patient)
    stream, settings = patient.stream, patient.settings
    patient.send(40)
    setting = ScorerSetting(stream, patient.connection, settings.snapshots(stream))
    scorer = Scorer(setting, Serving(Linear(stream)), start="earliest", member=Alone(2))
    path = settings.scorer_status(stream)
    with running(scorer) as run:
        wait_until(lambda: sum(p.n_scored + p.n_duplicates for p in run.scorer.progress.values()) == 40)
        StatusFile(path).write(run.scorer)
    well = {one.what: one for one in patient.findings(Load(entities=1_000_000))}
    assert well["scorer"].found.startswith("healthy, 40 scored")
    assert well["waiting"].found == "0 events are not published yet"
    assert well["snapshots"].level is Level.OK
    assert "; measured " in well["state"].found
    assert "(as measured)" in well["memory"].found

    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"health": "red", "at": time.time(), "models_refused": {"abc": "damaged"}}))
    problems = [one for one in patient.findings() if one.what == "scorer"]
    assert [one.level for one in problems] == [Level.ERROR, Level.WARNING]
    assert "refuses model abc: damaged" in problems[1].found
    path.write_text(json.dumps(told | {"at": time.time() - 3600}))
    assert "does not run" in patient.problems()["scorer"].found

    patient.send(40)  # duplicates, not folded by the snapshot
    patient.delete_events()
    gone = patient.problems()
    assert "records that the newest one lacks" in gone["snapshots"].found
    assert gone["snapshots"].fix == f"unmask recover {patient.words}"
    assert gone["start"].fix == f"unmask recover {patient.words}"


def test_without_a_stream_it_ends_with_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "doctor", "--stream", str(tmp_path / "none.toml")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, "no such file" in ran.stderr) == (2, True)
