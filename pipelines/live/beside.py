"""States of a changed stream file, built from log or lake while a scorer goes on with the old one."""

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from types import MappingProxyType

import msgspec

from pipelines.contracts.messages import Progress
from pipelines.contracts.stream import Stream
from pipelines.errors import BrokerError, RestoreError
from pipelines.features.snapshot import Snapshot
from pipelines.features.state import State
from pipelines.kafka.connection import Connection
from pipelines.kafka.letters import refused_earlier
from pipelines.kafka.progress import all_progress
from pipelines.live.input import positions_of
from pipelines.live.replica import Replica, furthest, needed_places
from pipelines.live.shards import shards_of
from pipelines.live.takeover import head_is_gone, places_after
from pipelines.order import EVENT, Frontier, Source, by_kind, from_kinds

SMALL = 20_000  # records: with fewer in the last pass, a restart folds the rest soon enough
MOST_PASSES = 6
IN_HAND_BYTES = 16 << 20  # per partition, of records that wait for those of others
PUBLISHED_S, STALL_S = 10.0, 30.0

OnProgress = Callable[[int, int], None]


def snapshots_beside(
    connection: Connection,
    stream: Stream,
    progress: Mapping[int, Progress],
    bounds: Mapping[Source, tuple[int, int]],
    *,
    topic_ids: Mapping[str, str],
    begun: Mapping[tuple[int, ...], Snapshot] = MappingProxyType({}),
    on_progress: OnProgress | None = None,
) -> list[tuple[tuple[int, ...], Snapshot]]:
    """Fold the log with a changed stream file up to what is published: partitions with their snapshot.

    Nothing is written, so a scorer with the old file is not disturbed. What it publishes meanwhile is folded in further
    passes, until little is left.

    Args:
        stream: the changed one.
        progress: the last record of every partition.
        bounds: first and end offset of each source in Kafka.
        topic_ids: stored in the snapshots.
        begun: states to go on with, for all partitions that are folded together; without them, from the beginning.
        on_progress: called with the number of records folded and the number known so far.

    Raises:
        RestoreError: Kafka has deleted the beginning of the input, or what was folded does not get published.
        BrokerError: Kafka does not answer.
    """
    n = len(progress)
    states = [State.restore(stream, snapshot) for snapshot in begun.values()]
    origin = from_kinds(progress[0].origin)
    if not states and (why := head_is_gone(stream, origin, bounds)):
        raise RestoreError(why)
    for partitions in () if states else shards_of(stream, n):
        state = State(stream, n, partitions=partitions)
        state.frontier = {source: at for source, at in origin.items() if source.partition in partitions}
        state.topic_ids = dict(topic_ids)
        states.append(state)
    n_folded = 0
    for _ in range(MOST_PASSES):
        promised, now = _published(connection, stream, n)
        n_left = sum(max(promised.get(s, 0) - at, 0) for state in states for s, at in state.frontier.items())
        total = n_folded + n_left
        for state in states:
            of_state = {p: now[p] for p in state.partitions}
            for n_more in _folded(connection, state, of_state, promised):
                n_folded += n_more
                if on_progress:
                    on_progress(n_folded, max(total, n_folded))
        if n_left < SMALL:
            break
    return [(state.partitions, state.snapshot()) for state in states]


def _published(connection: Connection, stream: Stream, n_partitions: int) -> tuple[Frontier, dict[int, Progress]]:
    """A frontier up to which everything is published, and the progress then."""
    target: Frontier | None = None
    until_s = time.monotonic() + PUBLISHED_S
    while time.monotonic() < until_s:
        found = all_progress(connection, stream, n_partitions)
        now = {p: record for p, record in found.items() if record is not None}
        target = target or furthest(now) or {}
        if all(record.next_offset >= target.get(Source(EVENT, p), 0) for p, record in now.items()):
            return target, now
        time.sleep(0.1)
    raise RestoreError("events that a scorer has folded are not published: it does not run, or stands still")


def _folded(
    connection: Connection, state: State, progress: Mapping[int, Progress], promised: Frontier
) -> Iterator[int]:
    """Fold everything before a frontier; yields the number of records of each step."""
    stream = state.stream
    ends = {source: promised.get(source, 0) for source in state.frontier}
    frontier = by_kind(ends, state.n_partitions)
    # What the old rules refused stays refused, up to the switch.
    as_changed = {
        p: msgspec.structs.replace(one, definition_start=one.next_offset, frontier=frontier)
        for p, one in progress.items()
    }
    first = {source.partition: at for source, at in state.frontier.items() if source.kind == EVENT}
    replica = Replica(
        state,
        as_changed,
        places_after(connection, stream, progress, needed_places(state)),
        refused=refused_earlier(connection, stream, as_changed, first),
    )
    positions = positions_of(stream, ends)
    sources = {position: source for source, position in positions.items()}
    unread = {positions[source]: at for source, at in state.frontier.items() if at < ends[source]}
    if not unread:
        return
    with connection.reading(unread) as reader:
        moved_s, before = time.monotonic(), -1
        while any(state.frontier[source] < end for source, end in ends.items()):
            for position, records in groupby(reader.poll(timeout_ms=200), key=lambda one: (one.topic, one.partition)):
                replica.merge.add(sources[position], list(records))
            n_before = replica.counters.n_folded
            for _ in replica.advance():
                pass
            if replica.counters.n_folded > n_before:
                yield replica.counters.n_folded - n_before
            hoards = {positions[source] for source in replica.merge.hoards(IN_HAND_BYTES)}
            reader.hold(hoards & unread.keys())
            if (n_read := sum(reader.position(position) for position in unread)) != before:
                moved_s, before = time.monotonic(), n_read
            elif time.monotonic() - moved_s > STALL_S:
                raise BrokerError(f"{connection.bootstrap} sent no records for {STALL_S:g} s, but more are expected")
