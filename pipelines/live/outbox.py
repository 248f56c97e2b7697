"""The outbox: folded events of one partition that no lane, here or in another replica, has published yet."""

import threading
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import NamedTuple

import msgspec
import numpy as np

from pipelines.contracts.alert_memory import AlertMemory
from pipelines.contracts.block import Block
from pipelines.contracts.messages import Progress

MAX_ROWS = 1_000
IDLE_S = 0.25
_MAX_TOLD_AHEAD = 100_000
_PLACE_BYTES = 256  # measured memory of a place


@dataclass(frozen=True)
class Put:
    """The result of one fold for a partition: its events, the places to record with them, and the frontier after it.

    `clock_offset`: of the first mark in the clock topic that may not be done at this frontier.
    """

    rows: Block
    places: Sequence[list[int]]
    frontier: dict[str, list[int]]
    clock_offset: int = 0

    @cached_property
    def n_bytes(self) -> int:
        """Approximate memory of the put."""
        return self.rows.n_bytes + _PLACE_BYTES * len(self.places)


class OutboxBatch(NamedTuple):
    """Whole puts from an outbox: rows are always published with the frontier and the places of their fold."""

    rows: Block
    places: list[list[int]]
    frontier: dict[str, list[int]]
    clock_offset: int = 0

    def halves(self) -> "tuple[OutboxBatch, OutboxBatch]":
        """Split into two batches. The first records all places, because the frontier of both depends on them."""
        half = len(self.rows) // 2
        first, second = self.rows.take(slice(half)), self.rows.take(slice(half, None))
        return self._replace(rows=first), self._replace(rows=second, places=[])


class Outbox:
    """Events of one partition between fold and publication, in order. One thread puts, one takes.

    While another replica owns the partition, `cover` drops what it has published, so that a take-over goes on here.

    Args:
        is_warm: whether events are put here while another replica owns the partition.
    """

    def __init__(self, *, is_warm: bool = True) -> None:
        self.is_warm = is_warm
        self._ready = threading.Condition()
        self._puts: deque[Put] = deque()
        self.n_bytes = 0
        self.next_offset = 0  # what lies before it is published
        self.complete_from = 0  # rows before it are missing if they are not published
        self.told_until = 0  # the progress records before this offset have been regarded
        self._told_ahead: dict[tuple[int, ...], None] = {}  # places told by others that were not put here yet

    def restart(self, next_offset: int) -> None:
        """Drop everything; what lies before an offset is published."""
        with self._ready:
            self._puts.clear()
            self.n_bytes = 0
            self.next_offset = self.complete_from = next_offset

    def put(self, put: Put) -> None:
        """Append the put of one fold. Places are recorded even if there is no row to publish: audits need them."""
        with self._ready:
            if len(put.rows) and put.rows.offset[0] < self.next_offset:
                put = _after(put, self.next_offset)
            if self._told_ahead and put.places:
                put = replace(put, places=[place for place in put.places if not self._was_told(place)])
            if not len(put.rows) and not put.places:
                return  # the next put has its own, later frontier
            self._puts.append(put)
            self.n_bytes += put.n_bytes
            self._ready.notify()

    def take(self, *, max_rows: int = MAX_ROWS) -> OutboxBatch | None:
        """Whole puts of up to about `max_rows` rows or places, which stay until dropped; None if there are none.

        Waits for at most `IDLE_S` seconds.
        """
        with self._ready:
            if not self._puts:
                self._ready.wait(IDLE_S)
            taken: list[Put] = []
            n_rows, places = 0, list[list[int]]()
            for put in self._puts:
                taken.append(put)
                n_rows += len(put.rows)
                places += put.places
                if n_rows >= max_rows or len(places) >= max_rows:
                    break
        if not taken:
            return None
        rows, last = Block.concat([put.rows for put in taken]), taken[-1]
        return OutboxBatch(rows, places, last.frontier, last.clock_offset)

    def cover(self, next_offset: int, told: Collection[tuple[int, ...]] = ()) -> None:
        """Drop the rows before an offset and the places (kind, partition, offset) that another replica published.

        A place that is not told yet goes on with the next rows: their features depend on it.
        """
        with self._ready:
            self.next_offset = max(self.next_offset, next_offset)
            puts, self._puts, self.n_bytes = self._puts, deque(), 0
            carried: list[list[int]] = []
            self._told_ahead |= dict.fromkeys(told)
            for put in puts:
                if put is not puts[-1] and not told and not carried and self._is_kept(put):
                    self._keep(put)
                    continue
                rows = put.rows if self._is_kept(put) else _after(put, self.next_offset).rows
                carried += [place for place in put.places if not self._was_told(place)]
                if len(rows) or (put is puts[-1] and carried):
                    self._keep(Put(rows, carried, put.frontier, put.clock_offset))
                    carried = []

            while len(self._told_ahead) > _MAX_TOLD_AHEAD:
                del self._told_ahead[next(iter(self._told_ahead))]

    def _was_told(self, place: Sequence[int]) -> bool:
        return self._told_ahead.pop((*place[:3],), self) is None

    def _is_kept(self, put: Put) -> bool:
        return not len(put.rows) or int(put.rows.offset[0]) >= self.next_offset

    def _keep(self, put: Put) -> None:
        self._puts.append(put)
        self.n_bytes += put.n_bytes

    def shed(self) -> None:
        """Drop everything, for want of memory. Only a restored state can publish these rows then."""
        with self._ready:
            for put in self._puts:
                if len(put.rows):
                    self.complete_from = int(put.rows.offset[-1]) + 1
            self._puts.clear()
            self.n_bytes = 0

    def waiting(self) -> tuple[int, int | None]:
        """Number of rows, and the arrival of the oldest one, ms."""
        with self._ready:
            filled = [put.rows for put in self._puts if len(put.rows)]
        return sum(map(len, filled)), int(filled[0].arrival_ms[0]) if filled else None

    def wake(self) -> None:
        """Make a waiting `take` return."""
        with self._ready:
            self._ready.notify()

    def drop(self, batch: OutboxBatch) -> None:
        """Remove the batch that `take` returned, or its first half, after it was published."""
        n_rows, n_places = len(batch.rows), len(batch.places)
        kept: list[Put] = []
        with self._ready:
            while n_rows or n_places:
                put = self._puts.popleft()
                self.n_bytes -= put.n_bytes
                if len(put.rows) > n_rows or len(put.places) > n_places:
                    rows, places = put.rows.take(slice(n_rows, None)), put.places[n_places:]
                    kept.append(Put(rows, places, put.frontier, put.clock_offset))
                n_rows -= min(n_rows, len(put.rows))
                n_places -= min(n_places, len(put.places))
            for put in reversed(kept):
                self._puts.appendleft(put)
                self.n_bytes += put.n_bytes

    def __len__(self) -> int:
        return len(self._puts)


def _after(put: Put, offset: int) -> Put:
    """The put without the rows before an offset; the offsets of its rows ascend."""
    first = int(np.searchsorted(put.rows.offset, offset))
    return Put(put.rows.take(slice(first, None)), put.places, put.frontier, put.clock_offset)


def later(one: Mapping[str, list[int]], other: Mapping[str, list[int]] | None) -> dict[str, list[int]]:
    """The later of two frontiers of the same order.

    >>> later({"events": [3, 1]}, {"events": [2, 1]})
    {'events': [3, 1]}
    """
    other = other or {}
    return {
        kind: [max(pair) for pair in zip_longest(row, other.get(kind, ()), fillvalue=0)] for kind, row in one.items()
    }


def progress_after(before: Progress, batch: OutboxBatch, model: str, alert_memory: AlertMemory | None) -> Progress:
    """The progress record that is published with a batch.

    Args:
        model: digest of the model that scored it.
        alert_memory: that after its alerts.
    """
    rows = batch.rows
    n_scored, n_duplicates = int(rows.is_scored.sum()), int(rows.is_duplicate.sum())
    return msgspec.structs.replace(
        before,
        model=model,
        next_offset=int(rows.offset[-1]) + 1 if len(rows) else before.next_offset,
        n_scored=before.n_scored + n_scored,
        n_duplicates=before.n_duplicates + n_duplicates,
        n_refused=before.n_refused + len(rows) - n_scored - n_duplicates,
        n_out_of_turn=before.n_out_of_turn + len(batch.places),
        frontier=later(batch.frontier, before.frontier),
        clock_offset=max(batch.clock_offset, before.clock_offset),
        out_of_turn=batch.places,
        alert_memory=alert_memory,
    )
