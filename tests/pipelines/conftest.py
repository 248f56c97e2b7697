"""A broker that tests may cut off, stop for a while and continue."""

from collections.abc import Iterator

import pytest

from flows.local.kafka_server import Broker
from tests.pipelines.kafka.link import Linked, linked_broker


@pytest.fixture(scope="session")
def linked(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Linked]:
    """A broker of its own, behind a link."""
    if broker.kind != "kafka":
        pytest.skip("needs a broker of its own behind a link")
    with linked_broker(tmp_path_factory.mktemp("linked")) as linked:
        yield linked
