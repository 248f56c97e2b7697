"""Quix Streams: the windows of the key in its state, one score record for each event, exactly-once.

Tuned: bytes in and out with msgspec around it, one state value per customer (running totals in a msgspec struct), the
default commit interval of 5 s, since every commit writes the changelog of all changed customers. Its own windows would
cost more: without output, a tumbling window of one day took 31 us of CPU time per event, a hopping one with 24 steps
about 320 us, a sliding one 70 us, and these features need four windows; all of `quix` takes 35 us.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from tests.bench.stream.events import Event
from tests.bench.stream.outputs import MODEL, headers_of
from tests.bench.stream.task import Meter, Task

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
# (pane, number of panes, whether amounts too): as Unmask divides 1h, 1d, 7d and 30d.
WINDOWS = ((HOUR_MS // 12, 12, False), (HOUR_MS, 24, True), (DAY_MS // 4, 28, True), (DAY_MS, 30, True))
THRESHOLD = 0.99
_NO_HASH = "0" * 16


class Window(msgspec.Struct, array_like=True):
    """A window: totals (count, sum, sum of squares), and the same of each pane, behind the number of the pane."""

    n: int = 0
    total: float = 0.0
    square: float = 0.0
    panes: list[list[Any]] = []


class Customer(msgspec.Struct, array_like=True):
    """The state of a customer."""

    windows: list[Window]
    ever: Window
    last_ms: int


def features(state: Customer, at_ms: int, amount: float) -> list[float]:
    """The features of a payment before it is added, then the state with it.

    >>> state = Customer([Window() for _ in WINDOWS], Window(), 0)
    >>> _ = features(state, 0, 10.0)
    >>> features(state, 1_000, 30.0)[:5], features(state, 40 * DAY_MS, 20.0)[:5]
    ([1, 1, 10.0, 0.0, 3.0], [0, 0, nan, nan, nan])
    """
    found: list[float] = []
    for window, (pane_ms, n_panes, has_amounts) in zip(state.windows, WINDOWS, strict=True):
        pane, panes = at_ms // pane_ms, window.panes
        while panes and panes[0][0] < pane - n_panes:
            _, n, total, square = panes.pop(0)
            window.n -= n
            window.total -= total
            window.square -= square
        found.append(window.n)
        if has_amounts:
            _statistics(window, amount, found)
        if panes and panes[-1][0] >= pane:
            newest = panes[-1]
            newest[1] += 1
            newest[2] += amount
            newest[3] += amount * amount
        else:
            panes.append([pane, 1, amount, amount * amount])
        _add(window, amount)
    found.append(state.ever.n)
    _statistics(state.ever, amount, found)
    _add(state.ever, amount)
    found += [state.windows[2].total, state.windows[3].total, (at_ms - state.last_ms) / 1000]
    state.last_ms = at_ms
    return found


def _statistics(window: Window, amount: float, found: list[float]) -> None:
    n = window.n
    if not n:
        found += (math.nan, math.nan, math.nan, math.nan)
        return
    mean = window.total / n
    deviation = math.sqrt(max(window.square / n - mean * mean, 0.0))
    found += (mean, deviation, amount / mean if mean else math.nan, (amount - mean) / deviation if deviation else 0.0)


def _add(window: Window, amount: float) -> None:
    window.n += 1
    window.total += amount
    window.square += amount * amount


def _z_score(event: Event, row: list[float]) -> float:
    z = row[15]
    return 0.0 if math.isnan(z) else 1 - math.exp(-abs(z))


def _trees(task: Task) -> Callable[[Event, list[float]], float]:
    """XGBoost for one event; its columns are those of `features`, in another order than the trees were trained with."""
    import numpy as np
    import xgboost

    predict = xgboost.Booster({"nthread": 1}, model_file=Path(task.folder) / "trees.json").inplace_predict
    codes = json.loads((Path(task.folder) / "codes.json").read_text())
    channel, category, country = (codes[name] for name in ("channel", "category", "country"))

    def score(event: Event, row: list[float]) -> float:
        at = event.time
        coded = (channel.get(event.channel), category.get(event.category), country.get(event.country))
        calendar = (event.amount, at % DAY_MS / HOUR_MS, (at // DAY_MS + 3) % 7)
        x = np.array([[*calendar, *row, *coded]], np.float32)
        return float(predict(x, validate_features=False)[0])

    return score


def quix(task: Task, meter: Meter) -> None:
    """Score each event with `quix-xgboost`'s trees, or with the z-score of 30 days in place of a model."""
    from quixstreams import Application, State, message_context

    predict = _trees(task) if task.system == "quix-xgboost" else _z_score
    decode = msgspec.json.Decoder(Event).decode
    encode = msgspec.json.Encoder().encode
    pack, unpack = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Customer).decode
    stamp = datetime.fromtimestamp
    source, n_done, began = task.events_topic, 0, False

    def score(value: bytes, _: Any, arrival_ms: int, __: Any, state: State) -> bytes:
        nonlocal n_done, began
        if not began:
            began = True
            meter.start()
        event = decode(value)
        held = state.get_bytes("c")
        customer = Customer([Window() for _ in WINDOWS], Window(), event.time) if held is None else unpack(held)
        row = features(customer, event.time, event.amount)
        state.set_bytes("c", pack(customer))
        found = round(predict(event, row), 9)
        at = message_context()
        n_done += 1
        if task.every and n_done % task.every == 0 and n_done < task.n_events:
            meter.passed(n_done)  # out only with the next commit; the last one is noted after it
        return encode(
            {
                "event_id": event.event_id,
                "score": found,
                "alert": found > THRESHOLD,
                "model": MODEL,
                "source": {"topic": source, "partition": at.partition, "offset": at.offset},
                "event_time": stamp(event.time / 1000, UTC).isoformat(timespec="milliseconds"),
                "arrival": stamp(arrival_ms / 1000, UTC).isoformat(timespec="milliseconds"),
                "late_ms": 0,
                "out_of_order": False,
                "features_hash": _NO_HASH,
            }
        )

    def headers(value: bytes, *_: Any) -> Any:
        at = message_context()
        return headers_of(source, at.partition, at.offset)

    app = Application(
        broker_address=task.bootstrap,
        consumer_group=f"quix-{uuid.uuid4().hex}",
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        state_dir=task.state,
        loglevel="WARNING",
    )
    frame = app.dataframe(app.topic(source, value_deserializer="bytes", key_deserializer="bytes"))
    frame = frame.apply(score, stateful=True, metadata=True).set_headers(headers)
    frame.to_topic(app.topic(task.scores_topic, value_serializer="bytes", key_serializer="bytes"))
    app.run(count=task.n_events, collect=False)
    meter.passed(n_done)
