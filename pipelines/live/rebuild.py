"""Rebuilds the state from the lake, if no snapshot can be used and Kafka has deleted the beginning of the input."""

from collections.abc import Callable, Mapping, Sequence

import polars as pl

from pipelines.contracts.messages import Progress
from pipelines.contracts.stream import Stream
from pipelines.errors import RestoreError
from pipelines.features.snapshot import Snapshot
from pipelines.features.state import State
from pipelines.lake.replay import CHUNK, PLACE, at_or_after, block_in_order, of_source, placed
from pipelines.lake.tables import Lake
from pipelines.live.replica import furthest
from pipelines.order import EVENT, KIND_NAMES, LABEL, Frontier, Key, Source, from_kinds


def snapshot_from_lake(
    lake: Lake,
    stream: Stream,
    progress: Mapping[int, Progress],
    *,
    first: Frontier,
    ends: Frontier,
    topic_ids: Mapping[str, str],
    partitions: Sequence[int],
    on_progress: Callable[[int, int], None] | None = None,
) -> Snapshot:
    """Fold the lake's events and labels of some partitions up to a place at which everything folded has been published.

    The place is before the first unpublished event, before the first label that no published event can have seen,
    before any record that the lake lacks, and after the last published event.

    Args:
        progress: the last progress record of every partition.
        first: the first offset available in Kafka, per source.
        ends: end offsets of the sources before the lake was last filled.
        topic_ids: stored in the snapshot.
        partitions: those that are folded together.
        on_progress: called with the number of folded items and the total.

    Raises:
        RestoreError: Kafka has deleted records that are needed after that place.
    """
    progress = {p: progress[p] for p in partitions}
    n_partitions = progress[partitions[0]].n_partitions
    origin = from_kinds(progress[partitions[0]].origin)
    ends = {s: end for s, end in ends.items() if s.partition in progress}
    to_fold = at_or_after(origin) & pl.col("partition").is_in(partitions)
    rows = _records(lake, stream).filter(to_fold).sort(PLACE)
    positions = lake.positions()
    ingested = {s: positions.get((stream.topic(KIND_NAMES[s.kind]), s.partition), 0) for s in ends}
    cut = _cut(lake, stream, rows, progress, ingested, ends)
    below = _before(cut)

    state = State(stream, n_partitions, partitions=partitions)
    state.topic_ids = dict(topic_ids)
    block = block_in_order(lake, stream, below & to_fold)
    n = len(block)
    for begin in range(0, n, CHUNK):
        state.fold(block.take(slice(begin, begin + CHUNK)))
        if on_progress:
            on_progress(min(begin + CHUNK, n), n)
    folded, left = rows.filter(below), rows.filter(~below)
    state.last = _key(folded.tail(1))
    for source in state.frontier:
        mine = of_source(source)
        next_row: int | None = left.filter(mine)["offset"].min()  # type: ignore[assignment]
        reaches = ingested[source] if next_row is None else next_row
        at = min(reaches, progress[source.partition].next_offset) if source.kind == EVENT else reaches
        if at < first[source]:
            at = min(first[source], reaches)  # there are only control markers between them
        if at < first[source] or (source.kind == EVENT and at > progress[source.partition].next_offset):
            raise RestoreError(
                f"{stream.topic(KIND_NAMES[source.kind])} [{source.partition}] starts at offset {first[source]}, but "
                f"offset {at} is needed: the records in between were deleted before they were ingested, so the state "
                "cannot be rebuilt exactly"
            )
        state.frontier[source] = at
        arrival = folded.filter(mine & (pl.col("offset") < at))["arrival_ms"].max()
        state.arrivals[source] = int(arrival or 0)  # type: ignore[arg-type]
    return state.snapshot()


def _cut(
    lake: Lake,
    stream: Stream,
    rows: pl.DataFrame,
    progress: Mapping[int, Progress],
    ingested: Frontier,
    ends: Frontier,
) -> Key:
    """The first place that must not be in the state."""
    promised = furthest(progress)
    is_out = {Source(EVENT, p): record.next_offset for p, record in progress.items()}
    events, labels = rows.filter("is_event"), rows.filter(~pl.col("is_event"))
    open_events = at_or_after(is_out)
    bounds = [_key(events.filter(open_events).head(1))]
    if promised is not None:
        bounds.append(_key(labels.filter(at_or_after(promised)).head(1)))
    arrivals = lake.arrivals()
    for source, end in ends.items():
        if ingested[source] < end:
            arrival = arrivals.get((stream.topic(KIND_NAMES[source.kind]), source.partition), 0)
            lag_ms = stream.labels.lag_ms if stream.labels and source.kind == LABEL else 0
            bounds.append(Key(arrival + lag_ms, *source, ingested[source]))
    last_out = _key(events.filter(~open_events).tail(1))
    bounds.append(Key(0, LABEL, 0, 0) if last_out is None else last_out._replace(seq=last_out.seq + 1))
    return min(bound for bound in bounds if bound is not None)


def _records(lake: Lake, stream: Stream) -> pl.DataFrame:
    """All records of the input, accepted or refused, with their places."""
    columns = ["partition", "offset", "arrival_ms"]
    kept = [*columns, "is_event", *PLACE]
    frames = []
    for kind in (LABEL, EVENT) if stream.labels else (EVENT,):
        name = KIND_NAMES[kind]
        frames.append(placed(lake, stream, name, kind, columns=columns).select(kept))
        refused = placed(lake, stream, "refused", kind, columns=["topic", *columns])
        frames.append(refused.filter(pl.col("topic") == stream.topic(name)).select(kept))
    return pl.concat(frames)


def _before(cut: Key) -> pl.Expr:
    """Places before a given one, in tuple order."""
    before = pl.lit(False)
    for name, value in reversed(list(zip(PLACE, cut, strict=True))):
        before = (pl.col(name) < value) | ((pl.col(name) == value) & before)
    return before


def _key(row: pl.DataFrame) -> Key | None:
    return Key(*row.select(PLACE).row(0)) if row.height else None
