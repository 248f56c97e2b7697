"""Which entities raise no full alert at the moment. Asked only about events over the threshold."""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipelines.contracts.suppression import Suppression

KEPT_MS = 24 * 3_600_000  # after its end: a scorer that is behind still meets events from before it
_SMALLEST = 1_000


class _Held(NamedTuple):
    until_ms: int
    suppression: Suppression


class Suppressions:
    """The suppressions of a stream by entity; of two of an entity the later one holds.

    Those that ended more than `KEPT_MS` ago are forgotten: it has at most twice as many as there are others, or 1,000.

    Lanes ask while another thread adds and removes: each is one step on a dictionary.

    Example:
        >>> ann = Suppression(entity="card", id="7", until="...", by="ann", at="...", why="known travel")
        >>> suppressions = Suppressions()
        >>> suppressions.add(ann, until_ms=1_000)
        >>> events = (("7", 999), ("8", 999), ("7", 1_000))
        >>> [suppressions.of(["card"], [card], arrival_ms) is ann for card, arrival_ms in events]
        [True, False, False]
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], _Held] = {}
        self._most = _SMALLEST  # before those that have ended are looked for

    def __len__(self) -> int:
        return len(self._held)

    def add(self, suppression: Suppression, *, until_ms: int) -> None:
        """Hold a suppression for events that arrive before `until_ms` (ms since 1970)."""
        self._held[suppression.entity, suppression.id] = _Held(until_ms, suppression)
        if len(self._held) >= self._most:
            self._forget(round(time.time() * 1000) - KEPT_MS)
            self._most = max(_SMALLEST, 2 * len(self._held))

    def remove(self, entity: str, id: str) -> None:
        """Let an entity raise alerts again."""
        self._held.pop((entity, id), None)

    def _forget(self, before_ms: int) -> None:
        """Forget those that ended before a time."""
        for key in [key for key, held in self._held.items() if held.until_ms < before_ms]:
            del self._held[key]

    def of(self, entities: Sequence[str], ids: Sequence[str | None], arrival_ms: int) -> Suppression | None:
        """The suppression that concerns an event; None if none does.

        Args:
            entities, ids: the names of its entities, and their ids.
        """
        for entity, id in zip(entities, ids, strict=True):
            held = self._held.get((entity, id)) if id is not None else None
            if held is not None and arrival_ms < held.until_ms:
                return held.suppression
        return None

    def in_effect(self, now_ms: int) -> Iterator[Suppression]:
        """Those that have not ended, the one that ends first first."""
        for held in sorted(self._held.values(), key=lambda held: held.until_ms):
            if held.until_ms > now_ms:
                yield held.suppression
