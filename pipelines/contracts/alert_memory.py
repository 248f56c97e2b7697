"""What a partition remembers of its alerts between two transactions; it is part of the progress record."""

import msgspec


class OpenGroup(msgspec.Struct, frozen=True, array_like=True):
    """A burst of one entity that is not over: the alert that opened it, its counts, and its last event.

    - `group_id`: the `alert_id` of the alert that opened it, at `first_ms` of the arrival clock.
    - `n_published`, `highest_published`: the count and the highest score in the newest message about it.
    - `event_id`, `score`, `offset`, `time_ms`, `arrival_ms`: of its last event.
    """

    entity: str
    group_id: str
    first_ms: int
    count: int
    highest: float
    n_published: int
    highest_published: float
    event_id: str
    score: float
    offset: int
    time_ms: int
    arrival_ms: int


class Overflowed(msgspec.Struct, frozen=True, array_like=True):
    """An alert beyond the cap: the offset of its event and its score."""

    offset: int
    score: float


class CapDay(msgspec.Struct, frozen=True, array_like=True):
    """The newest day (UTC, arrival clock) with alerts, and what it has used of the cap.

    - `day`: days since 1970.
    - `n_alerts`, `highest`: number of full alerts of the day, and the highest score among them.
    - `n_overflow`: number of alerts beyond the cap.
    - `pending`: those of them that are not published yet; `first_ms` and `last_ms` are their first and last arrival.
    """

    day: int
    n_alerts: int = 0
    highest: float = 0.0
    n_overflow: int = 0
    pending: tuple[Overflowed, ...] = ()
    first_ms: int = 0
    last_ms: int = 0


class AlertMemory(msgspec.Struct, frozen=True):
    """The open groups of a partition, the oldest first, and its day; None if there is no cap."""

    groups: tuple[OpenGroup, ...] = ()
    day: CapDay | None = None

    @property
    def n_pending(self) -> int:
        """Number of alerts that no published message counts yet."""
        return sum(g.count - g.n_published for g in self.groups) + (len(self.day.pending) if self.day else 0)
