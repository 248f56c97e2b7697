"""The monitor on a real lake: a field that moves is found, told to Prefect, and answered by training."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.condition import Condition
from flows.deployments import deploy
from flows.settings import Settings
from pipelines.contracts.stream import DAY_MS
from tests.flows.test_training_flows import START_MS, Unmask, at, purchases, unmask
from tests.patience import wait_until

__all__ = ["unmask"]
N, HOURS = 12_000, 36  # 600 events
BEFORE = at(START_MS + 25 * DAY_MS)
NO_LIMITS = """
[promotion]
max_alerts = 100
max_drift = 100
min_reasons = 0
max_bias = 100
"""


def monitored(unmask: Unmask, path: Path) -> Condition:
    from flows.monitor import monitor

    found = monitor.with_options(retries=0)(path, hours=HOURS)
    assert isinstance(found, Condition)
    return found


def runs_of(api: str, deployment: str) -> list[dict[str, Any]]:
    """Flow runs that were created for a deployment."""
    asked = {"flow_runs": {"deployment_id": {"any_": [deployment]}}}
    found = httpx.post(f"{api}/flow_runs/filter", json=asked).raise_for_status().json()
    assert isinstance(found, list)
    return found


def test_a_field_that_moved_is_named_first_and_answered_by_training_which_ends_the_drift(unmask: Unmask) -> None:
    from mlflow import MlflowClient

    from flows.retrain import retrain

    path, stream = purchases(unmask.home, n=N, shifted_from=25.5 / 30)
    path.write_text(path.read_text() + NO_LIMITS)
    settings = Settings()
    api = settings.prefect_environment()["PREFECT_API_URL"]
    deployed = {one.name: one.id for one in deploy(path, paused=True)}
    unmask.pretrain(path, as_of=BEFORE)
    unmask.finetune(path, as_of=BEFORE)
    assert unmask.promote(path, as_of=BEFORE, force=True).promoted

    found = monitored(unmask, path)
    assert found.needs_training
    assert found.drift is not None
    assert found.drift.fields[0] == "amount", found.words
    retraining = deployed[f"{stream.name}-retrain"]
    wait_until(lambda: bool(runs_of(api, retraining)))
    assert "amount" in runs_of(api, retraining)[0]["parameters"]["why"]
    monitored(unmask, path)  # the same drift: no second training

    folder = settings.monitor_folder(stream)
    assert "moved" in (folder / "drift.html").read_text()
    gauges = (folder / "drift.prom").read_text()
    assert f'unmask_drift{{stream="{stream.name}"}} 1.0' in gauges
    client = MlflowClient(tracking_uri=settings.tracking_uri())
    experiment = client.get_experiment_by_name(f"{stream.name}/monitor")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["severity/amount"] > 1
    assert len(client.get_metric_history(run.info.run_id, "severity/amount")) == 2
    assert "drift.json" in {file.path for file in client.list_artifacts(run.info.run_id)}

    judged = retrain(path, why="a test")
    assert judged.version == 2
    assert "champion" in judged.checks  # which knows the labels from before the shift better
    assert unmask.promote(path, force=True).promoted
    after = monitored(unmask, path)
    assert not after.needs_training, after.words
    assert len(runs_of(api, retraining)) == 1


def test_an_undisturbed_stream_is_left_alone(unmask: Unmask) -> None:
    path, _ = purchases(unmask.home, n=N)
    unmask.pretrain(path, as_of=BEFORE)
    unmask.finetune(path, as_of=BEFORE)
    assert unmask.promote(path, as_of=BEFORE, force=True).promoted
    found = monitored(unmask, path)
    assert not found.needs_training, found.words
    assert found.reviewed.n > 0


def test_without_a_champion_there_is_nothing_to_monitor(unmask: Unmask) -> None:
    from flows.monitor import NothingToMonitorError

    path, _ = purchases(unmask.home)
    with pytest.raises(NothingToMonitorError, match="has no champion in MLflow"):
        monitored(unmask, path)
