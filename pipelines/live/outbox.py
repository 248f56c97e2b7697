"""The outbox: folded events of one partition that its lane has not published yet."""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import msgspec

from pipelines.contracts.block import Block
from pipelines.contracts.messages import Progress

MAX_ROWS = 1_000
IDLE_S = 0.25
_PLACE_BYTES = 256  # measured memory of a place


@dataclass(frozen=True)
class Put:
    """The result of one fold for a partition: its events, the places to record with them, and the frontier after it."""

    rows: Block
    places: Sequence[list[int]]
    frontier: dict[str, list[int]]

    @cached_property
    def n_bytes(self) -> int:
        """Approximate memory of the put."""
        return self.rows.n_bytes + _PLACE_BYTES * len(self.places)


class OutboxBatch(NamedTuple):
    """Whole puts from an outbox: rows are always published with the frontier and the places of their fold."""

    rows: Block
    places: list[list[int]]
    frontier: dict[str, list[int]]

    def halves(self) -> "tuple[OutboxBatch, OutboxBatch]":
        """Split into two batches. The first records all places, because the frontier of both depends on them."""
        half = len(self.rows) // 2
        first, second = self.rows.take(slice(half)), self.rows.take(slice(half, None))
        return self._replace(rows=first), self._replace(rows=second, places=[])


class Outbox:
    """Events of one partition between fold and publication, in order. One thread puts, one takes."""

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._puts: deque[Put] = deque()
        self.n_bytes = 0

    def put(self, put: Put) -> None:
        """Append the put of one fold. Places are recorded even if there is no row to publish: audits need them."""
        if not len(put.rows) and not put.places:
            return  # the next put has its own, later frontier
        with self._ready:
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
        return OutboxBatch(Block.concat([put.rows for put in taken]), places, taken[-1].frontier)

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
                    kept.append(Put(put.rows.take(slice(n_rows, None)), put.places[n_places:], put.frontier))
                n_rows -= min(n_rows, len(put.rows))
                n_places -= min(n_places, len(put.places))
            for put in reversed(kept):
                self._puts.appendleft(put)
                self.n_bytes += put.n_bytes

    def __len__(self) -> int:
        return len(self._puts)


def progress_after(before: Progress, batch: OutboxBatch) -> Progress:
    """The progress record that is published with a batch."""
    rows = batch.rows
    n_scored, n_duplicates = int(rows.is_scored.sum()), int(rows.is_duplicate.sum())
    return msgspec.structs.replace(
        before,
        next_offset=int(rows.offset[-1]) + 1 if len(rows) else before.next_offset,
        n_scored=before.n_scored + n_scored,
        n_duplicates=before.n_duplicates + n_duplicates,
        n_refused=before.n_refused + len(rows) - n_scored - n_duplicates,
        n_out_of_turn=before.n_out_of_turn + len(batch.places),
        frontier=batch.frontier,
        out_of_turn=batch.places,
    )
