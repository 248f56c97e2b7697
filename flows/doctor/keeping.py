"""Whether Kafka keeps records as long as a restart, the ingest and the scorer need them."""

import time
from collections.abc import Iterator
from datetime import timedelta

from flows.doctor.finding import Finding, error, ok, warning
from flows.doctor.kafka import KafkaFacts
from flows.settings import Settings
from pipelines.contracts.stream import Stream
from pipelines.features.snapshot import SnapshotStore
from pipelines.kafka.progress import all_progress
from pipelines.live.shards import place_of, shards_of
from pipelines.order import KIND_NAMES, Frontier

SECTION = "retention"
READ = ("events", "labels", "scores", "progress")  # what the lake is filled from
KEPT = ("progress", "control", "clock", "resent")  # what must be there as long as the stream is
SHORT_MS = 24 * 3_600_000


def look(settings: Settings, stream: Stream, facts: KafkaFacts, words: str) -> Iterator[Finding]:
    """Limits of retention against the snapshots and the lake; records that wait for the scorer and the ingest.

    Args:
        words: `--stream FILE`, for the commands.
    """
    n_partitions = facts.n_partitions("events")
    shards = shards_of(stream, n_partitions)
    places = [place_of(settings.snapshots(stream), stream, partitions) for partitions in shards]
    frontiers = [SnapshotStore(place).newest_frontier() for place in places]
    covered = None if any(frontier is None for frontier in frontiers) else _joined(frontiers)
    yield from _snapshots(facts, covered, words)
    at = settings.lake(stream).positions()
    arrivals = settings.lake(stream).arrivals()
    yield from _lake(facts, at, words)
    yield from _limits(facts, covered is not None, at, arrivals, words)
    yield from _waiting(facts, n_partitions)


def _joined(frontiers: list[dict | None]) -> Frontier:
    """The least offset of every source of all shards."""
    least: dict = {}
    for frontier in frontiers:
        for source, offset in (frontier or {}).items():
            least[source] = min(offset, least.get(source, offset))
    return least


def _snapshots(facts: KafkaFacts, covered: Frontier | None, words: str) -> Iterator[Finding]:
    """Whether what the newest snapshot lacks is still in Kafka."""
    spans = {kind: facts.span(kind) for kind in facts.stream.inputs if kind in facts.topics}
    if covered is None:
        gone = {kind for kind, span in spans.items() if any(first for first, _ in span.values())}
        if gone:
            found = f"none that can be read, and Kafka has deleted the beginning of {' and '.join(sorted(gone))}"
            yield error(SECTION, "snapshots", found, f"unmask recover {words}")
        else:
            yield ok(SECTION, "snapshots", "none yet; the state would be built from the beginning of the input")
        return
    n_behind = n_gone = 0
    for source, offset in covered.items():
        first, end = spans.get(KIND_NAMES[source.kind], {}).get(source.partition, (0, 0))
        n_gone += max(0, first - offset)
        n_behind += max(0, end - offset)
    if n_gone:
        found = f"Kafka has deleted {n_gone:,} records that the newest one lacks: a scorer cannot start from it"
        yield error(SECTION, "snapshots", found, f"unmask recover {words}")
    else:
        yield ok(SECTION, "snapshots", f"a restart reads {n_behind:,} records after the newest one")


def _lake(facts: KafkaFacts, at: dict[tuple[str, int], int], words: str) -> Iterator[Finding]:
    n_lost = n_behind = 0
    for kind in READ:
        if kind in facts.topics:
            for p, (first, end) in facts.span(kind).items():
                here = at.get((facts.stream.topic(kind), p), first)
                n_lost, n_behind = n_lost + max(0, first - here), n_behind + max(0, end - here)
    if n_lost:
        found = f"Kafka has deleted {n_lost:,} records before they were ingested"
        fix = f"raise the retention, move UNMASK_HOME/lake/{facts.stream.topics} away, then unmask ingest {words}"
        yield error(SECTION, "lake", found, fix)
    elif not at:
        yield ok(SECTION, "lake", f"empty; {n_behind:,} records wait for the first `unmask ingest`")
    else:
        yield ok(SECTION, "lake", f"{n_behind:,} records are not ingested yet")


def _limits(
    facts: KafkaFacts,
    has_snapshots: bool,
    at: dict[tuple[str, int], int],
    arrivals: dict[tuple[str, int], int],
    words: str,
) -> Iterator[Finding]:
    """Topics with limited retention: is it long enough?"""
    limited = {k: ms for k in facts.topics if (ms := _kept_ms(facts, k)) is not None}
    for kind, kept_ms in limited.items():
        name, said = facts.stream.topic(kind), _words(facts, kind)
        forever = facts.set_topic(kind, retention_ms=-1, retention_bytes=-1)
        if kind in KEPT:
            events_ms = limited.get("events")
            say = error if kind == "progress" and (events_ms is None or kept_ms < events_ms) else warning
            yield say(SECTION, name, f"{said}: its last records are needed, however old they are", forever)
        elif kind not in READ:
            continue  # what was published and read is no one's business here
        elif kept_ms < SHORT_MS:
            found = f"{said}: shorter than a day, in which an ingest or a scorer may be down"
            yield error(SECTION, name, found, forever)
        elif not at:
            yield warning(SECTION, name, f"{said}, and nothing is ingested yet", f"unmask ingest {words}, or {forever}")
        elif _behind_ms(facts, kind, at, arrivals) > kept_ms / 2:
            yield warning(
                SECTION, name, f"{said}, and the lake is behind by more than half of it", f"unmask ingest {words}"
            )
        elif not has_snapshots and kind in facts.stream.inputs:
            yield warning(SECTION, name, f"{said}, and there is no snapshot", f"unmask score {words}, or {forever}")
        else:
            yield ok(SECTION, name, f"{said}; ingest and snapshots are ahead of it")
    if not limited.keys() & {*READ, *KEPT}:
        yield ok(SECTION, "limits", "none: Kafka keeps every record that is needed")


def _kept_ms(facts: KafkaFacts, kind: str) -> int | None:
    """How long a topic keeps a record at least; None if for ever. A limit of bytes promises nothing."""
    if facts.number(kind, "retention.bytes") >= 0:
        return 0
    kept_ms = facts.number(kind, "retention.ms")
    return None if kept_ms < 0 else kept_ms


def _words(facts: KafkaFacts, kind: str) -> str:
    n_bytes = facts.number(kind, "retention.bytes")
    if n_bytes >= 0:
        return f"retention.bytes={n_bytes}"
    return f"keeps records for {timedelta(milliseconds=facts.number(kind, 'retention.ms'))}"


def _behind_ms(
    facts: KafkaFacts, kind: str, at: dict[tuple[str, int], int], arrivals: dict[tuple[str, int], int]
) -> float:
    """Since when the lake has had no record of a partition in which some wait."""
    topic = facts.stream.topic(kind)
    waits = [arrivals.get((topic, p), 0) for p, (_, end) in facts.span(kind).items() if at.get((topic, p), 0) < end]
    return time.time() * 1000 - min(waits) if waits else 0.0


def _waiting(facts: KafkaFacts, n_partitions: int) -> Iterator[Finding]:
    """Events that were not published yet, by the progress records."""
    if "progress" not in facts.topics or facts.n_partitions("progress") != n_partitions:
        return
    known = all_progress(facts.connection, facts.stream, n_partitions)
    if not any(known.values()):
        yield ok(SECTION, "waiting", "nothing was scored yet")
        return
    ends = {p: end for p, (_, end) in facts.span("events").items()}
    n_waiting = sum(max(0, ends[p] - told.next_offset) for p, told in known.items() if told)
    yield ok(SECTION, "waiting", f"{n_waiting:,} events are not published yet")
