"""The adapter that the battery tries."""

import pytest

from pipelines.kafka.port import Adapter
from tests.pipelines.kafka.adapters import ADAPTERS


@pytest.fixture(scope="session", params=ADAPTERS)
def adapter(request: pytest.FixtureRequest) -> Adapter:
    """Each adapter in turn."""
    return ADAPTERS[request.param]
