"""The outbox: what the fold has left for one partition and the lane has not published yet."""

import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.contracts.contract import Event, Refusal
from pipelines.contracts.messages import Progress
from pipelines.order import Record

MAX_ROWS = 1_000
IDLE_S = 0.25
# What Python takes beside the bytes themselves, measured: a row with its record, an accepted event with its two rows of
# features, each text, each hash, each number of it, and a place.
_ROW_BYTES, _EVENT_BYTES, _TEXT_BYTES, _HASH_BYTES, _NUMBER_BYTES, _PLACE_BYTES = 440, 620, 58, 40, 32, 256


class Row(NamedTuple):
    """One event record after the fold, waiting to be published: scored, refused or a duplicate."""

    record: Record
    arrival_ms: int
    out_of_turn: bool
    event: Event | None = None
    refusal: Refusal | None = None
    duplicate_of: int | None = None
    late_ms: int = 0
    numeric: NDArray[np.float64] | None = None
    categorical: NDArray[np.uint64] | None = None
    features_hash: int = 0

    @property
    def n_bytes(self) -> int:
        """What it takes in memory, roughly."""
        n = _ROW_BYTES + len(self.record.value or b"") + len(self.record.key or b"")
        event = self.event
        if event is not None and self.numeric is not None and self.categorical is not None:
            texts = [text for text in (event.event_id, *event.entity_ids, *event.category_texts) if text]
            n += _EVENT_BYTES + _TEXT_BYTES * len(texts) + sum(map(len, texts)) + _NUMBER_BYTES * len(event.numbers)
            n += _HASH_BYTES * (len(event.entities) + len(event.categories))
            n += 8 * (len(self.numeric) + len(self.categorical))
        elif self.refusal is not None:
            n += _TEXT_BYTES + len(self.refusal.detail)
        return n


class Put(NamedTuple):
    """What one fold left for a partition: its rows, every place told with them, and how far the fold had come."""

    rows: Sequence[Row]
    places: Sequence[list[int]]
    frontier: dict[str, list[int]]


class OutboxBatch(NamedTuple):
    """Whole puts taken from an outbox: rows never go out without the frontier and the places they were folded under."""

    rows: list[Row]
    places: list[list[int]]
    frontier: dict[str, list[int]] | None

    def halves(self) -> "tuple[OutboxBatch, OutboxBatch]":
        """Two batches, the first to go out first: it tells every place, for the frontier of both depends on them."""
        half = len(self.rows) // 2
        return OutboxBatch(self.rows[:half], self.places, self.frontier), OutboxBatch(
            self.rows[half:], [], self.frontier
        )


class Outbox:
    """Rows of one partition between fold and publication, in order. One thread puts, one takes."""

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._puts: deque[Put] = deque()
        self.n_bytes = 0

    def put(self, put: Put) -> None:
        """Append what one fold left; places are told even where no row goes out, for audits to find them."""
        if not put.rows and not put.places:
            return  # the next one tells its own, later frontier
        with self._ready:
            self._puts.append(put)
            self._count(put, 1)
            self._ready.notify()

    def take(self, *, max_rows: int = MAX_ROWS) -> OutboxBatch:
        """Whole puts up to about `max_rows` rows or places, which stay until dropped; none after `IDLE_S` seconds."""
        with self._ready:
            if not self._puts:
                self._ready.wait(IDLE_S)
            rows: list[Row] = []
            places: list[list[int]] = []
            frontier = None
            for put in self._puts:
                rows += put.rows
                places += put.places
                frontier = put.frontier
                if len(rows) >= max_rows or len(places) >= max_rows:
                    break
            return OutboxBatch(rows, places, frontier)

    def wake(self) -> None:
        """Let a waiting `take` return."""
        with self._ready:
            self._ready.notify()

    def drop(self, batch: OutboxBatch) -> None:
        """Forget what `take` gave, or the first half of it: it is out."""
        n_rows, n_places = len(batch.rows), len(batch.places)
        kept: list[Put] = []
        with self._ready:
            while n_rows or n_places:
                put = self._puts.popleft()
                self._count(put, -1)
                rest = put._replace(rows=put.rows[n_rows:], places=put.places[n_places:])
                n_rows -= len(put.rows) - len(rest.rows)
                n_places -= len(put.places) - len(rest.places)
                if rest.rows or rest.places:
                    kept.append(rest)
            for put in reversed(kept):
                self._puts.appendleft(put)
                self._count(put, 1)

    def _count(self, put: Put, sign: int) -> None:
        self.n_bytes += sign * (sum(row.n_bytes for row in put.rows) + _PLACE_BYTES * len(put.places))

    def __len__(self) -> int:
        return len(self._puts)


def progress_after(before: Progress, batch: OutboxBatch) -> Progress:
    """The progress record that goes out with a batch."""
    n_scored = sum(row.event is not None for row in batch.rows)
    n_duplicates = sum(row.duplicate_of is not None for row in batch.rows)
    return msgspec.structs.replace(
        before,
        next_offset=batch.rows[-1].record.offset + 1 if batch.rows else before.next_offset,
        n_scored=before.n_scored + n_scored,
        n_duplicates=before.n_duplicates + n_duplicates,
        n_refused=before.n_refused + len(batch.rows) - n_scored - n_duplicates,
        n_out_of_turn=before.n_out_of_turn + len(batch.places),
        frontier=batch.frontier,
        out_of_turn=batch.places,
    )
