"""The fold: accepted events and labels, in the one order, become feature rows. Moves forward, never back."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipelines.contracts.contract import Event, Label
from pipelines.contracts.stream import DAY_MS, HOUR_MS, Stream
from pipelines.errors import InternalError, RestoreError
from pipelines.features.duplicates import Duplicates
from pipelines.features.id_log import ID_KEY_BYTES, hash_ids
from pipelines.features.kernel import FoldInput
from pipelines.features.plan import FeaturePlan
from pipelines.features.reports import Reports
from pipelines.features.snapshot import Snapshot
from pipelines.features.windows import Windows
from pipelines.order import KIND_NAMES, Item, Key, Source, by_kind, sources


class Items(NamedTuple):
    """Accepted events and labels in the one order, column by column. All arrays have n rows."""

    is_event: NDArray[np.bool_]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    clock_ms: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    ids: NDArray[np.uint64]  # (n, 2), hashes of the event ids under the state's key
    label: NDArray[np.int8]  # of labels; 0 for events
    entities: NDArray[np.uint64]  # (n, n_entities), 0 = missing
    numbers: NDArray[np.float64]  # (n, n_numbers), NaN = missing
    categories: NDArray[np.uint64]  # (n, n_categories), 0 = missing


@dataclass(frozen=True)
class Rows:
    """What the fold made of the events among some items.

    Shapes: `index` and `late_ms` (m,), `numeric` (m, d), `categorical` (m, c), `hashes` (m,): one row per event that is
    no duplicate; `index` says which item it was. `duplicates` maps the other events' index to the original's offset.
    """

    index: NDArray[np.int64]
    late_ms: NDArray[np.int64]
    numeric: NDArray[np.float64]
    categorical: NDArray[np.uint64]
    hashes: NDArray[np.uint64]
    duplicates: dict[int, int]


def plan_of(stream: Stream) -> FeaturePlan:
    """The stream's window features, compiled."""
    return FeaturePlan.of(
        stream.features,
        entities=stream.entities,
        numbers=stream.numbers,
        hashed=stream.hashed,
        maturity_ms=stream.labels.maturity_ms if stream.labels else None,
        lifetime_ms=stream.lifetime_memory_ms,
    )


def items_of(decoded: Sequence[tuple[Item, Event | Label]], stream: Stream, id_key: bytes = b"") -> Items:
    """Columns of decoded events and labels; what came out of turn has its own source and the clock of its place.

    Args:
        id_key: the state's, where ids must not be made to collide.
    """
    n = len(decoded)
    nan_row, zero_row = (math.nan,) * len(stream.numbers), (0,) * len(stream.categories)
    records = [item.record for item, _ in decoded]
    values = [value for _, value in decoded]
    is_event = np.fromiter((type(v) is Event for v in values), bool, n)
    return Items(
        is_event,
        np.fromiter((r.partition for r in records), np.int32, n),
        np.fromiter((r.offset for r in records), np.int64, n),
        np.fromiter((item.key.effective_ms for item, _ in decoded), np.int64, n),
        np.fromiter((v.time_ms for v in values), np.int64, n),
        hash_ids((v.event_id for v in values), id_key),
        np.fromiter((0 if isinstance(v, Event) else v.label for v in values), np.int8, n),
        np.array([v.entities for v in values], np.uint64).reshape(n, len(stream.entities)),
        np.array([v.numbers if isinstance(v, Event) else nan_row for v in values], np.float64).reshape(n, len(nan_row)),
        np.array([v.categories if isinstance(v, Event) else zero_row for v in values], np.uint64).reshape(
            n, len(zero_row)
        ),
    )


class State:
    """Raw facts only, nothing a model made: a function of the log up to its frontier.

    Bounded: windows by panes and idle time, duplicates and reports by time and number.

    Args:
        id_key: what event ids are hashed under; drawn at random where it is not given.
    """

    def __init__(self, stream: Stream, n_partitions: int, *, id_key: bytes | None = None) -> None:
        self.stream = stream
        self.n_partitions = n_partitions
        self.id_key = os.urandom(ID_KEY_BYTES) if id_key is None else id_key
        self.plan = plan_of(stream)
        self.digest = _definition_digest(stream, self.plan)
        self.windows = Windows(self.plan)
        self.frontier: dict[Source, int] = dict.fromkeys(sources(n_partitions, labels=stream.labels is not None), 0)
        self.arrivals: dict[Source, int] = dict.fromkeys(self.frontier, 0)
        self.last: Key | None = None
        self.clock_ms = 0
        self.watermark_ms = [0] * n_partitions
        self.topic_ids: dict[str, str] = {}  # Kafka's ids of the input topics by kind, where the broker has any
        self.places: list[list[int]] = []  # [kind, partition, offset, place...] folded out of turn and not told yet
        self._seen = Duplicates(stream.duplicate_memory_ms, stream.duplicate_memory_ids)
        self._reported = Reports(max(self.plan.idle_ms, default=DAY_MS), stream.duplicate_memory_ids)
        self._steps_begun = 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory set aside."""
        return self.windows.nbytes + self._seen.nbytes + self._reported.nbytes

    @property
    def remembered(self) -> dict[str, int]:
        """How many ids and reports are remembered, and how many ever gave way to newer ones before their time."""
        return {
            "ids": self._seen.n_held(self.clock_ms),
            "ids_evicted": self._seen.n_evicted,
            "reports": self._reported.n_held(self.clock_ms),
            "reports_evicted": self._reported.n_evicted,
        }

    @contextmanager
    def step(self) -> Iterator[None]:
        """What moves the state as a whole or not at all: after an exception inside, it is half done for good."""
        self._steps_begun += 1
        yield
        self._steps_begun -= 1

    def fold(self, items: Items) -> Rows:
        """Fold items that come next in the one order; returns the rows of the events among them.

        Raises:
            InternalError: an event comes a second time.
        """
        with self.step():
            return self._fold(items)

    def _fold(self, items: Items) -> Rows:
        n = len(items.ids)
        events, labels = np.flatnonzero(items.is_event), np.flatnonzero(~items.is_event)
        originals = self._seen.first_offsets(
            items.ids[events], items.partition[events], items.offset[events], items.clock_ms[events]
        )
        if np.any(twice := originals == items.offset[events]):
            i = events[np.argmax(twice)]
            raise InternalError(
                f"the event at offset {items.offset[i]} of partition {items.partition[i]} was folded twice"
            )
        repeats = originals >= 0
        duplicates = dict(zip(events[repeats].tolist(), originals[repeats].tolist(), strict=True))
        keep = np.ones(n, bool)
        keep[events[repeats]] = False
        index = events[~repeats]
        delta = np.zeros(n, np.int8)
        delta[labels] = self._reported.changes(
            items.ids[labels], items.clock_ms[labels], items.time_ms[labels], items.label[labels]
        )
        late_ms = self._lateness(items.partition[index], items.time_ms[index])
        if n:
            self.clock_ms = int(items.clock_ms[-1])
        windows = self.windows.fold(
            FoldInput(
                items.is_event[keep],
                items.clock_ms[keep],
                items.time_ms[keep],
                items.entities[keep],
                items.numbers[keep],
                np.concatenate([items.categories, items.entities], axis=1)[keep],
                delta[keep],
            )
        )
        numeric = np.concatenate([items.numbers[index], _calendar(items.time_ms[index]), windows], axis=1)
        categorical = items.categories[index]
        return Rows(index, late_ms, numeric, categorical, hash_rows(numeric, categorical), duplicates)

    def _lateness(self, partition: NDArray[np.int32], time_ms: NDArray[np.int64]) -> NDArray[np.int64]:
        """How far each event is behind the newest one of its partition before it, ms; moves the watermarks."""
        late_ms = np.empty(len(time_ms), np.int64)
        for p in np.unique(partition).tolist():
            of_p = partition == p
            newest = np.maximum.accumulate(np.append(self.watermark_ms[p], time_ms[of_p]))
            late_ms[of_p] = np.maximum(newest[:-1] - time_ms[of_p], 0)
            self.watermark_ms[p] = int(newest[-1])
        return late_ms

    def passed(self, key: Key, source: Source, offset: int, arrival_ms: int) -> None:
        """Note that a record, accepted or refused, has had its place."""
        assert offset >= self.frontier[source], f"{source} was folded to {self.frontier[source]}, then came {offset}"
        self.last = key
        self.frontier[source] = offset + 1
        self.arrivals[source] = arrival_ms

    def snapshot(self) -> "Snapshot":
        """A copy that later folds do not touch.

        Raises:
            InternalError: a step is half done; what it folded already would come back as duplicates of itself.
        """
        if self._steps_begun:
            raise InternalError("a step of the fold failed or is still going on, no snapshot can be taken of it")
        arrays = {f"windows/{name}": array for name, array in self.windows.snapshot().items()}
        arrays["seen"] = self._seen.snapshot(self.clock_ms)
        arrays["reported"] = self._reported.snapshot(self.clock_ms)
        meta = {
            "definition": self.digest,
            "n_partitions": self.n_partitions,
            "topic_ids": dict(self.topic_ids),
            "frontier": by_kind(self.frontier, self.n_partitions),
            "arrivals": by_kind(self.arrivals, self.n_partitions),
            "last": list(self.last) if self.last else None,
            "clock_ms": self.clock_ms,
            "watermark_ms": list(self.watermark_ms),
            "places": list(self.places),
            "id_key": self.id_key.hex(),
            "evicted": [self._seen.n_evicted, self._reported.n_evicted],
        }
        return Snapshot(meta, arrays)

    @classmethod
    def restore(cls, stream: Stream, snapshot: "Snapshot") -> Self:
        """The state a snapshot was taken of; folding on is bit-equal to never having stopped.

        Raises:
            RestoreError: the snapshot was made under another feature definition.
        """
        meta, arrays = snapshot.meta, snapshot.arrays
        state = cls(stream, meta["n_partitions"], id_key=bytes.fromhex(meta["id_key"]))
        if meta["definition"] != state.digest:
            raise RestoreError(
                "the snapshot was made under other fields or features; delete it, the input is read again"
            )
        state.windows = Windows.restore(
            state.plan, {k.removeprefix("windows/"): v for k, v in arrays.items() if k.startswith("windows/")}
        )
        state._seen.restore(arrays["seen"])
        state._reported.restore(arrays["reported"])
        state._seen.n_evicted, state._reported.n_evicted = meta["evicted"]
        state.topic_ids = dict(meta["topic_ids"])
        state.frontier = {s: meta["frontier"][KIND_NAMES[s.kind]][s.partition] for s in state.frontier}
        state.arrivals = {s: meta["arrivals"][KIND_NAMES[s.kind]][s.partition] for s in state.frontier}
        state.topic_ids = dict(meta.get("topic_ids", {}))
        state.last = Key(*meta["last"]) if meta["last"] else None
        state.clock_ms = meta["clock_ms"]
        state.watermark_ms = list(meta["watermark_ms"])
        state.places = list(meta["places"])
        return state


def hash_rows(numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64-bit xxh3 of each feature row's bytes: equal exactly if the rows are bit-equal (but for chance 2**-64)."""
    rows = np.concatenate([np.ascontiguousarray(numeric).view(np.uint64), categorical], axis=1)
    width, data = rows.shape[1] * 8, memoryview(np.ascontiguousarray(rows).tobytes())
    return np.fromiter(
        (xxhash.xxh3_64_intdigest(data[i : i + width]) for i in range(0, len(data), width)), np.uint64, len(rows)
    )


def _calendar(time_ms: NDArray[np.int64]) -> NDArray[np.float64]:
    """Hour of the day (UTC, 0 <= hour < 24) and weekday (Monday 0), shape (n, 2)."""
    return np.stack([(time_ms % DAY_MS) / HOUR_MS, ((time_ms // DAY_MS + 3) % 7).astype(np.float64)], axis=1)


def _definition_digest(stream: Stream, plan: FeaturePlan) -> str:
    """Changes when the same log could give other feature rows: what is accepted, computed and forgotten."""
    contract = [stream.event_id, stream.event_time, stream.future_tolerance_ms, stream.max_message_bytes]
    contract += [[f.name, f.type, f.required, f.min, f.max, f.max_length] for f in stream.fields]
    memory = [stream.duplicate_memory_ms, stream.duplicate_memory_ids]
    parts = [plan.digest, contract, memory, stream.labels.lag_ms if stream.labels else None]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
