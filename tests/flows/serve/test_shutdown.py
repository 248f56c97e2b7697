"""SIGTERM ends a scorer within 5 s: under load, with a full outbox, and while Kafka does not answer."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.local.kafka_server import Broker
from pipelines.features.snapshot import Snapshot
from pipelines.kafka.confluent.client import Confluent
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message
from pipelines.lake.audit import reconcile
from tests.flows.serve.test_probes import asked, metrics_at
from tests.flows.serve.test_service import log_of, port_of, served
from tests.patience import wait_until
from tests.pipelines.kafka.link import Linked, linked_broker
from tests.pipelines.live.rig import Rig

WITHIN_S = 5.0
N_BACKLOG = 60_000
CLIENTS = ("kafka-python", "confluent-kafka")


@pytest.fixture(scope="module")
def linked(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Linked]:
    """A broker of its own, behind a link."""
    with linked_broker(tmp_path_factory.mktemp("linked")) as linked:
        yield linked


def send_backlog(rig: Rig, n: int) -> None:
    """Events of many cards, fast."""
    with Connection(rig.connection.bootstrap, adapter=Confluent).writer() as writer:
        for i in range(rig.n_sent, rig.n_sent + n):
            card = f"c{i % 997}"
            event = {"id": f"e{i}", "at": int(time.time() * 1000), "card": card, "amount": 5.0}
            writer.send(Message(rig.stream.topic("events"), json.dumps(event).encode(), card.encode()))
        writer.flush()
    rig.n_sent += n


def stopped_after_s(process: subprocess.Popen[bytes], folder: Path) -> float:
    """Time from SIGTERM to the end of the process, which has exit code 0."""
    began_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, log_of(folder)
    took_s = time.monotonic() - began_s
    print(f"ended {took_s:.2f} s after SIGTERM")
    return took_s


def n_in(metrics: dict[str, float], name: str) -> float:
    return sum(value for at, value in metrics.items() if at.startswith(name))


@pytest.mark.parametrize("client", CLIENTS)
def test_sigterm_under_load_ends_in_time_and_loses_nothing(kafka: str, tmp_path: Path, client: str) -> None:
    rig = Rig(kafka, tmp_path)
    send_backlog(rig, N_BACKLOG)
    words = ("--from", "earliest", "--metrics-port", "0")
    for _ in range(3):
        with served(rig, tmp_path, *words, KAFKA_CLIENT=client) as process:
            port = port_of(tmp_path, process)

            def is_at_work(port: int = port) -> bool:
                told = metrics_at(port)
                has_scored = told["unmask_events_scored_total"] > 1_000
                if has_scored and not n_in(told, "unmask_lag_records"):
                    send_backlog(rig, N_BACKLOG // 3)  # it was faster than this look
                return has_scored and n_in(told, "unmask_memory_bytes{part=outbox}") > 0

            wait_until(is_at_work, alive=lambda process=process: process.poll() is None)  # type: ignore[misc]
            assert stopped_after_s(process, tmp_path) < WITHIN_S
        for path in (tmp_path / "home" / "snapshots").rglob("*.snapshot"):
            Snapshot.read(path)
        send_backlog(rig, N_BACKLOG // 3)
    with served(rig, tmp_path, *words, KAFKA_CLIENT=client) as process:
        rig.wait_until_out()
        wait_until(lambda: asked(port_of(tmp_path, process), "/readyz")[0] == 200)
        assert stopped_after_s(process, tmp_path) < WITHIN_S
    assert reconcile(rig.connection, rig.stream).holds
    assert len({score["event_id"] for score in rig.scores()}) == len(rig.scores()) == rig.n_sent
    assert not list((tmp_path / "home" / "snapshots").rglob("*.part"))


@pytest.mark.parametrize("how", ["cut", "swallow"])
@pytest.mark.parametrize("client", CLIENTS)
def test_sigterm_while_kafka_is_unreachable_ends_in_time(linked: Linked, tmp_path: Path, client: str, how: str) -> None:
    direct = Rig(linked.broker.bootstrap, tmp_path)
    behind = Rig.__new__(Rig)
    behind.__dict__ |= direct.__dict__ | {"connection": Connection(linked.bootstrap)}
    send_backlog(direct, 20_000)
    words = ("--from", "earliest", "--metrics-port", "0")
    try:
        with served(behind, tmp_path, *words, KAFKA_CLIENT=client) as process:
            port = port_of(tmp_path, process)
            wait_until(lambda: metrics_at(port)["unmask_events_scored_total"] > 0, alive=lambda: process.poll() is None)
            getattr(linked.link, how)()
            time.sleep(1.0)  # a call to Kafka is under way
            assert process.poll() is None, log_of(tmp_path)
            assert stopped_after_s(process, tmp_path) < WITHIN_S
        with served(behind, tmp_path, *words, KAFKA_CLIENT=client) as process:  # it does not start without Kafka
            wait_until(lambda: "scorer of stream" in log_of(tmp_path), alive=lambda: process.poll() is None)
            time.sleep(1.0)  # it waits for Kafka
            assert process.poll() is None, log_of(tmp_path)
            began_s = time.monotonic()
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            assert time.monotonic() - began_s < WITHIN_S
    finally:
        linked.link.mend()
    with served(direct, tmp_path, *words, KAFKA_CLIENT=client) as process:
        direct.wait_until_out()
        assert stopped_after_s(process, tmp_path) < WITHIN_S
    assert len({score["event_id"] for score in direct.scores()}) == len(direct.scores()) == direct.n_sent
