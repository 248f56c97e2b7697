"""Lineage tags of MLflow runs and model versions."""

import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from pipelines.contracts.stream import Stream
from pipelines.lake.tables import Lake

FLOW_RUN_TAG = "prefect.flow_run"
AS_OF, ENCODER_AS_OF = "as_of", "encoder_as_of"  # the end of the training data
LEARNED_UNTIL, HELD_OUT_FROM = "learned_until", "held_out_from"  # the beginning of the labels and events not trained on


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


def time_of(tags: Mapping[str, str], name: str) -> int | None:
    """The time in a tag, ms since 1970; None if there is none. Version 0.1.0 wrote milliseconds, to `<name>_ms`.

    >>> time_of({"as_of": "1970-01-01T00:00:01.000Z"}, "as_of")
    1000
    """
    with suppress(ValueError):
        moment = datetime.fromisoformat(tags.get(name, ""))
        return round(moment.timestamp() * 1000) if moment.tzinfo else None
    before = tags.get(f"{name}_ms", "")
    return int(before) if before.isdecimal() else None


def _commit() -> str:
    """The git commit of this code, or "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
