"""What tests of the lake and of what is made from it share: the payments stream, a log in memory, a plain model."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.contracts.stream import Stream
from pipelines.contracts.stream_file import load
from pipelines.play.simulate import payments
from pipelines.record import Received

START = datetime(2026, 1, 1, tzinfo=UTC)
START_MS = round(START.timestamp() * 1000)
STREAMS = Path(__file__).parents[2] / "flows" / "streams"


def payments_stream(topics: str) -> Stream:
    """The demo's stream under topics of a test's own."""
    return msgspec.structs.replace(load(STREAMS / "payments.toml"), topics=topics)


def few_payments(*, seed: int = 1, days: int = 12, n_customers: int = 60) -> pl.DataFrame:
    """About two payments a day and customer."""
    return payments(seed=seed, n_customers=n_customers, n_terminals=80, days=days, start=START)


def event_message(event_id: str, customer: str, time_ms: int, **fields: object) -> bytes:
    """The JSON of a payment."""
    head = {"event_id": event_id, "time": time_ms, "customer_id": customer, "terminal_id": "t1", "amount": 9.5}
    return msgspec.json.encode(head | fields)


def label_message(event_id: str, customer: str, time_ms: int, label: int = 1, **fields: object) -> bytes:
    """The JSON of a report."""
    head = {"event_id": event_id, "customer_id": customer, "terminal_id": "t1", "time": time_ms}
    return msgspec.json.encode(head | {"label": label, "labelled_at": time_ms, "source": "test"} | fields)


class Log:
    """The records of one topic, in memory: `add` gives each its offset."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.records: list[Received] = []
        self._ends: dict[int, int] = {}

    def add(self, partition: int, stamp_ms: int, key: str | None, value: bytes | None) -> Received:
        offset = self._ends.get(partition, 0)
        self._ends[partition] = offset + 1
        raw_key = None if key is None else key.encode()
        record = Received(self.topic, partition, offset, stamp_ms, raw_key, value)
        self.records.append(record)
        return record

    @property
    def through(self) -> dict[int, int]:
        return {p: end - 1 for p, end in self._ends.items()}


class ShiftedSum:
    """A model that is the fractional part of the sum of the features, plus a shift."""

    threshold = 0.9
    alert_rate: float | None = None
    ordered_threshold: float | None = None

    def __init__(self, stream: Stream, *, shift: float = 0.0, digest: str = "linear") -> None:
        self.digest = digest
        self.numeric_names, self.categorical_names = stream.numeric_columns, stream.categories
        self._shift = shift

    def score(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> NDArray[np.float32]:
        total = np.nan_to_num(numeric).sum(axis=1) + (categorical % 97).sum(axis=1)
        return (total % 1 * 0.9 + self._shift).astype(np.float32)

    def explain(self, numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> Sequence["_Why"]:
        return [_Why() for _ in numeric]


class _Why:
    reasons: Sequence[dict[str, object]] = ()
    score_if_all_expected = 0.1
