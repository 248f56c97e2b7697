"""XGBoost's own runtime behind the window kernel of Unmask: what a good engineer would put together by hand."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np

from tests.bench.stream.events import Event
from tests.bench.stream.outputs import Columns, Out, packed_records, score_records
from tests.bench.stream.plain import scored
from tests.bench.stream.rows import Rows
from tests.bench.stream.streams import stream_of
from tests.bench.stream.task import Meter, Task

THRESHOLD = 0.5
WRITERS = {"events": score_records, "packed": packed_records}


def trees(task: Task, meter: Meter) -> None:
    """Score with XGBoost; columns and number of trees are those of the model that Unmask serves."""
    import xgboost

    stream = stream_of(task.stream, task.topics)
    booster = xgboost.Booster({"nthread": 1}, model_file=Path(task.folder) / "trees.json")
    codes = json.loads((Path(task.folder) / "codes.json").read_text())
    columns_of_codes = [(name, {**codes[name], None: np.nan}) for name in stream.categories]
    write, rows = WRITERS[task.form], Rows(stream)
    decode = msgspec.json.Decoder(Event).decode

    def score(rows: Rows, columns: Columns) -> list[Out]:
        events = [decode(value) for value in columns.value]
        numeric = rows.of(events, columns.stamp_ms)
        x = np.empty((len(events), numeric.shape[1] + len(columns_of_codes)), np.float32)
        x[:, : numeric.shape[1]] = numeric
        for j, (name, code) in enumerate(columns_of_codes, numeric.shape[1]):
            x[:, j] = [code.get(getattr(event, name), np.nan) for event in events]
        found = np.round(booster.inplace_predict(x).astype(np.float64), 9).tolist()
        ids, times = [event.event_id for event in events], [event.time for event in events]
        return write(task.events_topic, task.scores_topic, columns, ids, times, found, THRESHOLD)

    one = Columns([0], [0], [0], [b"c"], [b'{"event_id":"e","time":0,"customer_id":"c","terminal_id":"t","amount":1}'])
    score(Rows(stream), one)  # compiles
    scored(task, meter, lambda columns: score(rows, columns))
