"""What goes to Kafka's client, and what a child process gets of our environment."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer

from flows.extras import MissingExtraError
from flows.local import processes
from flows.settings import Settings, SettingsError
from flows.streams.shipped import load
from pipelines.features.bucket import Place
from pipelines.kafka.kafka_python.client import KafkaPython

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("by_file", [True, False])
def test_a_login_reaches_the_client_under_names_that_it_knows(
    by_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, password = tmp_path / "ca.pem", tmp_path / "password"
    certificate.write_text("a certificate")
    password.write_text("hunter2\n")
    given = {
        "UNMASK_HOME": str(tmp_path / "home"),
        "KAFKA_BOOTSTRAP_SERVERS": "one:9092,two:9092",
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_SASL_MECHANISM": "SCRAM-SHA-256",
        "KAFKA_SASL_USERNAME": "scorer",
        "KAFKA_SSL_CAFILE": str(certificate),
        **({"KAFKA_SASL_PASSWORD_FILE": str(password)} if by_file else {"KAFKA_SASL_PASSWORD": "hunter2"}),
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    connection = Settings().connection()
    assert connection.bootstrap == "one:9092,two:9092"
    assert connection.options == {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-256",
        "sasl_plain_username": "scorer",
        "sasl_plain_password": "hunter2",
        "ssl_cafile": str(certificate),
    }
    for client in (KafkaConsumer, KafkaProducer, KafkaAdminClient):
        assert connection.options.keys() <= client.DEFAULT_CONFIG.keys()
    assert "hunter2" not in repr(connection) + repr(Settings())


def test_snapshots_lie_at_home_in_a_folder_or_in_an_object_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNMASK_HOME", str(tmp_path))
    at_home = tmp_path / "snapshots" / "payments"
    stream = load("payments")
    assert Settings().snapshots(stream) == Place(at_home)
    monkeypatch.setenv("UNMASK_SNAPSHOTS", "/mnt/shared")
    assert Settings().snapshots(stream) == Place(Path("/mnt/shared/payments"))
    monkeypatch.setenv("UNMASK_SNAPSHOTS", "s3://bank/unmask/")
    assert Settings().snapshots(stream) == Place(at_home, "s3://bank/unmask/payments")
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingExtraError, match=r"obstore is not installed; run `pip install 'unmask\[bucket\]'`"):
        Settings().snapshots(stream)
    monkeypatch.setenv("UNMASK_SNAPSHOTS", "ftp://bank/unmask")
    with pytest.raises(SettingsError, match="UNMASK_SNAPSHOTS is 'ftp://bank/unmask'; it must be a folder, or a URL"):
        Settings()


def test_a_client_that_is_chosen_but_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "one:9092")
    assert Settings().connection().adapter is KafkaPython
    monkeypatch.setenv("KAFKA_CLIENT", "confluent")
    with pytest.raises(SettingsError, match="KAFKA_CLIENT is 'confluent'; it must be 'kafka-python' or"):
        Settings()
    monkeypatch.setenv("KAFKA_CLIENT", "confluent-kafka")
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(MissingExtraError, match=r"is not installed; run `pip install 'unmask\[fast\]'`"):
        Settings().connection()


def test_a_client_that_is_not_chosen_is_not_imported() -> None:
    program = "import sys, flows.settings, pipelines.kafka.topics; sys.exit('confluent_kafka' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_a_child_gets_no_secret_that_it_does_not_need(secrets: set[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
    child = processes.launch("child", command, folder=tmp_path, address="", env={"GIVEN": "yes"})
    try:
        child.wait_until_up(lambda: "up" in child.printed())
        seen = psutil.Process(child.pid).environ()
        assert (seen["GIVEN"], seen["PATH"]) == ("yes", psutil.Process().environ()["PATH"])
        assert not secrets & seen.keys()
    finally:
        child.stop()


def test_a_child_gets_what_is_named_for_it(secrets: set[str]) -> None:
    assert secrets & processes.inherited("KAFKA_").keys() == {"KAFKA_SASL_PASSWORD"}
