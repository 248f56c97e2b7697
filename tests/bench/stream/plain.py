"""The loop of `bare` and of the peers: read, make records, commit them in a transaction; and `bare` itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tests.bench.stream.clients import Plain, opened
from tests.bench.stream.outputs import Columns, Out, progress_record, sample
from tests.bench.stream.task import TRANSACTION, Meter, Task

Make = Callable[[Columns], list[Out]]


def bare(task: Task, meter: Meter) -> None:
    """Consume, produce: one constant record for each event."""
    _, value, _, _, headers, _ = sample(task.events_topic)
    target = task.scores_topic

    def make(client: Plain, records: Sequence[Any]) -> list[Out]:
        return [Out(target, value, key, p, headers, stamp_ms) for key, p, stamp_ms in client.keys(records)]

    _run(task, meter, make)


def scored(task: Task, meter: Meter, make: Make) -> None:
    """Consume, let `make` score and encode, produce."""
    _run(task, meter, lambda client, records: make(client.columns(records)))


def _run(task: Task, meter: Meter, make: Callable[[Plain, Sequence[Any]], list[Out]]) -> None:
    client = opened(task)
    waiting: list[Any] = []
    n_out, least = 0, 1 if task.live else TRANSACTION
    meter.start()
    while not meter.passed(n_out):
        waiting += client.read()
        if n_out + len(waiting) == task.n_events:
            least = 1
        while len(waiting) >= least:
            some, waiting = waiting[:TRANSACTION], waiting[TRANSACTION:]
            n_out += len(some)
            client.commit([*make(client, some), progress_record(task.progress_topic, [n_out] * len(task.ends))])
    client.close()
