"""Where the CPU time of a run goes, by thread, stage and function. It slows the run by some percent.

Stages are timed: the calls of some functions note the CPU time of their thread, less that of the stages within them.
Functions are sampled: a thread looks at all stacks every few ms, and each stack gets the CPU time that its thread has
used since the last look. A look needs the GIL, so functions that release it get more than their share; stages do not
have this fault.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any

EVERY_S = 0.004
N_FUNCTIONS = 40
KINDS = ("cpu", "waits for the GIL", "waits for a core", "idle")
# What is timed: module, class or "" and function -> stage.
STAGES = {
    "pipelines.live.input Input.read": "consume: hand over",
    "pipelines.live.input Input.ask": "consume: ask for the ends",
    "pipelines.kafka.kafka_python.reader KafkaPythonReader.poll": "consume: poll",
    "pipelines.order Merge.add": "merge: add",
    "pipelines.order Merge.release": "merge: release",
    "pipelines.live.replica Replica._fold": "fold: puts",
    "pipelines.contracts.decode Decoder._fill": "decode",
    "pipelines.features.state State._fold": "fold: state",
    "pipelines.features.state Records.of": "fold: duplicates",
    "pipelines.features.state State.decide": "fold: duplicates",
    "pipelines.features.windows Windows.fold": "fold: kernel",
    "pipelines.features.state hash_rows": "fold: hash of the rows",
    "pipelines.contracts.block Block.take": "fold: take rows",
    "pipelines.live.outbox Outbox.put": "outbox: put",
    "pipelines.live.outbox Outbox.take": "outbox: take",
    "pipelines.live.outbox Outbox.drop": "outbox: drop",
    "pipelines.live.outbox progress_after": "encode: progress",
    "pipelines.live.lane Lane._messages": "encode: messages",
    "models.ship.artifact ServedModel.score": "score",
    "models.ship.artifact ServedModel.explain": "explain",
    "models.ship.artifact _run": "score: ONNX Runtime",
    "pipelines.kafka.kafka_python.transactions KafkaPythonTransactions._send_all": "produce: send",
    "pipelines.kafka.kafka_python.transactions KafkaPythonTransactions._wait_until_stored": "produce: wait",
    "pipelines.kafka.kafka_python.transactions KafkaPythonTransactions._within": "commit",
    "pipelines.live.snapshots SnapshotSchedule.go_on": "snapshot: copy",
    "pipelines.live.snapshots Writing._run": "snapshot: write",
    "pipelines.kafka.confluent.reader ConfluentReader.poll": "consume: poll",
    "pipelines.kafka.confluent.transactions ConfluentTransactions.commit": "produce and commit",
    "tests.bench.stream.clients KafkaPython.read": "consume: poll",
    "tests.bench.stream.clients KafkaPython.commit": "produce and commit",
    "tests.bench.stream.clients Confluent.read": "consume: poll",
    "tests.bench.stream.clients Confluent.commit": "produce and commit",
    "tests.bench.stream.trees Rows.of": "fold",
}
_DIGITS = re.compile(r"[0-9]+")
# Files whose C code waits: a thread in one of them that uses no CPU time is idle, in another it waits for the GIL.
_WAITING = ("threading.py", "selectors.py", "queue.py", "_base.py", "socket.py", "connection.py")


def found(module: str, name: str) -> tuple[Any, str]:
    """What holds a function of `STAGES`, and its name there.

    >>> found("pipelines.order", "Merge.add")[1]
    'add'
    """
    owner: Any = importlib.import_module(module)
    *classes, function = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    getattr(owner, function)
    return owner, function


class Profile:
    """Measures from `start` to `stop`."""

    def __init__(self) -> None:
        self._stages: dict[str, float] = defaultdict(float)
        self._calls: Counter[str] = Counter()
        self._stacks = threading.local()
        self._functions: dict[tuple[str, str], float] = defaultdict(float)
        self._threads: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(KINDS, 0.0))
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._look, name="profile", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, path: Path, n_events: int) -> None:
        """Write the profile, in us per event."""
        self._ended.set()
        self._thread.join()
        each = 1e6 / n_events
        total = sum(used["cpu"] for used in self._threads.values())
        functions = sorted(self._functions.items(), key=lambda item: -item[1])[:N_FUNCTIONS]
        report = {
            "events": n_events,
            "cpu_us": total * each,
            "threads": {
                name: {kind: round(s * each, 2) for kind, s in used.items()}
                for name, used in sorted(self._threads.items(), key=lambda item: -item[1]["cpu"])
            },
            "stages": {
                name: {"us": round(s * each, 2), "calls": self._calls[name]}
                for name, s in sorted(self._stages.items(), key=lambda item: -item[1])
            },
            "functions": [[thread, name, round(s * each, 2)] for (thread, name), s in functions],
        }
        path.write_text(json.dumps(report, indent=1) + "\n")

    def time_stages(self) -> None:
        """Time the calls of the functions of `STAGES` in the modules that are loaded."""
        for where, stage in STAGES.items():
            module, _, name = where.partition(" ")
            if module in sys.modules:
                owner, function = found(module, name)
                timed = self._timed(getattr(owner, function), stage)
                setattr(owner, function, timed)
                if "." not in name:  # where it was imported by name
                    for other in list(sys.modules.values()):
                        if getattr(other, "__name__", "").startswith(("pipelines", "models")) and hasattr(
                            other, function
                        ):
                            setattr(other, function, timed)

    def _timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            stack: list[float] = self._stacks.__dict__.setdefault("stack", [])
            stack.append(0.0)
            began = time.thread_time()
            try:
                return function(*args, **options)
            finally:
                spent = time.thread_time() - began
                own = spent - stack.pop()
                with self._lock:
                    self._stages[stage] += own
                    self._calls[stage] += 1
                if stack:
                    stack[-1] += spent

        return timed

    def _look(self) -> None:
        before: dict[int, tuple[float, float]] = {}
        looked = time.perf_counter()
        while not self._ended.wait(EVERY_S):
            frames = sys._current_frames()
            named = {t.native_id: t for t in threading.enumerate() if t.native_id}
            now = time.perf_counter()
            elapsed, looked = now - looked, now
            for task in Path("/proc/self/task").iterdir():
                try:
                    ran_ns, waited_ns, _ = (task / "schedstat").read_text().split()
                except (OSError, ValueError):
                    continue
                number = int(task.name)
                thread = named.get(number)
                ran, waited = int(ran_ns) / 1e9, int(waited_ns) / 1e9
                old = before.get(number)
                before[number] = (ran, waited)
                if old is None or thread is self._thread:
                    continue
                cpu, queued = ran - old[0], waited - old[1]
                frame = frames.get(thread.ident) if thread is not None and thread.ident else None
                self._note(_name(thread, task), frame, cpu, queued, max(elapsed - cpu - queued, 0.0))

    def _note(self, name: str, frame: FrameType | None, cpu: float, queued: float, rest: float) -> None:
        used = self._threads[name]
        used["cpu"] += cpu
        used["waits for a core"] += queued
        if frame is None:
            used["idle"] += rest
            return
        code = frame.f_code
        idle = Path(code.co_filename).name in _WAITING
        used["idle" if idle else "waits for the GIL"] += rest
        self._functions[name, f"{_short(code.co_filename)}:{code.co_qualname}"] += cpu


def summary(path: Path) -> str:
    """Threads and stages of a written profile, in us per event."""
    found = json.loads(path.read_text())
    threads = [(used["cpu"], f"{name}; waits for the GIL {used['waits for the GIL']:.1f}, for a core "
                f"{used['waits for a core']:.1f}") for name, used in found["threads"].items()]  # fmt: skip
    stages = [(one["us"], f"{name}, {one['calls']:,} calls") for name, one in found["stages"].items()]
    lines = [f"{us:8.2f}  {text}" for us, text in (*threads, *stages) if us >= 0.05]
    return "\n".join([f"{found['cpu_us']:8.2f}  us of CPU time per event in threads that were seen, of which", *lines])


def _name(thread: threading.Thread | None, task: Path) -> str:
    """Name of a thread without its number; in brackets that of a thread of a library."""
    if thread is not None:
        return _DIGITS.sub("*", thread.name)
    try:
        return f"[{_DIGITS.sub('*', (task / 'comm').read_text().strip())}]"
    except OSError:
        return "[ended]"


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-2:])
