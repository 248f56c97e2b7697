"""Alert storms: which alerts are published in full, counted in updates, or listed as overflow. No input or output.

Everything depends on the scores of the partition and on its arrivals, in their order. Batches of any size, crashes and
take-overs give the same messages in the same order.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from msgspec.structs import replace

from pipelines.contracts.alert_memory import AlertMemory, CapDay, OpenGroup, Overflowed
from pipelines.contracts.messages import (
    SHORT_TEXT,
    AlertOverflow,
    AlertUpdate,
    Progress,
    RecordSource,
    Score,
    alert_id_of,
    cut,
    rfc3339,
)
from pipelines.contracts.stream import DAY_MS, Stream

MAX_GROUPS = 200  # open at a time in a partition; about 150 bytes each in every progress record
MAX_LISTED = 50  # alerts in an overflow record
MAX_PENDING_MS = 60_000  # that an alert waits for its overflow record, on the arrival clock
KEPT_SHARE = 10  # one part in ten of the cap


class Raised(NamedTuple):
    """A score over the threshold, its row in the block, and the id of its key entity."""

    row: int
    score: Score
    entity: str
    time_ms: int
    arrival_ms: int


class FullAlert(NamedTuple):
    """The row of an alert that is published in full, and the group that it opens."""

    row: int
    group_id: str | None


class Storm:
    """Groups the alerts of one partition and holds them to its daily cap.

    **Groups.** The first alert of an entity is published in full and opens a group, which ends `within_ms` after its
    arrival. Later alerts of the entity are counted in updates: at the counts 2, 4, 8, ..., where the highest score has
    come at least half-way from the last published one to 1, and a closing one if the newest count is not published.
    At most `MAX_GROUPS` are open; beyond that the oldest is closed early.

    **Cap.** Each partition has an equal share of the stream's cap, rounded up. First come, first served, but the last
    tenth of the share (rounded down) is kept for scores at least as high as every full alert of the day. The other
    alerts that would open a group, or each alert where none is grouped, are listed in overflow records: of up to
    `MAX_LISTED` alerts, at most `MAX_PENDING_MS` after the first of them and at the end of the day. Updates are not
    capped.

    Time is the arrival clock, and days are UTC. What is due goes out with the partition's next event, whatever that is.
    """

    def __init__(self, stream: Stream, memory: AlertMemory, *, partition: int, n_partitions: int) -> None:
        self._topic, self._key, self._partition = stream.topic("events"), stream.key, partition
        self._within_ms = stream.storms.within_ms or 0
        self._cap = stream.storms.per_partition(n_partitions)
        self._groups = {group.entity: group for group in memory.groups}  # the oldest first
        self._day = memory.day or CapDay(0)

    @property
    def memory(self) -> AlertMemory | None:
        """What the next batch continues from; None if there is nothing to remember."""
        is_used = self._day.pending or (self._cap is not None and self._day != CapDay(0))
        memory = AlertMemory(tuple(self._groups.values()), self._day if is_used else None)
        return None if memory == AlertMemory() else memory

    def is_grouped(self, entity: str) -> bool:
        """Whether an alert of this entity would be counted in an open group; after `pass_time`."""
        return cut(entity, SHORT_TEXT) in self._groups

    def admit(self, one: Raised) -> Iterator[FullAlert | AlertUpdate | AlertOverflow]:
        """What is published because of the next score over the threshold."""
        yield from self.pass_time(one.arrival_ms)
        entity, day = cut(one.entity, SHORT_TEXT), one.arrival_ms // DAY_MS
        if day > self._day.day:
            self._day = CapDay(day)
        if entity in self._groups:
            yield from self._join(entity, one)
        elif self._is_beyond_cap(one.score.score):
            yield from self._overflow(one)
        else:
            yield from self._open(entity, one)

    def pass_time(self, now_ms: int) -> Iterator[AlertUpdate | AlertOverflow]:
        """What is due at a time of the arrival clock: the ends of groups and overflow records, in the order of time."""
        while min(group_ms := self._group_due_ms(), overflow_ms := self._overflow_due_ms()) <= now_ms:
            yield from self._close_oldest() if group_ms <= overflow_ms else self._list_pending()

    def _group_due_ms(self) -> float:
        oldest = next(iter(self._groups.values()), None)
        return math.inf if oldest is None else oldest.first_ms + self._within_ms

    def _overflow_due_ms(self) -> float:
        day = self._day
        return min(day.first_ms + MAX_PENDING_MS, (day.day + 1) * DAY_MS) if day.pending else math.inf

    def _open(self, entity: str, one: Raised) -> Iterator[FullAlert | AlertUpdate]:
        score = one.score.score
        self._day = replace(self._day, n_alerts=self._day.n_alerts + 1, highest=max(score, self._day.highest))
        if not self._within_ms:
            yield FullAlert(one.row, None)
            return
        if len(self._groups) >= MAX_GROUPS:
            yield from self._close_oldest()
        group_id = alert_id_of(one.score)
        self._groups[entity] = OpenGroup(entity, group_id, one.arrival_ms, 1, score, 1, score, **_last_of(one))
        yield FullAlert(one.row, group_id)

    def _join(self, entity: str, one: Raised) -> Iterator[AlertUpdate]:
        group, score = self._groups[entity], one.score.score
        group = replace(group, count=group.count + 1, highest=max(group.highest, score), **_last_of(one))
        if _is_news(group):
            yield self._update_of(group)
            group = replace(group, n_published=group.count, highest_published=group.highest)
        self._groups[entity] = group

    def _close_oldest(self) -> Iterator[AlertUpdate]:
        group = self._groups.pop(next(iter(self._groups)))
        if group.count > group.n_published:
            yield self._update_of(group, closed=True)

    def _is_beyond_cap(self, score: float) -> bool:
        if self._cap is None:
            return False
        n_left = self._cap - self._day.n_alerts
        return n_left <= 0 or (n_left <= self._cap // KEPT_SHARE and score < self._day.highest)

    def _overflow(self, one: Raised) -> Iterator[AlertOverflow]:
        day, at_ms = self._day, one.arrival_ms
        self._day = replace(
            day,
            n_overflow=day.n_overflow + 1,
            pending=(*day.pending, Overflowed(one.score.source.offset, one.score.score)),
            first_ms=day.first_ms if day.pending else at_ms,
            last_ms=at_ms,
        )
        if len(self._day.pending) >= MAX_LISTED:
            yield from self._list_pending()

    def _list_pending(self) -> Iterator[AlertOverflow]:
        day, self._day = self._day, replace(self._day, pending=())
        yield AlertOverflow(
            day=rfc3339(day.day * DAY_MS)[:10],
            topic=self._topic,
            partition=self._partition,
            n_alerts=day.n_alerts,
            n_overflow=day.n_overflow,
            highest_score=max(one.score for one in day.pending),
            arrival=rfc3339(day.last_ms),
            events=day.pending,
        )

    def _update_of(self, group: OpenGroup, *, closed: bool = False) -> AlertUpdate:
        return AlertUpdate(
            group_id=group.group_id,
            count=group.count,
            highest_score=group.highest,
            closed=closed,
            since=rfc3339(group.first_ms),
            entities={self._key: group.entity},
            event_id=group.event_id,
            score=group.score,
            source=RecordSource(self._topic, self._partition, group.offset),
            event_time=rfc3339(group.time_ms),
            arrival=rfc3339(group.arrival_ms),
        )


def storm_of(stream: Stream, progress: Progress, partition: int) -> Storm | None:
    """The storm that continues from a progress record; None if the stream file limits nothing and nothing is open."""
    memory = progress.alert_memory
    if memory is None and stream.storms.within_ms is None and stream.storms.per_day is None:
        return None
    return Storm(stream, memory or AlertMemory(), partition=partition, n_partitions=progress.n_partitions)


def _last_of(one: Raised) -> dict[str, Any]:
    """The fields of a group about its last event."""
    return {
        "event_id": cut(one.score.event_id, SHORT_TEXT),
        "score": one.score.score,
        "offset": one.score.source.offset,
        "time_ms": one.time_ms,
        "arrival_ms": one.arrival_ms,
    }


def _is_news(group: OpenGroup) -> bool:
    """Whether the newest alert of a group is worth an update: its count is 2, 4, 8, ... or its score is much higher."""
    is_higher = group.highest > group.highest_published
    return group.count & (group.count - 1) == 0 or (
        is_higher and 1 - group.highest <= (1 - group.highest_published) / 2
    )
