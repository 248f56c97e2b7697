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


def plan_of(stream: Stream) -> FeaturePlan:
    """The stream's window features, compiled."""
    return FeaturePlan.of(
        stream.features,
        entities=stream.entities,
        numbers=stream.numbers,
        hashed=stream.hashed,
        maturity_ms=stream.labels.maturity_ms if stream.labels else None,
        reports=stream.labels.reports if stream.labels else "frauds",
        lifetime_ms=stream.lifetime_memory_ms,
    )


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
        is_event = block.is_event[accepted]
        originals, changes = self._looked_up(block, accepted, is_event)
        is_new = originals < 0  # labels, and events that repeat none
        items, scored = accepted[is_new], accepted[is_new & is_event]
        late_ms = np.zeros(len(block), np.int64)
        late_ms[scored] = self._lateness(block.partition[scored], block.time_ms[scored])
        if len(accepted):
            self.clock_ms = int(block.clock_ms[accepted[-1]])
        windows = self.windows.fold(
            FoldInput(
                is_event[is_new],
                block.clock_ms[items],
                block.time_ms[items],
                block.entity_hashes[items],
                block.numbers[items],
                np.concatenate([block.category_hashes[items], block.entity_hashes[items]], axis=1),
                changes[is_new, 0],
                changes[is_new, 1],
            )
        )
        features = np.concatenate([block.numbers[scored], _calendar(block.time_ms[scored]), windows], axis=1)
        numeric = np.full((len(block), features.shape[1]), np.nan)
        numeric[scored] = features
        features_hash = np.zeros(len(block), np.uint64)
        features_hash[scored] = hash_rows(features, block.category_hashes[scored])
        duplicate_of = block.duplicate_of.copy()
        duplicate_of[accepted] = originals
        return replace(block, duplicate_of=duplicate_of, late_ms=late_ms, numeric=numeric, features_hash=features_hash)

    def _looked_up(
        self, block: Block, rows: NDArray[np.int64], is_event: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
        """For some rows: offset of the original of each event (-1: none), and the changes by each label, (n, 2)."""
        ids = hash_ids(block.event_id[rows].tolist(), self.id_key)
        originals, changes = np.full(len(rows), -1, np.int64), np.zeros((len(rows), 2), np.int8)
        events, labels = rows[is_event], rows[~is_event]
        originals[is_event] = self._seen.first_offsets(
            ids[is_event], block.partition[events], block.offset[events], block.clock_ms[events]
        )
        if np.any(twice := is_event & (originals == block.offset[rows])):
            row = rows[np.argmax(twice)]
            raise InternalError(
                f"the event at offset {block.offset[row]} of partition {block.partition[row]} was folded twice"
            )
        changes[~is_event] = self._reported.changes(
            ids[~is_event],
            block.clock_ms[labels],
            block.time_ms[labels],
            block.label[labels],
            strengths_of(self.stream.labels, block.label_source[labels].tolist()),
        )
        return originals, changes

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
