"""river's half-space trees, event by event, on the columns that the window kernel of Unmask makes in blocks."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from pipelines.contracts.stream import Stream
from tests.bench.stream.events import Event
from tests.bench.stream.outputs import Columns, Out, score_records
from tests.bench.stream.plain import scored
from tests.bench.stream.rows import Rows
from tests.bench.stream.streams import stream_of
from tests.bench.stream.task import Meter, Task

N_TREES = 10
THRESHOLD = 0.9


def river(task: Task, meter: Meter) -> None:
    """Score, then learn, each event; the ranges of the columns are given, so nothing is scaled."""
    from river.anomaly import HalfSpaceTrees

    stream = stream_of(task.stream, task.topics)
    names = stream.numeric_columns
    ranges = json.loads((Path(task.folder) / "limits.json").read_text())
    limits = {name: (low, high) for name, (low, high) in zip(names, ranges, strict=True)}
    decode = msgspec.json.Decoder(Event).decode

    def make(rows: Rows, forest: HalfSpaceTrees, columns: Columns) -> list[Out]:
        events = [decode(value) for value in columns.value]
        found = []
        for row in rows.of(events, columns.stamp_ms).tolist():
            x = dict(zip(names, row, strict=True))
            found.append(round(forest.score_one(x), 9))
            forest.learn_one(x)
        ids, times = [event.event_id for event in events], [event.time for event in events]
        return score_records(task.events_topic, task.scores_topic, columns, ids, times, found, THRESHOLD)

    def trees(stream: Stream) -> tuple[Rows, HalfSpaceTrees]:
        return Rows(stream), HalfSpaceTrees(n_trees=N_TREES, height=8, window_size=250, limits=limits, seed=1)

    one = Columns([0], [0], [0], [b"c"], [b'{"event_id":"e","time":0,"customer_id":"c","terminal_id":"t","amount":1}'])
    make(*trees(stream), one)  # compiles
    rows, forest = trees(stream)
    scored(task, meter, lambda columns: make(rows, forest, columns))
