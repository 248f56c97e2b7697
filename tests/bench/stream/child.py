"""The process of one system: `python -m tests.bench.stream.child TASK RESULT`, two JSON files."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from tests.bench.stream.task import Meter, Task


def main(task_file: str, result_file: str) -> None:
    """Run the system of a task and write what it found. Only what this system needs is imported."""
    task = msgspec.json.decode(Path(task_file).read_bytes(), type=Task)
    meter = Meter(task)
    run(task, meter)
    found = msgspec.structs.replace(meter.found, more=meter.more)
    Path(result_file).write_bytes(msgspec.json.encode(found))


def run(task: Task, meter: Meter) -> None:
    """Run the system of a task."""
    if task.system == "bare":
        from tests.bench.stream.plain import bare

        bare(task, meter)
    elif task.system == "unmask":
        from tests.bench.stream.unmask import unmask

        unmask(task, meter)
    elif task.system == "xgboost":
        from tests.bench.stream.trees import trees

        trees(task, meter)
    elif task.system == "river":
        from tests.bench.stream.river import river

        river(task, meter)
    elif task.system in ("quix", "quix-xgboost"):
        from tests.bench.stream.quix import quix

        quix(task, meter)
    else:
        raise ValueError(task.system)


if __name__ == "__main__":
    main(*sys.argv[1:])
