"""What a demo leaves: with --keep its servers, also after a failure."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.local import processes, servers


@pytest.mark.timeout(900)
def test_keep_leaves_the_servers_up_after_a_failure_and_says_where_they_are(tmp_path: Path) -> None:
    home = tmp_path / "home"
    command = [sys.executable, "-m", "flows.cli", "demo", "--keep", "--out", str(tmp_path / "out")]
    env = processes.inherited() | {"UNMASK_HOME": str(home), "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9"}
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=800, env=env, check=False)
        assert ran.returncode == 2, ran.stderr
        assert "no Kafka answers at 127.0.0.1:9" in ran.stderr
        found = servers.find_servers(home / "ui")
        assert found is not None
        assert f"MLflow:  {found.mlflow.url}" in ran.stdout
        assert "Stop what is still running with" in ran.stdout
    finally:
        servers.stop_servers(home / "ui")
