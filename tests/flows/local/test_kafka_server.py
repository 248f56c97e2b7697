import os
from pathlib import Path

import psutil
import pytest

from flows.local import kafka_jars, processes
from flows.local.kafka_jars import COORDINATES
from flows.local.kafka_server import Broker, find_broker, start_broker, stop_broker
from flows.local.processes import ServerError


def test_a_stopped_broker_finds_its_data_and_its_port_again(
    broker: Broker, secrets: set[str], monkeypatch, tmp_path: Path
):
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    first = start_broker(tmp_path, log=_quiet)
    try:
        cluster = (tmp_path / "data" / "meta.properties").read_text()
        assert first.process is not None
        assert not secrets & psutil.Process(first.process.pid).environ().keys()
        assert find_broker(tmp_path) == first
        assert start_broker(tmp_path, log=_quiet) == first
        assert stop_broker(tmp_path) is not None
        assert find_broker(tmp_path) is None
        again = start_broker(tmp_path, log=_quiet)
        assert again.bootstrap == first.bootstrap
        assert (tmp_path / "data" / "meta.properties").read_text() == cluster
    finally:
        stop_broker(tmp_path)
        first.stop()


def test_a_broker_named_by_the_environment_is_used_and_never_stopped(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "kafka.example:9092")
    broker = start_broker(tmp_path, log=_quiet)
    assert (broker.kind, broker.bootstrap, broker.process) == ("external", "kafka.example:9092", None)
    broker.stop()


def test_each_way_that_fails_is_named_and_without_any_one_sentence_says_what_to_install(monkeypatch, tmp_path: Path):
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs" / "kafka_2.13-0.0.1.jar").touch()
    said: list[str] = []
    with pytest.raises(ServerError) as raised:
        start_broker(tmp_path / "broker", log=said.append)
    assert "Apache Kafka 0.0.1 did not start" in said[0]
    assert "Docker" in said[1]
    assert len(said) == 2
    told = str(raised.value)
    assert "\n" not in told
    assert all(way in told for way in ("Java 17", "KAFKA_HOME", "unmask[kafka]", "Docker", "KAFKA_BOOTSTRAP_SERVERS"))
    assert not list((tmp_path / "broker").glob("broker.json"))


def test_a_kafka_home_without_jars_says_what_it_must_be(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    libs = kafka_jars.cached_libs()
    libs.mkdir(parents=True)
    said: list[str] = []
    assert kafka_jars.find_libs(said.append) == libs
    assert said == [f"Kafka: KAFKA_HOME is ignored, because {tmp_path / 'nowhere' / 'libs'} has no kafka_*.jar"]


def test_the_coordinates_pin_every_jar_to_one_version():
    lines = COORDINATES.read_text().split()
    assert len(lines) == len({line.rsplit(":", 1)[0] for line in lines})
    assert "org.apache.kafka:kafka_2.13:4.4.0" in lines


def test_a_process_that_took_over_a_pid_is_not_ours_to_stop(tmp_path: Path):
    stranger = processes.Process("kafka", os.getpid(), created=0.0, address="", folder=tmp_path)
    assert not stranger.is_running
    stranger.stop()


def _quiet(line: str) -> None:
    """Say nothing."""
