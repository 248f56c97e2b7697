"""The fold: accepted events and labels, in the one order, become feature rows. Moves forward, never back."""

import hashlib
import io
import json
import math
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipelines.contract import Event, Label
from pipelines.errors import RestoreError
from pipelines.faults import Fault, no_fault
from pipelines.features import Batch, Plan, Windows
from pipelines.order import EVENT, KIND_NAMES, LABEL, Item, Key, Source, sources
from pipelines.stream import Stream

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
_SNAPSHOT_VERSION = 1


class Items(NamedTuple):
    """Accepted events and labels in the one order, column by column. All arrays have n rows."""

    is_event: NDArray[np.bool_]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    clock_ms: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    ids: Sequence[bytes]  # 128-bit event ids
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


def plan_of(stream: Stream) -> Plan:
    """The stream's window features, compiled."""
    return Plan.of(
        stream.features,
        entities=stream.entities,
        numbers=stream.numbers,
        hashed=stream.hashed,
        maturity_ms=stream.labels.maturity_ms if stream.labels else None,
    )


def items_of(decoded: Sequence[tuple[Item, Event | Label]], stream: Stream) -> Items:
    """Columns of decoded events and labels; what came out of turn has its own source and the clock of its place."""
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
        [v.id128 for v in values],
        np.fromiter((0 if isinstance(v, Event) else v.label for v in values), np.int8, n),
        np.array([v.entities for v in values], np.uint64).reshape(n, len(stream.entities)),
        np.array([v.numbers if isinstance(v, Event) else nan_row for v in values], np.float64).reshape(n, len(nan_row)),
        np.array([v.categories if isinstance(v, Event) else zero_row for v in values], np.uint64).reshape(
            n, len(zero_row)
        ),
    )


class State:
    """Raw facts only, nothing a model made: a function of the log up to its frontier.

    Bounded: windows by panes and idle time, duplicates and reports by their time to live.
    """

    def __init__(self, stream: Stream, n_partitions: int) -> None:
        self.stream = stream
        self.n_partitions = n_partitions
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
        # id -> offset, clock; oldest first (a plain dict would search its beginning again for every one that goes)
        self._seen: list[OrderedDict[bytes, tuple[int, int]]] = [OrderedDict() for _ in range(n_partitions)]
        self._reported: dict[bytes, int] = {}  # id -> event time, of frauds
        self._report_memory_ms = max(self.plan.idle_ms, default=DAY_MS)

    def fold(self, items: Items) -> Rows:
        """Fold items that come next in the one order; returns the rows of the events among them."""
        n = len(items.ids)
        delta = np.zeros(n, np.int8)
        keep = np.ones(n, bool)
        late_ms = np.zeros(n, np.int64)
        duplicates: dict[int, int] = {}
        events = zip(
            items.is_event.tolist(),
            items.partition.tolist(),
            items.offset.tolist(),
            items.clock_ms.tolist(),
            items.time_ms.tolist(),
            items.ids,
            strict=True,
        )
        for i, (is_event, partition, offset, clock_ms, time_ms, id128) in enumerate(events):
            if not is_event:
                delta[i] = self._report(id128, int(items.label[i]), time_ms, clock_ms)
                continue
            original = self._first_offset(partition, id128, offset, clock_ms)
            if original is not None:
                duplicates[i] = original
                keep[i] = False
                continue
            watermark = self.watermark_ms[partition]
            if time_ms < watermark:
                late_ms[i] = watermark - time_ms
            else:
                self.watermark_ms[partition] = time_ms
        if n:
            self.clock_ms = int(items.clock_ms[-1])
        windows = self.windows.fold(
            Batch(
                items.is_event[keep],
                items.clock_ms[keep],
                items.time_ms[keep],
                items.entities[keep],
                items.numbers[keep],
                np.concatenate([items.categories, items.entities], axis=1)[keep],
                delta[keep],
            )
        )
        index = np.flatnonzero(keep & items.is_event)
        numeric = np.concatenate([items.numbers[index], _calendar(items.time_ms[index]), windows], axis=1)
        categorical = items.categories[index]
        return Rows(index, late_ms[index], numeric, categorical, hash_rows(numeric, categorical), duplicates)

    def _first_offset(self, partition: int, id128: bytes, offset: int, clock_ms: int) -> int | None:
        """Offset of the event this one repeats, None where it is the first within the duplicates' memory."""
        seen = self._seen[partition]
        memory_ms = self.stream.duplicate_memory_ms
        known = seen.get(id128)
        if known is not None:
            if clock_ms - known[1] <= memory_ms:
                return known[0]
            del seen[id128]
        seen[id128] = (offset, clock_ms)
        while True:
            oldest = next(iter(seen))
            if clock_ms - seen[oldest][1] <= memory_ms:
                return None
            del seen[oldest]

    def _report(self, id128: bytes, label: int, time_ms: int, clock_ms: int) -> int:
        """Change of the fraud count: +1 reported, -1 taken back, 0 repeated or too old to matter."""
        oldest_ms = clock_ms - self._report_memory_ms
        if len(self._reported) > 1024 and len(self._reported) & (len(self._reported) - 1) == 0:
            self._reported = {k: v for k, v in self._reported.items() if v >= oldest_ms}
        if time_ms < oldest_ms:
            return 0
        is_reported = self._reported.get(id128, -math.inf) >= oldest_ms
        if label == 1 and not is_reported:
            self._reported[id128] = time_ms
            return 1
        if label == 0 and is_reported:
            del self._reported[id128]
            return -1
        return 0

    def passed(self, key: Key, source: Source, offset: int, arrival_ms: int) -> None:
        """Note that a record, accepted or refused, has had its place."""
        assert offset >= self.frontier[source], f"{source} was folded to {self.frontier[source]}, then came {offset}"
        self.last = key
        self.frontier[source] = offset + 1
        self.arrivals[source] = arrival_ms

    def snapshot(self) -> "Snapshot":
        """A copy that later folds do not touch."""
        seen = [(p, k, o, c) for p, d in enumerate(self._seen) for k, (o, c) in d.items()]
        arrays = {f"windows/{name}": array for name, array in self.windows.snapshot().items()}
        arrays["seen/partition"] = np.array([s[0] for s in seen], np.int32)
        arrays["seen/id"] = np.frombuffer(b"".join(s[1] for s in seen), np.uint8).reshape(len(seen), 16)
        arrays["seen/offset"] = np.array([s[2] for s in seen], np.int64)
        arrays["seen/clock"] = np.array([s[3] for s in seen], np.int64)
        arrays["reported/id"] = np.frombuffer(b"".join(self._reported), np.uint8).reshape(len(self._reported), 16)
        arrays["reported/time"] = np.array(list(self._reported.values()), np.int64)
        meta = {
            "version": _SNAPSHOT_VERSION,
            "definition": self.digest,
            "n_partitions": self.n_partitions,
            "topic_ids": dict(self.topic_ids),
            "frontier": by_kind(self.frontier, self.n_partitions),
            "arrivals": by_kind(self.arrivals, self.n_partitions),
            "last": list(self.last) if self.last else None,
            "clock_ms": self.clock_ms,
            "watermark_ms": list(self.watermark_ms),
            "places": list(self.places),
        }
        return Snapshot(meta, arrays)

    @classmethod
    def restore(cls, stream: Stream, snapshot: "Snapshot") -> Self:
        """The state a snapshot was taken of; folding on is bit-equal to never having stopped.

        Raises:
            RestoreError: the snapshot was made under another feature definition.
        """
        meta, arrays = snapshot.meta, snapshot.arrays
        state = cls(stream, meta["n_partitions"])
        if meta["version"] != _SNAPSHOT_VERSION or meta["definition"] != state.digest:
            raise RestoreError(
                "the snapshot was made under other fields or features; delete it, the input is read again"
            )
        state.windows = Windows.restore(
            state.plan, {k.removeprefix("windows/"): v for k, v in arrays.items() if k.startswith("windows/")}
        )
        state.frontier = {s: meta["frontier"][KIND_NAMES[s.kind]][s.partition] for s in state.frontier}
        state.arrivals = {s: meta["arrivals"][KIND_NAMES[s.kind]][s.partition] for s in state.frontier}
        state.topic_ids = dict(meta.get("topic_ids", {}))
        state.last = Key(*meta["last"]) if meta["last"] else None
        state.clock_ms = meta["clock_ms"]
        state.watermark_ms = list(meta["watermark_ms"])
        state.places = list(meta["places"])
        columns = (arrays[f"seen/{name}"] for name in ("partition", "id", "offset", "clock"))
        for partition, id128, offset, clock in zip(*columns, strict=True):
            state._seen[int(partition)][id128.tobytes()] = (int(offset), int(clock))
        for id128, time_ms in zip(arrays["reported/id"], arrays["reported/time"], strict=True):
            state._reported[id128.tobytes()] = int(time_ms)
        return state


def by_kind(values: Mapping[Source, int], n_partitions: int) -> dict[str, list[int]]:
    """{"events": [..], "labels": [..]} of a mapping by source; JSON's form of a frontier.

    >>> by_kind({Source(EVENT, 0): 3, Source(EVENT, 1): 5}, 2)
    {'events': [3, 5]}
    """
    return {
        KIND_NAMES[kind]: [values[Source(kind, p)] for p in range(n_partitions)]
        for kind in (LABEL, EVENT)
        if Source(kind, 0) in values
    }


def from_kinds(frontier: Mapping[Any, Sequence[int]]) -> dict[Source, int]:
    """The frontier that `by_kind` wrote.

    >>> from_kinds({"events": [3]})
    {Source(kind=1, partition=0): 3}
    """
    return {Source(KIND_NAMES.index(kind), p): offset for kind, row in frontier.items() for p, offset in enumerate(row)}


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


def _definition_digest(stream: Stream, plan: Plan) -> str:
    """Changes when the same log could give other feature rows: what is accepted, computed and forgotten."""
    contract = [stream.event_id, stream.event_time, stream.future_tolerance_ms, stream.max_message_bytes]
    contract += [[f.name, f.type, f.required, f.min, f.max, f.max_length] for f in stream.fields]
    parts = [plan.digest, contract, stream.duplicate_memory_ms, stream.labels.lag_ms if stream.labels else None]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Snapshot:
    """A state's facts: JSON-able `meta` and arrays. On disk: sha256 (hex), then an .npz without pickles."""

    meta: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    @property
    def frontier(self) -> dict[Source, int]:
        return from_kinds(self.meta["frontier"])

    def write(self, path: Path, *, fault: Fault = no_fault) -> None:
        """Write so that the file is either whole or absent, also after a power cut."""
        buffer = io.BytesIO()
        meta = np.frombuffer(json.dumps(self.meta).encode(), np.uint8)
        np.savez(buffer, meta=meta, **self.arrays)  # type: ignore[arg-type]
        payload = buffer.getbuffer()
        temporary = path.with_suffix(".part")
        with open(temporary, "wb") as file:
            file.write(hashlib.sha256(payload).hexdigest().encode())
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        fault("mid_snapshot")
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @classmethod
    def read(cls, path: Path) -> "Snapshot":
        """Read a snapshot.

        Raises:
            RestoreError: the file is damaged.
        """
        content = path.read_bytes()
        digest, payload = content[:64], content[64:]
        if hashlib.sha256(payload).hexdigest().encode() != digest:
            raise RestoreError(
                f"{path.name} is damaged (its sha256 does not match); delete it, an older one or the input is used"
            )
        with np.load(io.BytesIO(payload), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return cls(json.loads(arrays.pop("meta").tobytes()), arrays)
