"""The fold: updates the state with accepted events and labels in the one order, and computes feature rows."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipelines.contracts.block import Block
from pipelines.contracts.stream import DAY_MS, HOUR_MS, Stream
from pipelines.errors import InternalError, RestoreError
from pipelines.features.duplicates import Duplicates
from pipelines.features.id_log import ID_KEY_BYTES, hash_ids
from pipelines.features.layout import FoldInput
from pipelines.features.pieces import Pieces, joined
from pipelines.features.plan import FeaturePlan
from pipelines.features.reports import Reports, strengths_of
from pipelines.features.snapshot import Snapshot, frontier_of
from pipelines.features.windows import Windows
from pipelines.order import KIND_NAMES, Key, Run, Source, by_kind, sources

_ROWS = 1 << 16  # copied at a time, where nobody waits


def plan_of(stream: Stream, entity: str | None = None) -> FeaturePlan:
    """The stream's window features, compiled; or those of one of its entities."""
    return FeaturePlan.of(
        [f for f in stream.features if entity in (None, f.entity)],
        entities=stream.entities if entity is None else (entity,),
        numbers=stream.numbers,
        hashed=stream.hashed,
        maturity_ms=stream.labels.maturity_ms if stream.labels else None,
        reports=stream.labels.reports if stream.labels else "frauds",
        lifetime_ms=stream.lifetime_memory_ms,
    )


class Records(NamedTuple):
    """What is needed of n accepted records, in the one order, to decide about them; `ids` has the shape (n, 2)."""

    is_event: NDArray[np.bool_]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    clock_ms: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    ids: NDArray[np.uint64]
    label: NDArray[np.int8]
    strength: NDArray[np.int64]  # of the source of a label

    @classmethod
    def of(cls, block: Block, rows: NDArray[np.int64], stream: Stream, id_key: bytes) -> Self:
        """Those in some rows of a block; `id_key` is the key for hashing event ids."""
        is_event, strength = block.is_event[rows], np.zeros(len(rows), np.int64)
        strength[~is_event] = strengths_of(stream.labels, block.label_source[rows[~is_event]].tolist())
        ids = hash_ids(block.event_id[rows].tolist(), id_key)
        places = (block.partition[rows], block.offset[rows], block.clock_ms[rows], block.time_ms[rows])
        return cls(is_event, *places, ids, block.label[rows], strength)

    def take(self, rows: NDArray[np.bool_]) -> "Records":
        """The records of a mask."""
        return Records._make(column[rows] for column in self)


class Decided(NamedTuple):
    """What is decided about n records.

    `duplicate_of` is the offset of the original event (-1: none), `late_ms` the lateness of an event, `changes` what a
    label changes in the number of known frauds and of known legitimate events, shape (n, 2).
    """

    duplicate_of: NDArray[np.int64]
    late_ms: NDArray[np.int64]
    changes: NDArray[np.int8]


class State:
    """The state of a stream: raw facts without model outputs, a function of the log up to its frontier.

    Its size is bounded: windows by panes and idle time, duplicates and labels by time and number.

    Args:
        n_partitions: number of partitions of the stream.
        partitions: those that are folded; all by default.
        id_key: key for hashing event ids; random by default.
    """

    def __init__(
        self,
        stream: Stream,
        n_partitions: int,
        *,
        partitions: Sequence[int] | None = None,
        id_key: bytes | None = None,
    ) -> None:
        self.stream = stream
        self.n_partitions = n_partitions
        self.partitions = tuple(range(n_partitions) if partitions is None else partitions)
        self.id_key = os.urandom(ID_KEY_BYTES) if id_key is None else id_key
        self.plan = plan_of(stream)
        self.digest = _definition_digest(stream, self.plan)
        self.windows = Windows(self.plan)
        every = sources(n_partitions, labels=stream.labels is not None)
        self.frontier: dict[Source, int] = dict.fromkeys((s for s in every if s.partition in self.partitions), 0)
        self.arrivals: dict[Source, int] = dict.fromkeys(self.frontier, 0)
        self.last: Key | None = None
        self.clock_ms = 0
        self.watermark_ms = [0] * n_partitions
        self.topic_ids: dict[str, str] = {}  # Kafka's ids of the input topics by kind, if the broker supports them
        # [kind, partition, offset, place...] of out-of-turn records that are not in a progress record yet
        self.places: list[list[int]] = []
        self.clock_offset = 0  # of the first mark of the order that may not be folded
        self._seen = Duplicates(stream.duplicate_memory_ms, stream.duplicate_memory_ids)
        self._reported = Reports(
            self.plan.report_memory_ms,
            stream.duplicate_memory_ids,
            both=stream.labels is not None and stream.labels.reports == "both",
        )
        self._steps_begun = 0

    @property
    def nbytes(self) -> int:
        """Allocated memory in bytes."""
        return self.windows.nbytes + self._seen.nbytes + self._reported.nbytes

    @property
    def remembered(self) -> dict[str, int]:
        """Number of ids and labels remembered, and of those dropped early because there were too many."""
        return {
            "ids": self._seen.n_held(self.clock_ms),
            "ids_evicted": self._seen.n_evicted,
            "reports": self._reported.n_held(self.clock_ms),
            "reports_evicted": self._reported.n_evicted,
        }

    @contextmanager
    def step(self) -> Iterator[None]:
        """A state update. After an exception inside, the state is incomplete and no snapshot can be taken."""
        self._steps_begun += 1
        yield
        self._steps_begun -= 1

    def fold(self, block: Block) -> Block:
        """Update the state with the next records in the one order; refused records do not change it.

        Returns:
            The same records, with `duplicate_of`, `late_ms`, `numeric` and `features_hash` of the events among them.

        Raises:
            InternalError: an event was folded before.
        """
        with self.step():
            return self._fold(block)

    def _fold(self, block: Block) -> Block:
        accepted = np.flatnonzero(block.is_accepted)
        records = Records.of(block, accepted, self.stream, self.id_key)
        decided = self.decide(records)
        is_new = decided.duplicate_of < 0  # labels, and events that repeat none
        items, scored = accepted[is_new], accepted[is_new & records.is_event]
        late_ms = np.zeros(len(block), np.int64)
        late_ms[accepted] = decided.late_ms
        windows = self.windows.fold(
            FoldInput(
                records.is_event[is_new],
                block.clock_ms[items],
                block.time_ms[items],
                block.entity_hashes[items],
                block.numbers[items],
                np.concatenate([block.category_hashes[items], block.entity_hashes[items]], axis=1),
                decided.changes[is_new, 0],
                decided.changes[is_new, 1],
            )
        )
        features = feature_rows(block.numbers[scored], block.time_ms[scored], windows)
        numeric = np.full((len(block), features.shape[1]), np.nan)
        numeric[scored] = features
        features_hash = np.zeros(len(block), np.uint64)
        features_hash[scored] = hash_rows(features, block.category_hashes[scored])
        duplicate_of = block.duplicate_of.copy()
        duplicate_of[accepted] = decided.duplicate_of
        return replace(block, duplicate_of=duplicate_of, late_ms=late_ms, numeric=numeric, features_hash=features_hash)

    def decide(self, records: "Records") -> "Decided":
        """The part of the fold before the windows: update what is remembered of ids, labels and watermarks.

        Raises:
            InternalError: an event was folded before.
        """
        is_event, offset, clock_ms = records.is_event, records.offset, records.clock_ms
        n = len(is_event)
        duplicate_of, late_ms = np.full(n, -1, np.int64), np.zeros(n, np.int64)
        changes = np.zeros((n, 2), np.int8)
        duplicate_of[is_event] = self._seen.first_offsets(
            records.ids[is_event], records.partition[is_event], offset[is_event], clock_ms[is_event]
        )
        if np.any(twice := is_event & (duplicate_of == offset)):
            row = np.argmax(twice)
            raise InternalError(
                f"the event at offset {offset[row]} of partition {records.partition[row]} was folded twice"
            )
        is_label = ~is_event
        changes[is_label] = self._reported.changes(
            records.ids[is_label],
            clock_ms[is_label],
            records.time_ms[is_label],
            records.label[is_label],
            records.strength[is_label],
        )
        scored = is_event & (duplicate_of < 0)
        late_ms[scored] = self._lateness(records.partition[scored], records.time_ms[scored])
        if n:
            self.clock_ms = int(clock_ms[-1])
        return Decided(duplicate_of, late_ms, changes)

    def _lateness(self, partition: NDArray[np.int32], time_ms: NDArray[np.int64]) -> NDArray[np.int64]:
        """Lateness of each event against the newest one of its partition before it, ms; updates the watermarks."""
        late_ms = np.empty(len(time_ms), np.int64)
        for p in np.unique(partition).tolist():
            of_p = partition == p
            newest = np.maximum.accumulate(np.append(self.watermark_ms[p], time_ms[of_p]))
            late_ms[of_p] = np.maximum(newest[:-1] - time_ms[of_p], 0)
            self.watermark_ms[p] = int(newest[-1])
        return late_ms

    def passed(self, run: Run) -> None:
        """Move the frontier past records in the one order, accepted or refused."""
        if not len(run):
            return
        each = run.kind.astype(np.int64) << 32 | run.partition  # one number for each source: np.unique of rows is slow
        _, from_the_end = np.unique(each[::-1], return_index=True)
        for row in (len(run) - 1 - from_the_end).tolist():  # the last of each
            source, offset = Source(int(run.kind[row]), int(run.partition[row])), int(run.offset[row])
            assert offset >= self.frontier[source], (
                f"{source} was folded up to {self.frontier[source]}, but the next record has offset {offset}"
            )
            self.frontier[source] = offset + 1
            self.arrivals[source] = int(run.arrival_ms[row])
        self.last = run.place_of(len(run) - 1)

    def copy(self, since: "Base | None" = None) -> "StateCopy":
        """Begin a copy of the state as it is now, to be made in steps while events are folded.

        Args:
            since: the last whole copy that began; only what changed since is copied.

        Raises:
            InternalError: an update is incomplete; its events would be taken for duplicates after a restart.
        """
        if self._steps_begun:
            raise InternalError("a state update failed or is still running; no snapshot can be taken")
        logs = {"seen": self._seen, "reported": self._reported}
        spans = {name: log.span(self.clock_ms) for name, log in logs.items()}
        ends = since.ends if since else dict.fromkeys(logs, 0)
        entries = {name: log.snapshot(self.clock_ms, since=ends[name]) for name, log in logs.items()}
        meta: dict[str, Any] = {
            "definition": self.digest,
            "n_partitions": self.n_partitions,
            "partitions": None if len(self.partitions) == self.n_partitions else list(self.partitions),
            "topic_ids": dict(self.topic_ids),
            "frontier": by_kind(self.frontier, self.n_partitions),
            "arrivals": by_kind(self.arrivals, self.n_partitions),
            "last": list(self.last) if self.last else None,
            "clock_ms": self.clock_ms,
            "watermark_ms": list(self.watermark_ms),
            "places": list(self.places),
            "clock_offset": self.clock_offset,
            "id_key": self.id_key.hex(),
            "evicted": [self._seen.n_evicted, self._reported.n_evicted],
        }
        # A state is a function of the log up to its frontier, and of its key.
        meta["id"] = hashlib.sha256(json.dumps(meta).encode()).hexdigest()[:32]
        meta["base"] = None if since is None else {"id": since.id, "skipped": since.skipped(spans)}
        return StateCopy(meta, entries, self.windows, spans)

    def snapshot(self) -> "Snapshot":
        """A copy that later folds do not change.

        Raises:
            InternalError: an update is incomplete; its events would be taken for duplicates after a restart.
        """
        copy = self.copy()
        while not copy.is_whole:
            copy.step(_ROWS)
        return Snapshot(copy.meta, joined(copy.parts()))

    @classmethod
    def restore(cls, stream: Stream, snapshot: "Snapshot") -> Self:
        """Restore the state from a snapshot; later results are bit-equal to those without a restart.

        Raises:
            RestoreError: the snapshot has another feature definition.
        """
        meta, arrays = snapshot.meta, snapshot.arrays
        state = cls(
            stream, meta["n_partitions"], partitions=meta.get("partitions"), id_key=bytes.fromhex(meta["id_key"])
        )
        if meta["definition"] != state.digest:
            raise RestoreError(
                "the snapshot was made with different fields or features; run `unmask recover` to rebuild the state"
            )
        first = (snapshot.base or snapshot).arrays
        state.windows = Windows.restore(state.plan, _of_windows(first))
        logs = {name: first[name] for name in ("seen", "reported")}
        if snapshot.base is not None:
            state.windows.apply(_of_windows(arrays))
            skipped = meta["base"]["skipped"]
            logs = {name: log.followed_by(arrays[name], skipped=skipped[name]) for name, log in logs.items()}
        state._seen.restore(logs["seen"])
        state._reported.restore(logs["reported"])
        state._seen.n_evicted, state._reported.n_evicted = meta["evicted"]
        state.topic_ids = dict(meta["topic_ids"])
        state.frontier = {s: meta["frontier"][KIND_NAMES[s.kind]][s.partition] for s in state.frontier}
        state.arrivals = {s: meta["arrivals"][KIND_NAMES[s.kind]][s.partition] for s in state.frontier}
        state.topic_ids = dict(meta.get("topic_ids", {}))
        state.last = Key(*meta["last"]) if meta["last"] else None
        state.clock_ms = meta["clock_ms"]
        state.watermark_ms = list(meta["watermark_ms"])
        state.places = list(meta["places"])
        state.clock_offset = meta.get("clock_offset", 0)
        return state


class Base(NamedTuple):
    """What a later copy must know of a whole one: its id, and the numbers of the entries that it has of each log."""

    id: str
    spans: Mapping[str, tuple[int, int]]

    @property
    def ends(self) -> dict[str, int]:
        """Per log: number of the first entry that the copy does not have."""
        return {name: end for name, (_, end) in self.spans.items()}

    def skipped(self, spans: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        """Per log: how many of its oldest entries are not valid any more, from the numbers of those that are."""
        return {name: min(max(spans[name][0], first), end) - first for name, (first, end) in self.spans.items()}


class StateCopy:
    """A copy of a state as it was at one moment, made in steps while events are folded."""

    def __init__(
        self,
        meta: dict[str, Any],
        logs: Mapping[str, Pieces],
        windows: Windows,
        spans: Mapping[str, tuple[int, int]],
    ) -> None:
        self.meta, self.as_base = meta, Base(meta["id"], spans)
        self._logs = deque((name, part) for name, pieces in logs.items() for part in pieces.parts())
        self._windows, self._copy = windows, windows.copy(changes=meta["base"] is not None)

    @property
    def frontier(self) -> dict[Source, int]:
        """Next offset of every source, at that moment."""
        return frontier_of(self.meta)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left to be copied."""
        return self._copy.is_whole

    def step(self, n_rows: int) -> None:
        """Copy some more rows."""
        self._copy.step(n_rows)

    def parts(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """What was copied since the last call: named parts of arrays. The ids of a log are never changed, so they are
        not copied."""
        while self._logs:
            yield self._logs.popleft()
        while self._copy.ready:
            name, part = self._copy.ready.popleft()
            yield f"windows/{name}", part

    def abandon(self) -> None:
        """Give the copy up."""
        self._windows.abandon(self._copy)


def _of_windows(arrays: Mapping[str, Pieces]) -> dict[str, Pieces]:
    return {k.removeprefix("windows/"): v for k, v in arrays.items() if k.startswith("windows/")}


def feature_rows(
    numbers: NDArray[np.float64], time_ms: NDArray[np.int64], windows: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The numeric features of n events, shape (n, d): their numbers, the calendar, the window features."""
    return np.concatenate([numbers, _calendar(time_ms), windows], axis=1)


def hash_rows(numeric: NDArray[np.float64], categorical: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64-bit xxh3 hash of the bytes of each feature row."""
    rows = np.concatenate([np.ascontiguousarray(numeric).view(np.uint64), categorical], axis=1)
    width, data = rows.shape[1] * 8, memoryview(np.ascontiguousarray(rows).tobytes())
    return np.fromiter(
        (xxhash.xxh3_64_intdigest(data[i : i + width]) for i in range(0, len(data), width)), np.uint64, len(rows)
    )


def _calendar(time_ms: NDArray[np.int64]) -> NDArray[np.float64]:
    """Hour of the day (UTC, 0 <= hour < 24) and weekday (Monday 0), shape (n, 2)."""
    return np.stack([(time_ms % DAY_MS) / HOUR_MS, ((time_ms // DAY_MS + 3) % 7).astype(np.float64)], axis=1)


def _definition_digest(stream: Stream, plan: FeaturePlan) -> str:
    """Digest of everything that determines the feature rows of a log: contract, features and memory limits."""
    contract = [stream.event_id, stream.event_time, stream.future_tolerance_ms, stream.max_message_bytes]
    contract += [[f.name, f.type, f.required, f.min, f.max, f.max_length] for f in stream.fields]
    memory = [stream.duplicate_memory_ms, stream.duplicate_memory_ids]
    parts: list[Any] = [plan.digest, contract, memory, stream.labels.lag_ms if stream.labels else None]
    if stream.labels and stream.labels.sources:
        parts.append(list(stream.labels.sources))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
