"""A run that a user's mistake ended is not retried by Prefect; one that a server's absence ended is."""

from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.local.servers import Servers, drain_prefect
from flows.promote import promote
from flows.retries import retry_unless_mistaken
from models.errors import ModelError
from models.ship.registry import RegistryError
from pipelines.errors import BrokerError, LoginError, StreamFileError


@pytest.mark.parametrize(
    ("error", "runs"),
    [
        (StreamFileError("line 9: type 'txt'"), 1),
        (LoginError("wrong password"), 1),
        (ModelError("no labels"), 1),
        (BrokerError("no Kafka answers"), 3),
        (RegistryError("no MLflow answers"), 3),
        (ZeroDivisionError("a defect"), 3),
    ],
)
def test_only_what_may_pass_is_retried(error: Exception, runs: int, servers: Servers) -> None:
    seen: list[int] = []

    @flow(name="failing", retries=2, retry_delay_seconds=0)
    @retry_unless_mistaken
    def failing() -> None:
        seen.append(1)
        raise error

    with temporary_settings({PREFECT_API_URL: servers.prefect_api}):
        state = failing(return_state=True)
        drain_prefect()
        assert (len(seen), state.name) == (runs, "Failed")
        run_id = state.state_details.flow_run_id
        assert run_id is not None
        with get_client(sync_client=True) as client:
            assert client.read_flow_run(run_id).run_count == runs


def test_a_flow_with_a_mistaken_stream_file_fails_at_once(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNMASK_HOME", str(tmp_path))
    with temporary_settings({PREFECT_API_URL: servers.prefect_api}):
        state = promote.with_options(retries=1, retry_delay_seconds=1)(Path("payment"), return_state=True)
        drain_prefect()
        run_id = state.state_details.flow_run_id
        assert run_id is not None
        with get_client(sync_client=True) as client:
            assert client.read_flow_run(run_id).run_count == 1
    with pytest.raises(StreamFileError, match="payment: no such file, nor a shipped stream") as raised:
        state.result()
    assert "did you mean 'payments'?" in str(raised.value)
