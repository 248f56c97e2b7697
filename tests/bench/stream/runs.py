"""Runs a system in a process of its own and gives the row about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tests.bench.stream.report import Row
from tests.bench.stream.task import Found, Task
from tests.bench.tables import ROOT, BenchError

RUN_S = 900.0
_SINGLE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


class Running:
    """A system whose loop has begun."""

    def __init__(self, task: Task, python: Path, folder: Path) -> None:
        self._result, self._log = folder / "result.json", folder / "log.txt"
        (folder / "task.json").write_bytes(msgspec.json.encode(task))
        command = [str(python), "-m", "tests.bench.stream.child", str(folder / "task.json"), str(self._result)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, env={**os.environ, **_SINGLE}, text=True
            )
        self._task = task
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == "ready":
                return
        self._process.wait()
        raise self._failure()

    def end(self) -> None:
        """Ask a live run to end."""
        self._process.terminate()

    def found(self) -> Found:
        """What it found, once it ended.

        Raises:
            BenchError: it failed.
        """
        try:
            code = self._process.wait(RUN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise BenchError(f"{self._task.system} took more than {RUN_S:g} s") from None
        if code or not self._result.exists():
            raise self._failure()
        return msgspec.json.decode(self._result.read_bytes(), type=Found)

    def stop(self) -> None:
        """End it in any case."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _failure(self) -> BenchError:
        said = self._log.read_text(errors="replace").strip()[-2_000:]
        return BenchError(f"{self._task.system} ({self._task.client}) ended with {self._process.returncode}: {said}")


@contextmanager
def started(task: Task, python: Path | None = None) -> Iterator[Running]:
    """Start a system; it is ended at the end of the block."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state = folder / "state"
        state.mkdir()
        run = Running(msgspec.structs.replace(task, state=str(state)), python or Path(sys.executable), folder)
        try:
            yield run
        finally:
            run.stop()
            shutil.rmtree(state, ignore_errors=True)


def row_of(task: Task, found: Found) -> Row:
    """The row of the report about a run."""
    return {
        "system": task.system,
        "client": task.client,
        "form": task.form,
        "stream": task.stream,
        "events": found.events,
        "cpu_s": round(found.cpu_s, 3),
        "events_per_cpu_s": round(found.events / found.cpu_s, 1),
        "wall_s": round(found.wall_s, 3),
        "load": round(os.getloadavg()[0], 1),
        **found.more,
    }
