"""The deployments of a stream, on a real Prefect server."""

from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.deployments import PLAN, POOL, deploy
from flows.local.servers import Servers
from pipelines.errors import StreamFileError
from tests.flows.test_training_flows import purchases_file


def test_every_flow_is_deployed_once_with_schedule_limit_and_parameters(servers: Servers, tmp_path: Path) -> None:
    path = purchases_file(tmp_path)
    name = path.stem
    with temporary_settings({PREFECT_API_URL: servers.prefect_api}), get_client(sync_client=True) as client:
        first = deploy(path, paused=True)
        assert deploy(path) == first  # again: the same ones
        assert [one.name for one in first] == [f"{name}-{one.flow.name}" for one in PLAN]
        assert client.read_work_pool(POOL).type == "process"
        for planned, one in zip(PLAN, first, strict=True):
            found = client.read_deployment(one.id)
            assert found.parameters["stream"] == str(path)
            assert found.global_concurrency_limit is not None
            assert found.global_concurrency_limit.limit == 1
            when = planned.cron or planned.every
            assert [due(one.schedule) for one in found.schedules] == ([when] if when else [])
            assert found.description
            assert found.tags == [name, planned.tag]
            assert found.parameter_openapi_schema is not None
            stream = found.parameter_openapi_schema["properties"]["stream"]
            assert "stream file" in stream["description"]


def due(schedule: object) -> object:
    return schedule.cron if isinstance(schedule, CronSchedule) else getattr(schedule, "interval", None)


def test_a_mistake_in_the_stream_file_comes_before_anything_is_deployed(tmp_path: Path) -> None:
    with pytest.raises(StreamFileError, match="no such file"):
        deploy(tmp_path / "none.toml")
