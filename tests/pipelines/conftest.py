"""The adapters of the Kafka port, and a broker that tests may cut off, stop for a while and continue."""

from collections.abc import Iterator

import pytest

from flows.local.kafka_server import Broker
from pipelines.kafka.port import Adapter
from tests.pipelines.kafka.adapters import ADAPTERS
from tests.pipelines.kafka.link import Linked, linked_broker


@pytest.fixture(scope="session", params=ADAPTERS)
def adapter(request: pytest.FixtureRequest) -> Adapter:
    """Each adapter in turn, for tests in which the client matters."""
    return ADAPTERS[request.param]


@pytest.fixture(scope="session")
def linked(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Linked]:
    """A broker of its own, behind a link."""
    if broker.kind != "kafka":
        pytest.skip("needs a broker of its own behind a link")
    with linked_broker(tmp_path_factory.mktemp("linked")) as linked:
        yield linked
