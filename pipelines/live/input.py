"""The input of a replica: reads partitions and marks into the merge, pauses those far ahead, requests end offsets."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby

from pipelines.contracts.messages import Progress
from pipelines.contracts.stream import Stream
from pipelines.errors import RestoreError
from pipelines.kafka.port import Position, Reader
from pipelines.kafka.progress import progress_of
from pipelines.live.health import Busy
from pipelines.live.marks import mark_of
from pipelines.live.metrics import Lag
from pipelines.live.shards import Shard
from pipelines.order import KIND_NAMES, Mark, Merge, Source
from pipelines.record import Received

log = logging.getLogger(__name__)

ASK_EVERY_MS = 20
ASK_SELDOM_MS = 500  # while another replica writes the marks
NO_PARTITIONS_S = 0.02
MIN_IN_HAND = 1 << 20  # bytes per partition, about the size of one fetch


class Input:
    """Moves records and marks from the reader into the merges; passes on the progress of other replicas.

    Args:
        reader: reads the clock topic and the progress topic, if they matter; `follow` adds the partitions of shards.
        live: the broker sets the timestamps; a replay (False) has its own clock.
        clock_end: end offset of the clock topic at the start of the scorer, before the ends of any shard.
        max_bytes: limit of buffered records of all partitions together.
        owner: identity of this replica in marks.
        ask_every_ms: least time between two requests for the end offsets.
        tailed: called with every progress record: partition, progress, offset.
    """

    def __init__(
        self,
        reader: Reader,
        stream: Stream,
        outside: Mapping[Position, int],
        *,
        live: bool,
        clock_end: int,
        max_bytes: int,
        owner: str,
        ask_every_ms: int = ASK_EVERY_MS,
        tailed: Callable[[int, Progress, int], None],
    ) -> None:
        self.reader, self.live = reader, live
        self.held: set[Source] = set()
        self._stream, self._outside = stream, dict(outside)
        self._shards: list[Shard] = []
        self._positions: dict[Source, Position] = {}
        self._by_position: dict[Position, Source] = {}
        self._merges: dict[Source, Merge] = {}
        self._clock, self._progress_topic = (stream.topic("clock"), 0), stream.topic("progress")
        self._clock_first, self._clock_end = self._outside.get(self._clock, 0), clock_end
        self._owner, self._tailed = owner, tailed
        self.led_s = time.monotonic()  # when a mark of another replica was read last, by a monotonic clock
        self._max_bytes, self._ask_every_ms = max_bytes, ask_every_ms
        self._asked_s = -math.inf  # by a monotonic clock, as the other one may be set back
        self._n_answers = 0
        self._first_ends: dict[Source, int] = {}
        self._ends: dict[Source, int] = {}
        self._unread: dict[Source, tuple[int, int]] = {}  # position before unread records, and since when, ms

    @property
    def topics(self) -> list[str]:
        """Names of the topics of events and labels."""
        return sorted({self._stream.topic(kind) for kind in self._stream.inputs})

    def follow(self, shards: Sequence[Shard]) -> None:
        """Read the partitions of these shards and of no others; those of new ones from their frontier.

        The clock is read from where the marks of the new ones begin; the others know the marks that come again.
        """
        at = {position: self.reader.position(position) for position in self._positions.values()}
        if self._shards:
            self._outside = {position: self.reader.position(position) for position in self._outside}
        new = [shard for shard in shards if shard not in self._shards]
        if new and self._clock in self._outside:
            begins = [max(self._clock_first, shard.replica.merge.clock_offset) for shard in new]
            self._outside[self._clock] = min([*begins, self._outside[self._clock]] if self._shards else begins)
        self._shards = list(shards)
        self._merges = {source: shard.replica.merge for shard in shards for source in shard.ends}
        self._positions = positions_of(self._stream, self._merges)
        self._by_position = {position: source for source, position in self._positions.items()}
        self._first_ends = {source: end for shard in shards for source, end in shard.ends.items()}
        self.held &= self._merges.keys()
        fresh = {source: offset for shard in new for source, offset in shard.replica.state.frontier.items()}
        self._ends = {s: end for s, end in self._ends.items() if s in self._merges and s not in fresh}
        at |= {self._positions[source]: offset for source, offset in fresh.items()}
        reading = {position: at[position] for position in self._by_position}
        self.reader.assign(reading | self._outside)
        self._asked_s = -math.inf  # the new ones wait for an answer

    def read(self, *, before: Callable[[], None]) -> int:
        """Move arrived records to the merges and return their number; `before` is called first if there are any."""
        if not self._positions:
            time.sleep(NO_PARTITIONS_S)
            return 0
        received, n_read = self.reader.poll(), 0
        if received:
            before()
        for position, records in groupby(received, key=lambda record: (record.topic, record.partition)):
            if position == self._clock:
                for mark in filter(None, map(mark_of, records)):
                    self._mark(mark)
            elif position[0] == self._progress_topic:
                for record in records:
                    self._tail(record)
            else:
                of_source, source = list(records), self._by_position[position]
                n_read += len(of_source)
                self._merges[source].add(source, of_source)
        return n_read

    def _mark(self, mark: Mark) -> None:
        of_others = math.inf if self._stream.folds_by_partition else 0
        beyond = any(end > self._first_ends.get(source, of_others) for source, end in mark.ends.items())
        if mark.next_offset <= self._clock_end and beyond:
            log.warning("%s: mark %d is beyond the end of its input: skipped", self._clock[0], mark.next_offset - 1)
            return
        for shard in self._shards:
            shard.replica.merge.mark(mark)
        if mark.by != self._owner:
            self.led_s = time.monotonic()

    def _tail(self, record: Received) -> None:
        try:
            self._tailed(record.partition, progress_of(record), record.offset)
        except RestoreError as error:
            log.warning("%s", error)  # of a foreign program; a newer version of Unmask fences this scorer

    def hold_hoards(self, *, follows: bool) -> None:
        """Pause partitions that are far ahead of the others, until half of their buffered records are folded.

        `follows`: another replica writes the marks.
        """
        limit = max(self._max_bytes // max(len(self._positions), 1), MIN_IN_HAND)

        def hoards(limit: int) -> set[Source]:
            return {s for shard in self._shards for s in shard.replica.merge.hoards(limit, follows=follows)}

        self.held = hoards(limit) | (self.held & hoards(limit // 2))
        self.reader.hold(self._positions[source] for source in self.held)

    def ask(self, *, count_stalls: bool, follows: bool = False) -> None:
        """Request the end offsets of the partitions; the answer is valid for the time of the request.

        With `count_stalls`, the time that partitions keep the others waiting counts towards ignoring them.
        `follows`: another replica writes the marks, so the answers matter to the health check only.
        """
        now_ms = time.time() * 1000
        if time.monotonic() - self._asked_s >= (ASK_SELDOM_MS if follows else self._ask_every_ms) / 1000:
            self._asked_s = time.monotonic()
            # In a replay the clock marks bound the time, so only the read positions are needed.
            ends = self.reader.ends() if self.live else dict.fromkeys(self._by_position, 0)
            self._n_answers += bool(ends)
            for position, end in ends.items():
                if source := self._by_position.get(position):
                    at = self.reader.position(position)
                    self._ends[source] = end
                    self._merges[source].observe(source, position=at, end=end, asked_ms=now_ms, live=self.live)
        if self.live and count_stalls:
            for shard in self._shards:
                shard.replica.merge.tick(time.time() * 1000)

    def lag(self, source: Source, *, published: int, held: tuple[int, int | None], now_ms: float) -> Lag:
        """How far publication is behind the newest answer about the end of a source.

        Args:
            published: the first offset that is not published; records before it may be read again after a restart.
            held: number and oldest arrival of the records that are folded, but not published.
        """
        n_held, oldest = held
        n_waiting, oldest_waiting = self._merges[source].waiting(source, offset=published)
        end = self._ends.get(source, self._first_ends[source])
        at = self.reader.position(self._positions[source])
        n_unread = max(end - max(at, published), 0)
        since = oldest_waiting if oldest is None else oldest
        if since is None and n_unread:  # seen for how long?
            position, seen_ms = self._unread.get(source, (-1, 0))
            since = seen_ms if position == at else round(now_ms)
            self._unread[source] = at, since
        lag_ms = 0 if since is None or not self.live else max(round(now_ms - since), 0)
        return Lag(n_held + n_waiting + n_unread, lag_ms)

    def has_caught_up(self, shard: Shard) -> bool:
        """Whether all records that were in Kafka when a shard was restored have been read."""
        return all(self.reader.position(self._positions[source]) >= end for source, end in shard.ends.items())

    def busy(self) -> dict[str, Busy]:
        """Pending reads and requests, for the health check; empty in a replay."""
        if not self.live or not self._shards:
            return {}
        busy = {"requesting the end offsets": Busy(self._n_answers, "Kafka does not answer")}
        for shard in self._shards:
            merge = shard.replica.merge
            if merge.is_behind:
                what, why = "ordering", f"no replica writes marks to {self._clock[0]}"
                if self._clock not in self._outside:
                    what, why = f"ordering partition {shard.partitions[0]}", "the ends of its topics are unknown"
                busy[what] = Busy(merge.last, why, is_fatal=False)
        for source, end in self._ends.items():
            position = self._positions[source]
            at = self.reader.position(position)
            if at < end and source not in self.held:
                why = f"it ends at offset {end}, but no records arrive after {at} (is a producer's transaction open?)"
                busy["reading {} [{}]".format(*position)] = Busy(at, why, is_fatal=False)
        return busy


def positions_of(stream: Stream, sources: Iterable[Source]) -> dict[Source, Position]:
    """Topic and partition of each source."""
    return {source: (stream.topic(KIND_NAMES[source.kind]), source.partition) for source in sources}
