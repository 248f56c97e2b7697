"""What the tests of serving share."""

from pathlib import Path

import pytest

from tests.flows.serve.cached import Home


@pytest.fixture
def home(kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A stream on a broker with a home without MLflow."""
    return Home(kafka, tmp_path, monkeypatch)
