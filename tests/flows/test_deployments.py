import subprocess
import sys
from pathlib import Path

import yaml

DEPLOYMENTS = yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text())["deployments"]


def test_every_deployment_points_to_a_flow(tmp_path: Path):
    # In a process of its own: Prefect reads its settings once, when it is imported.
    script = """
import sys
from importlib import import_module
from prefect import Flow
for entrypoint in sys.argv[1:]:
    module, name = entrypoint.rsplit(".", 1)
    assert isinstance(getattr(import_module(module), name), Flow), entrypoint
"""
    command = [sys.executable, "-c", script, *(deployment["entrypoint"] for deployment in DEPLOYMENTS)]
    env = {"PREFECT_HOME": str(tmp_path), "DO_NOT_TRACK": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, env=env)
    assert ran.returncode == 0, ran.stderr


def test_no_two_deployments_share_a_name_and_none_has_a_limit_that_a_killed_run_would_hold():
    names = [(deployment["entrypoint"], deployment["name"]) for deployment in DEPLOYMENTS]
    assert len(names) == len(set(names))
    assert not any("concurrency_limit" in deployment for deployment in DEPLOYMENTS)
