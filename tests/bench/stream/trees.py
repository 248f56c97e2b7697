"""XGBoost's own runtime behind the window kernel of Unmask: what a good engineer would put together by hand."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from pipelines.contracts.stream import DAY_MS, HOUR_MS, Stream
from pipelines.features.layout import FoldInput
from pipelines.features.plan import FeaturePlan
from pipelines.features.windows import Windows
from tests.bench.stream.outputs import Columns, Out, packed_records, score_records
from tests.bench.stream.plain import scored
from tests.bench.stream.streams import stream_of
from tests.bench.stream.task import Meter, Task

THRESHOLD = 0.5
WRITERS = {"events": score_records, "packed": packed_records}


class Event(msgspec.Struct):
    """A payment."""

    event_id: str
    time: int
    customer_id: str
    terminal_id: str
    amount: float
    channel: str | None = None
    category: str | None = None
    country: str | None = None


class Rows:
    """Model rows of events: amount, hour, weekday, windows; state in the window kernel."""

    def __init__(self, stream: Stream) -> None:
        self._windows = Windows(
            FeaturePlan.of(
                stream.features,
                entities=stream.entities,
                numbers=stream.numbers,
                hashed=stream.hashed,
                maturity_ms=None,
                lifetime_ms=stream.lifetime_memory_ms,
            )
        )
        self._hashes: dict[str, int] = {}
        self._arrival_ms = 0
        self._n_hashed = len(stream.hashed)
        self._entities = stream.entities

    def of(self, events: list[Event], stamps_ms: list[int]) -> NDArray[np.float64]:
        """Shape (n, number of numeric columns): the rows of the events, which are added to the state."""
        n = len(events)
        time_ms = np.array([event.time for event in events], np.int64)
        amount = np.array([event.amount for event in events])[:, None]
        arrivals = np.maximum.accumulate(np.append(self._arrival_ms, stamps_ms))[1:]
        self._arrival_ms = int(arrivals[-1])
        keys = [[self._hash(getattr(event, name)) for name in self._entities] for event in events]
        windows = self._windows.fold(
            FoldInput(
                np.ones(n, np.bool_),
                arrivals,
                time_ms,
                np.array(keys, np.uint64),
                amount,
                np.zeros((n, self._n_hashed), np.uint64),
                np.zeros(n, np.int8),
                np.zeros(n, np.int8),
            )
        )
        calendar = np.stack([(time_ms % DAY_MS) / HOUR_MS, (time_ms // DAY_MS + 3) % 7], axis=1)
        return np.hstack([amount, calendar, windows])

    def _hash(self, text: str) -> int:
        found = self._hashes.get(text)
        if found is None:
            found = self._hashes[text] = xxhash.xxh3_64_intdigest(text.encode())
        return found


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
