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
from pipelines.order import KIND_NAMES, Frontier, Mark, Merge, Source
from pipelines.record import Received

log = logging.getLogger(__name__)

ASK_EVERY_MS = 20
ASK_SELDOM_MS = 500  # while another replica writes the marks
MIN_IN_HAND = 1 << 20  # bytes per partition, about the size of one fetch


class Input:
    """Moves records and marks from the reader into the merge; passes on the progress of other replicas.

    Args:
        reader: reads the partitions of `ends` from the position of the merge, the clock topic and the progress topic.
        live: the broker sets the timestamps; a replay (False) has its own clock.
        ends: end offset of each source at the start of the scorer.
        clock_end: end offset of the clock topic before `ends` were requested.
        max_bytes: limit of buffered records of all partitions together.
        owner: identity of this replica in marks.
        tailed: called with every progress record: partition, progress, offset.
    """

    def __init__(
        self,
        reader: Reader,
        merge: Merge,
        stream: Stream,
        *,
        live: bool,
        ends: Frontier,
        clock_end: int,
        max_bytes: int,
        owner: str,
        tailed: Callable[[int, Progress, int], None],
    ) -> None:
        self.reader, self.live = reader, live
        self.held: set[Source] = set()
        self._merge = merge
        self._positions = positions_of(stream, ends)
        self._by_position = {position: source for source, position in self._positions.items()}
        self._clock_topic, self._progress_topic = stream.topic("clock"), stream.topic("progress")
        self._clock_end, self._owner, self._tailed = clock_end, owner, tailed
        self.led_s = time.monotonic()  # when a mark of another replica was read last, by a monotonic clock
        self._max_source_bytes = max(max_bytes // len(self._positions), MIN_IN_HAND)
        self._asked_s = -math.inf  # by a monotonic clock, as the other one may be set back
        self._n_answers = 0
        self._first_ends = ends
        self._ends: dict[Source, int] = {}
        self._unread: dict[Source, tuple[int, int]] = {}  # position before unread records, and since when, ms

    @property
    def topics(self) -> list[str]:
        """Names of the topics of events and labels."""
        return sorted({topic for topic, _ in self._positions.values()})

    def read(self, *, before: Callable[[], None]) -> int:
        """Move arrived records to the merge and return their number; `before` is called first if there are any."""
        received, n_read = self.reader.poll(), 0
        if received:
            before()
        for position, records in groupby(received, key=lambda record: (record.topic, record.partition)):
            if position[0] == self._clock_topic:
                for mark in filter(None, map(mark_of, records)):
                    self._mark(mark)
            elif position[0] == self._progress_topic:
                for record in records:
                    self._tail(record)
            else:
                of_source = list(records)
                n_read += len(of_source)
                self._merge.add(self._by_position[position], of_source)
        return n_read

    def _mark(self, mark: Mark) -> None:
        beyond = [s for s, end in mark.ends.items() if end > self._first_ends.get(s, 0)]
        if mark.next_offset <= self._clock_end and beyond:
            log.warning("%s: mark %d is beyond the end of its input: skipped", self._clock_topic, mark.next_offset - 1)
            return
        self._merge.mark(mark)
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
        limit, hoards = self._max_source_bytes, self._merge.hoards
        self.held = hoards(limit, follows=follows) | (self.held & hoards(limit // 2, follows=follows))
        self.reader.hold(self._positions[source] for source in self.held)

    def ask(self, *, count_stalls: bool, follows: bool = False) -> None:
        """Request the end offsets of the partitions; the answer is valid for the time of the request.

        With `count_stalls`, the time that partitions keep the others waiting counts towards ignoring them.
        `follows`: another replica writes the marks, so the answers matter to the health check only.
        """
        now_ms = time.time() * 1000
        if time.monotonic() - self._asked_s >= (ASK_SELDOM_MS if follows else ASK_EVERY_MS) / 1000:
            self._asked_s = time.monotonic()
            # In a replay the clock marks bound the time, so only the read positions are needed.
            ends = self.reader.ends() if self.live else dict.fromkeys(self._by_position, 0)
            self._n_answers += bool(ends)
            for position, end in ends.items():
                if source := self._by_position.get(position):
                    at = self.reader.position(position)
                    self._ends[source] = end
                    self._merge.observe(source, position=at, end=end, asked_ms=now_ms, live=self.live)
        if self.live and count_stalls:
            self._merge.tick(time.time() * 1000)

    def lag(self, source: Source, *, published: int, held: tuple[int, int | None], now_ms: float) -> Lag:
        """How far publication is behind the newest answer about the end of a source.

        Args:
            published: the first offset that is not published; records before it may be read again after a restart.
            held: number and oldest arrival of the records that are folded, but not published.
        """
        n_held, oldest = held
        n_waiting, oldest_waiting = self._merge.waiting(source, offset=published)
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

    def has_caught_up(self) -> bool:
        """Whether all records that were in Kafka at the start have been read."""
        return all(self.reader.position(self._positions[source]) >= end for source, end in self._first_ends.items())

    def busy(self) -> dict[str, Busy]:
        """Pending reads and requests, for the health check; empty in a replay."""
        if not self.live:
            return {}
        busy = {"requesting the end offsets": Busy(self._n_answers, "Kafka does not answer")}
        if self._merge.is_behind:
            busy["ordering"] = Busy(self._merge.last, f"no replica writes marks to {self._clock_topic}", is_fatal=False)
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


def first_positions(
    stream: Stream, frontier: Mapping[Source, int], *, clock_from: int, told_until: Sequence[int]
) -> dict[Position, int]:
    """Offsets to start reading at, of inputs, clock and progress (`told_until`, by partition)."""
    positions = {position: frontier[source] for source, position in positions_of(stream, frontier).items()}
    progress = {(stream.topic("progress"), p): offset for p, offset in enumerate(told_until)}
    return {**positions, **progress, (stream.topic("clock"), 0): clock_from}
