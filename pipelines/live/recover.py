"""Recovery: finds out why a scorer cannot start, plans the fix with its consequences, and carries it out.

`plan` decides from facts alone; `Recovery` collects the facts and carries out a plan.
"""

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from pipelines.contracts.decode import Decoder
from pipelines.contracts.messages import Progress, encode
from pipelines.contracts.stream import Stream
from pipelines.errors import BrokerError, LakeError, RestoreError
from pipelines.features.bucket import Place
from pipelines.features.snapshot import Snapshot, SnapshotStore
from pipelines.features.state import State
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection, Shared
from pipelines.kafka.port import Message, Position, TransactionalWriter
from pipelines.kafka.progress import progress_of, transactional_id
from pipelines.lake.ingest import ingest
from pipelines.lake.tables import Lake
from pipelines.live.beside import snapshots_beside
from pipelines.live.owner import PUBLISHED, open_owner, outcomes_in
from pipelines.live.rebuild import snapshot_from_lake
from pipelines.live.recovery_plan import OUTPUTS, Facts, Published, RecoveryPlan, plan
from pipelines.live.replica import is_ahead
from pipelines.live.shards import place_of, shards_of
from pipelines.live.takeover import unfit, widened
from pipelines.live.topic_checks import input_ids, partition_counts
from pipelines.order import EVENT, KIND_NAMES, Frontier, Source, SourceClock, sources

log = logging.getLogger(__name__)

_SAMPLE = 5_000


class Steps:
    """The progress of several steps as that of one, whose total grows.

    Example:
        >>> steps = Steps(lambda done, total: print(done, "of", total))
        >>> steps.next()(5, 5)
        5 of 5
        >>> steps.next()(1, 3)
        6 of 8
    """

    def __init__(self, on_progress: Callable[[int, int], None] | None) -> None:
        self._on_progress, self._before, self._done = on_progress, 0, 0

    def next(self) -> Callable[[int, int], None]:
        """What a further step calls with what it has done, and its total."""
        self._before, self._done = self._before + self._done, 0
        return self._told

    def _told(self, done: int, total: int) -> None:
        self._done = done
        if self._on_progress:
            self._on_progress(self._before + done, self._before + total)


class Recovery:
    """Finds out why the scorer of a stream cannot start, and fixes it.

    Args:
        snapshots: where the scorer's snapshots lie.
    """

    def __init__(self, connection: Connection, stream: Stream, *, snapshots: Path | Place, lake: Lake) -> None:
        self._connection, self._stream, self._snapshots, self._lake = connection, stream, snapshots, lake

    def plan(self) -> RecoveryPlan | None:
        """The next step; changes nothing.

        Raises:
            RestoreError: recovery is not possible, or the progress was written by a newer version.
            BrokerError: a topic is missing, or Kafka does not answer.
        """
        return plan(self._facts())

    def carry_out(self, told: RecoveryPlan, *, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Carry out a plan after fencing a running scorer; all progress records are written in one transaction.

        States of changed features are built before that, while a scorer may go on with the old ones.

        Raises:
            RestoreError: the stream has changed since the plan was made, or the state cannot be rebuilt from the lake.
            FencedError: a scorer has taken over meanwhile.
        """
        counts = partition_counts(self._connection, self._stream)
        steps = Steps(on_progress)
        beside = self._built_beside(steps) if told.name == "redefined" else {}
        with self._fenced(counts) as writer:
            facts = self._facts()
            now = plan(facts)
            if now is None or now.name != told.name:
                raise RestoreError("the stream has changed since the plan was made; run `unmask recover` again")
            if now.add_partitions:
                wider = {self._stream.topic(kind): n for kind, n in now.add_partitions.items()}
                topics.add_partitions(self._connection, wider)
            snapshots = self._snapshots_from_lake(facts, steps, ingests=True) if now.from_lake else beside
            self._replace_snapshots(now, snapshots)
            owner = f"recover-{uuid.uuid4().hex[:8]}"
            topic = self._stream.topic("progress")
            messages = [
                Message(topic, encode(msgspec.structs.replace(record, owner=owner)), None, p)
                for p, records in now.progress.items()
                for record in records
            ]
            if messages:
                writer.commit(messages)
            self._reset_outdated()

    def _replace_snapshots(self, done: RecoveryPlan, snapshots: Mapping[tuple[int, ...], Snapshot]) -> None:
        """Rename folders, and write new snapshots."""
        suffix = f".{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        try:
            if "snapshots" in done.aside:
                SnapshotStore(self._snapshots).move_aside(suffix)
            if "lake" in done.aside and self._lake.folder.exists():
                self._lake.folder.rename(self._lake.folder.with_name(self._lake.folder.name + suffix))
            for partitions, snapshot in snapshots.items():
                SnapshotStore(place_of(self._snapshots, self._stream, partitions)).write(snapshot)
        except OSError as error:
            raise RestoreError(
                f"{error}; nothing was published. What was there is where it was, or has {suffix} added to its name; "
                "run `unmask recover` again"
            ) from error

    def records_per_s(self) -> float:
        """Speed of reading and folding the stream's events on this machine, measured on the first ones in Kafka."""
        topic, stream = self._stream.topic("events"), self._stream
        decoder = Decoder(stream)
        spans = topics.bounds(self._connection, [topic])
        (_, p), (first, end) = max(spans.items(), key=lambda span: span[1][1] - span[1][0])
        seconds, n = 0.0, 0
        for _ in range(2):  # the first time, the kernel is compiled
            n, began_s, state = 0, time.perf_counter(), State(stream, len(spans))
            clock = SourceClock(Source(EVENT, p))
            for batch in topics.read_between(self._connection, {(topic, p): (first, min(end, first + _SAMPLE))}):
                state.fold(decoder.block(clock.run(batch)))
                n += len(batch)
            seconds = time.perf_counter() - began_s
        return n / seconds if n else 0.0

    @contextmanager
    def _fenced(self, counts: Mapping[str, int]) -> Iterator[TransactionalWriter]:
        """Open the producers of all lanes, so that a running scorer cannot publish any more. Yields the first.

        The first writes the progress of all partitions in one transaction. If that of an earlier recovery was left
        open, only the first can end it.
        """
        every_progress = [(self._stream.topic("progress"), p) for p in range(counts["progress"])]
        with suppress(BrokerError):
            self._connection.transactional_writer(transactional_id(self._stream, 0), every_progress).close()
        with ExitStack() as stack, Shared.of(self._connection) as shared:
            writers = []
            for p in range(max(counts.values())):
                kinds = tuple(kind for kind in PUBLISHED if p < counts[kind])
                writer = open_owner(shared, self._stream, p, kinds=kinds)
                stack.callback(writer.close)
                writers.append(writer)
            yield writers[0]

    def _facts(self) -> Facts:
        connection, stream = self._connection, self._stream
        counts = partition_counts(connection, stream)
        inputs = sources(counts["events"], labels=stream.labels is not None)
        # Read the progress before the spans: all published events are then within them.
        progress, garbled, readable = self._progress(counts["progress"])
        spans = topics.bounds(connection, [stream.topic(KIND_NAMES[kind]) for kind in {s.kind for s in inputs}])
        by_source = {s: spans.get((stream.topic(KIND_NAMES[s.kind]), s.partition), (0, 0)) for s in inputs}
        topic_ids = input_ids(connection, stream)
        definition = State(stream, counts["events"]).digest
        outputs = topics.bounds(connection, [stream.topic(kind) for kind in OUTPUTS])
        ends = {kind: {p: e for (t, p), (_, e) in outputs.items() if t == stream.topic(kind)} for kind in OUTPUTS}
        published = {
            p: found
            for p, record in progress.items()
            if record is None and (found := self._published(p, outputs, readable.get(p)))
        }
        fits, meta = self._best_snapshot(progress, by_source, topic_ids, definition, counts["events"])
        positions = self._lake.positions()
        columns = set(self._lake.columns("events"))
        return Facts(
            stream,
            definition,
            counts,
            topic_ids,
            by_source,
            ends,
            progress,
            garbled,
            readable,
            published,
            snapshot_fits=fits,
            newest_meta=meta,
            lake_ends={s: at for s in inputs if (at := positions.get((stream.topic(KIND_NAMES[s.kind]), s.partition)))},
            told=self._told() if published else [],
            fields_joined=tuple(
                name
                for name in (*stream.entities, *stream.numbers, *stream.categories)
                if columns and name not in columns
            ),
            outdated=tuple(self._outdated().values()),
        )

    def _progress(self, n_partitions: int) -> tuple[dict[int, Progress | None], dict[int, str], dict[int, Progress]]:
        """The last record of every partition; if Unmask did not write it, the reason, and the newest valid record."""
        topic = self._stream.topic("progress")
        progress: dict[int, Progress | None] = {}
        garbled: dict[int, str] = {}
        readable: dict[int, Progress] = {}
        for p in range(n_partitions):
            last = topics.last_record(self._connection, topic, p)
            try:
                progress[p] = None if last is None else progress_of(last)
                continue
            except RestoreError as error:
                if "newer version" in str(error):
                    raise
                progress[p], garbled[p] = None, str(error).partition("; stop it")[0]
            for batch in topics.read_between(
                self._connection, {(topic, p): topics.bounds(self._connection, [topic])[topic, p]}
            ):
                for record in batch:
                    try:
                        readable[p] = progress_of(record)
                    except RestoreError:
                        continue
        return progress, garbled, readable

    def _published(
        self, partition: int, outputs: Mapping[Position, tuple[int, int]], books: Progress | None
    ) -> Published | None:
        """Summary of the scores and dead letters of a partition; None if there are none."""
        stream = self._stream
        spans = {}
        for kind in ("scores", "refused"):
            position = (stream.topic(kind), partition)
            if position in outputs:
                first, end = outputs[position]
                spans[position] = (max(first, books.outcomes_from.get(kind, 0) if books else 0), end)
        n = {"scores": 0, "refused": 0, "duplicates": 0}
        first_at, last_at, n_flagged, model = None, -1, 0, ""
        for batch in topics.read_between(self._connection, spans):
            for record in batch:
                is_score = record.topic == stream.topic("scores")
                for outcome in outcomes_in(record):
                    at = outcome.source
                    if (at.topic, at.partition) != (stream.topic("events"), partition):
                        continue
                    n["scores" if is_score else "refused" if outcome.duplicate_of is None else "duplicates"] += 1
                    first_at = at.offset if first_at is None else min(first_at, at.offset)
                    last_at = max(last_at, at.offset)
                    n_flagged += outcome.out_of_order
                    model = outcome.model or model
        if first_at is None:
            return None
        return Published(first_at, last_at, n["scores"], n["refused"], n["duplicates"], n_flagged, model)

    def _best_snapshot(
        self,
        progress: Mapping[int, Progress | None],
        spans: Mapping[Source, tuple[int, int]],
        topic_ids: Mapping[str, str],
        definition: str,
        n_partitions: int,
    ) -> tuple[bool, Mapping[str, object] | None]:
        """Whether a scorer would find usable snapshots, and the metadata of the newest readable one."""
        newest: Mapping[str, object] | None = None
        fits = []
        for partitions in shards_of(self._stream, n_partitions):
            known = {p: record for p in partitions if (record := progress.get(p)) is not None}
            fits.append(False)
            for path, kept in SnapshotStore(place_of(self._snapshots, self._stream, partitions)).newest_first():
                try:
                    snapshot = widened(kept, n_partitions)
                    newest = newest or snapshot.meta
                    if is_ahead(snapshot.frontier, known) or unfit(snapshot, spans, topic_ids):
                        continue
                    if State.restore(self._stream, snapshot).digest == definition:
                        fits[-1] = True
                        break
                except (RestoreError, OSError, ValueError, KeyError) as error:
                    log.info("snapshot %s is not used: %s", path.name, error)
        return all(fits), newest

    def _built_beside(self, steps: "Steps") -> dict[tuple[int, ...], Snapshot]:
        """Snapshots of the changed features by their partitions; none if the next start must read the history.

        Where Kafka has deleted the beginning, they begin with the lake as it is: what was ingested from now on could
        have been refused by the running scorer.

        Raises:
            RestoreError: that is not possible; nothing was done.
        """
        facts, begun = self._facts(), dict[tuple[int, ...], Snapshot]()
        if gone := facts.head_gone:
            if not facts.lake_can_begin:
                log.warning("the state is not built now: %s; run `unmask recover` once more", gone)
                return {}
            begun = self._snapshots_from_lake(facts, steps, ingests=False)
        try:
            found = snapshots_beside(
                self._connection,
                self._stream,
                facts.known,
                facts.spans,
                topic_ids=facts.topic_ids,
                begun=begun,
                on_progress=steps.next(),
            )
        except RestoreError as error:
            log.warning("the state is not built now: %s; the next start of the scorer builds it", error)
            return {}
        return dict(found)

    def _snapshots_from_lake(self, facts: Facts, steps: "Steps", *, ingests: bool) -> dict[tuple[int, ...], Snapshot]:
        """Fold the lake, which is first brought up to date if it `ingests`: snapshots by their partitions."""
        first: Frontier = {s: span[0] for s, span in facts.spans.items()}
        ends: Frontier = {s: span[1] for s, span in facts.spans.items()}
        try:
            if ingests:
                ingest(self._connection, self._stream, self._lake)
            return {
                partitions: snapshot_from_lake(
                    self._lake,
                    self._stream,
                    facts.known,
                    first=first,
                    ends=ends,
                    topic_ids=facts.topic_ids,
                    partitions=partitions,
                    on_progress=steps.next(),
                )
                for partitions in shards_of(self._stream, facts.n_partitions)
            }
        except (LakeError, RestoreError) as error:
            raise RestoreError(
                f"{error}. The state cannot be rebuilt from the lake; to continue with the records that Kafka has, "
                f"move {self._lake.folder} away and run `unmask recover` again"
            ) from error

    def _told(self) -> list[list[int]]:
        """Places of out-of-turn records, from the progress records in the lake."""
        columns = ["kind", "partition", "offset", "at_effective_ms", "at_kind", "at_partition", "at_offset", "at_seq"]
        rows = self._lake.read("places", columns=columns).unique(["kind", "partition", "offset"], keep="last")
        return [list(row) for row in rows.sort("kind", "partition", "offset").iter_rows()]

    def _outdated(self) -> dict[str, str]:
        """Tables of the lake that were filled from a since recreated output topic -> kind of the topic."""
        outdated = {}
        for table, kind in (("scores", "scores"), ("places", "progress")):
            topic = self._stream.topic(kind)
            noted = {p: at for (t, p), at in self._lake.positions().items() if t == topic}
            if noted:
                spans = topics.bounds(self._connection, [topic])
                shorter = any(spans.get((topic, p), (0, 0))[1] < at for p, at in noted.items())
                topic_id = topics.topic_ids(self._connection, [topic]).get(topic)
                if shorter or not self._lake.is_filled_from(table, topic, topic_id):
                    outdated[table] = kind
        return outdated

    def _reset_outdated(self) -> None:
        """Make the lake read recreated output topics from their beginning."""
        for table, kind in self._outdated().items():
            topic = self._stream.topic(kind)
            partitions = [p for (t, p) in self._lake.positions() if t == topic]
            topic_id = topics.topic_ids(self._connection, [topic]).get(topic)
            self._lake.reset(table, topic, dict.fromkeys(partitions, -1), topic_id)
