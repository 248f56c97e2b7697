"""Model rows of the peers, by the window kernel of Unmask alone: no contract, no one order, no duplicates."""

from __future__ import annotations

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipelines.contracts.stream import DAY_MS, HOUR_MS, Stream
from pipelines.features.layout import FoldInput
from pipelines.features.plan import FeaturePlan
from pipelines.features.windows import Windows
from tests.bench.stream.events import Event


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
