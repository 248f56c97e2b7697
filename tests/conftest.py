"""What all tests share: one real Kafka broker, MLflow and Prefect for the whole session."""

import os
import shutil
from collections.abc import Iterator

import hypothesis
import pytest

from flows.local import processes
from flows.local.kafka_server import Broker, start_broker
from flows.local.processes import ServerError
from flows.local.servers import Servers, start_servers
from tests.silent_server import SilentServer, listening_in_silence

# `--hypothesis-profile bench` for the long way.
hypothesis.settings.register_profile(
    "short",
    max_examples=80,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.register_profile("bench", hypothesis.settings.get_profile("short"), max_examples=400)
hypothesis.settings.load_profile("short")

# What takes longest comes first, so that no worker is left with it at the end.
LONGEST_FIRST = (
    "tests/faults/test_faults.py",
    "tests/flows/test_training_flows.py",
    "tests/pipelines/live/test_recover.py",
    "tests/flows/test_hostile.py",
    "tests/pipelines/live/test_upstream.py",
    "tests/flows/test_alone.py",
    "tests/flows/test_retries.py",
    "tests/flows/test_loop.py",
    "tests/pipelines/live/test_takeover.py",
    "tests/pipelines/live/test_scorer.py",
    "tests/pipelines/live/test_bounds.py",
    "tests/flows/local/test_servers.py",
    "tests/flows/local/test_kafka_server.py",
    "tests/pipelines/features/test_windows.py",
    "tests/pipelines/lake/test_audit.py",
    "tests/pipelines/kafka/test_login.py",
    "tests/pipelines/live/test_publish.py",
    "tests/models/test_every_model.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark every test that uses the real broker; several workers begin with the files that take longest."""
    for item in items:
        if {"broker", "kafka"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("broker")
    if os.environ.get("PYTEST_XDIST_WORKER"):
        order = {name: place for place, name in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


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
def silent_server() -> Iterator[SilentServer]:
    """A server that accepts connections and never answers."""
    with listening_in_silence() as server:
        yield server


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of variables that hold a secret, set for this test."""
    names = {"KAFKA_SASL_PASSWORD", "MLFLOW_TRACKING_PASSWORD", "PREFECT_API_KEY", "AWS_SECRET_ACCESS_KEY"}
    names |= {"HOMEBREW_GITHUB_API_TOKEN", "USER_PASSWORD", "PYTHON_KEYRING_PASSWORD"}
    for name in names:
        monkeypatch.setenv(name, "hunter2")
    return names
