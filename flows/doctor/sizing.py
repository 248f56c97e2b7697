"""Rules of thumb: memory, processes and partitions for a number of entities and events.

The rates are those of the simulated payments on two cores, which they shared with Kafka, producer and consumer; a plan
uses half of them, so that a burst or a restart has room.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from flows.doctor.finding import Finding, ok, warning
from pipelines.contracts.stream import DAY_MS, Stream
from pipelines.features.state import plan_of

SECTION = "sizing"
RATES = {"kafka-python": 5_600, "confluent-kafka": 27_000}  # events/s of one scorer; README and LOG.md say how measured
USED = 0.5  # of the rate
READ_SHARE = 0.55  # of an event's cost, which every replica has where a window is about another entity
BASE_BYTES = 700e6  # program, model, buffers, outbox
ID_BYTES = 48  # of a remembered event id


@dataclass(frozen=True)
class Load:
    """What is expected; None where it is not known.

    Args:
        entities: of the kind that has the most.
        bytes_per_entity: as measured by a running scorer.
    """

    entities: int | None = None
    events_per_s: float | None = None
    events_per_day: float | None = None
    bytes_per_entity: float | None = None

    @property
    def peak_per_s(self) -> float | None:
        """Events/s, of the day if no rate is given."""
        return self.events_per_s or (self.events_per_day / 86_400 if self.events_per_day else None)


def entity_bytes(stream: Stream) -> tuple[int, int]:
    """Bytes of state of an entity that has one event, and of one with events in every pane of every window."""
    plan = plan_of(stream)
    sizes = [(row, row + block) for row, block in zip(plan.row_bytes, plan.block_bytes, strict=True)]
    return max((least for least, _ in sizes), default=0), max((most for _, most in sizes), default=0)


def memory_bytes(stream: Stream, entities: int, events_per_day: float, each: float) -> float:
    """Memory that one scorer needs: the state twice, because of the snapshot being written, and the event ids.

    Example:
        >>> from flows.streams.shipped import load
        >>> f"{memory_bytes(load('payments'), 180_000, 5_000_000, 4_096) / 1e9:.1f} GB"
        '2.7 GB'
    """
    ids = min(stream.duplicate_memory_ids, events_per_day * stream.duplicate_memory_ms / DAY_MS)
    return BASE_BYTES + 2 * entities * each + ID_BYTES * ids


def replicas(stream: Stream, events_per_s: float, client: str) -> int | None:
    """Number of scorers for a rate; None if no number is enough, because each must read every event.

    Example:
        >>> from flows.streams.shipped import load
        >>> [replicas(load("payments"), rate, "kafka-python") for rate in (1_000, 4_000, 6_000)]
        [1, 4, None]
    """
    share = RATES[client] * USED / events_per_s  # of the events that one scorer can score
    if stream.folds_by_partition:
        return math.ceil(1 / share)
    if share <= READ_SHARE:
        return None
    return max(1, math.ceil((1 - READ_SHARE) / (share - READ_SHARE)))


def look(stream: Stream, load: Load, client: str, n_partitions: int | None) -> Iterator[Finding]:
    """What the stream costs, and what a load needs.

    Args:
        client: the value of KAFKA_CLIENT.
        n_partitions: of the events topic, if it is known.
    """
    least, most = entity_bytes(stream)
    measured = load.bytes_per_entity
    now = f"; measured {measured:,.0f}" if measured else ""
    words = f"{len(stream.features)} features: {least:,} bytes of an entity with one event, {most:,} at most{now}"
    yield ok(SECTION, "state", words)
    if not stream.folds_by_partition:
        found = "a window is about another entity than the key: every scorer reads all events and has the whole state"
        yield ok(SECTION, "windows", found)
    yield from _memory(stream, load, measured or most)
    yield from _processes(stream, load, client, n_partitions)


def _memory(stream: Stream, load: Load, each: float) -> Iterator[Finding]:
    if load.entities is None:
        yield ok(SECTION, "memory", "unknown; give --entities and --events-per-day for a plan")
        return
    a_day = load.events_per_day or (load.events_per_s or 0) * 86_400 or stream.duplicate_memory_ids
    need = memory_bytes(stream, load.entities, a_day, each)
    basis = "as measured" if load.bytes_per_entity else "at most"
    found = f"{need / 1e9:.1f} GB for {load.entities:,} entities ({basis}): UNMASK_SCORER_MEMORY={need / 1e9:.1f}g"
    yield ok(SECTION, "memory", found)


def _processes(stream: Stream, load: Load, client: str, n_partitions: int | None) -> Iterator[Finding]:
    rate = load.peak_per_s
    if rate is None:
        yield ok(SECTION, "CPU", "unknown; give --events-per-s for a plan")
        return
    rule = (
        f"rule of thumb: {RATES[client] * USED:,.0f} events/s for each, half of what {client} reached on 2 shared cores"
    )
    n = replicas(stream, rate, client)
    if n is None:
        fix = (
            "export KAFKA_CLIENT=confluent-kafka"
            if client == "kafka-python"
            else "split the stream by its key upstream"
        )
        found = f"{rate:,.0f} events/s are too many for any number of scorers, as each reads all ({rule})"
        yield warning(SECTION, "CPU", found, fix)
        return
    yield ok(SECTION, "CPU", f"{rate:,.0f} events/s need {n} scorers of one core each ({rule})")
    if n_partitions is not None and n_partitions < n:
        found = f"{n_partitions} partitions, but {n} scorers: at most one for each partition works"
        yield warning(
            SECTION, "partitions", found, f"add partitions before the first event: {2 * n}; afterwards unmask recover"
        )
    else:
        wanted = n_partitions or max(4, 2 * n)
        yield ok(SECTION, "partitions", f"{wanted} are enough for {n} scorers")
