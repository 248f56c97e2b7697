"""What all tests share: one real Kafka broker, MLflow and Prefect for the whole session."""

import os
import shutil
import socket
from collections.abc import Iterator

import pytest

from flows.local import processes
from flows.local.kafka_server import Broker, start_broker
from flows.local.processes import ServerError
from flows.local.servers import Servers, start_servers


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that uses the real broker, so that `-m "not broker"` leaves them out."""
    for item in items:
        if {"broker", "kafka"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("broker")


@pytest.fixture(scope="session")
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A real Kafka broker, had the way the demo has it; without one the test is skipped, in CI it fails."""
    said: list[str] = []
    try:
        broker = start_broker(tmp_path_factory.mktemp("kafka"), log=said.append)
    except ServerError as error:
        why = " | ".join([*said, str(error)])
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    try:
        yield broker
    finally:
        broker.stop()
        if request.session.testsfailed:
            print(f"\nthe broker's log and data were kept in {broker.folder}")
        elif broker.kind == "kafka":
            shutil.rmtree(broker.folder / "data", ignore_errors=True)


@pytest.fixture(scope="session")
def kafka(broker: Broker) -> str:
    """Bootstrap address of the session's broker; its topics are shared, so tests name their own."""
    return broker.bootstrap


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """MLflow and Prefect, empty at the start of the session."""
    servers = start_servers(tmp_path_factory.mktemp("servers"), log=lambda line: None)
    try:
        yield servers
    finally:
        servers.stop()


@pytest.fixture
def free_port() -> int:
    """A TCP port of the loopback that nobody listens on."""
    return processes.free_port()


@pytest.fixture
def silent_server() -> Iterator[str]:
    """URL of a listener that accepts connections and never answers."""
    with socket.create_server((processes.LOOPBACK, 0), backlog=256) as listener:
        yield f"http://{processes.LOOPBACK}:{listener.getsockname()[1]}"


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of variables that hold a secret, set for this test."""
    names = {"KAFKA_SASL_PASSWORD", "MLFLOW_TRACKING_PASSWORD", "PREFECT_API_KEY", "AWS_SECRET_ACCESS_KEY"}
    names |= {"HOMEBREW_GITHUB_API_TOKEN", "USER_PASSWORD", "PYTHON_KEYRING_PASSWORD"}
    for name in names:
        monkeypatch.setenv(name, "hunter2")
    return names
