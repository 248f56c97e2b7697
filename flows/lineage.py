"""Lineage tags of MLflow runs and model versions."""

import subprocess
from importlib.metadata import version
from pathlib import Path

from pipelines.contracts.stream import Stream
from pipelines.lake.tables import Lake

FLOW_RUN_TAG = "prefect.flow_run"


def lineage(stream: Stream, lake: Lake) -> dict[str, str]:
    """Tags: code version and commit, stream, its topics, the lake's table versions."""
    return {
        "unmask.version": version("unmask"),
        "git.commit": _commit(),
        "stream": stream.name,
        "stream.topics": stream.topics,
        "lake.version": lake.version(),
    }


def flow_run_tag() -> dict[str, str]:
    """The id of the Prefect run as a tag of its MLflow runs; empty outside of one."""
    from prefect.runtime import flow_run

    return {FLOW_RUN_TAG: flow_run.get_id() or ""}


def _commit() -> str:
    """The git commit of this code, or "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
