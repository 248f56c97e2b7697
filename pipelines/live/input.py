"""The input of a replica: reads its partitions into the merge, holds those far ahead, asks where they end."""

import time
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby

from pipelines.contracts.stream import Stream
from pipelines.kafka.port import Position, Reader
from pipelines.live.health import Busy
from pipelines.live.marks import mark_of
from pipelines.order import KIND_NAMES, Frontier, Merge, Source

ASK_EVERY_MS = 20
MIN_IN_HAND = 1 << 20  # bytes of each partition: about what one fetch brings


class Input:
    """Moves records from the reader into the merge.

    Args:
        reader: reads the partitions of `ends` from where the merge stands, and of a replay the clock topic.
        live: records are stamped by the broker; a replay (False) brings its own clock.
        ends: where each source to read ended when the scorer started.
        max_bytes: how much may be in hand of all partitions together.
    """

    def __init__(
        self,
        reader: Reader,
        merge: Merge,
        stream: Stream,
        *,
        live: bool,
        ends: Frontier,
        max_bytes: int,
    ) -> None:
        self.reader, self.live = reader, live
        self.held: set[Source] = set()
        self._merge = merge
        self._positions = positions_of(stream, ends)
        self._by_position = {position: source for source, position in self._positions.items()}
        self._clock_topic = stream.topic("clock")
        self._max_source_bytes = max(max_bytes // len(self._positions), MIN_IN_HAND)
        self._asked_ms = 0.0
        self._n_answers = 0
        self._first_ends = ends
        self._ends: dict[Source, int] = {}

    @property
    def topics(self) -> list[str]:
        """Names of the topics of events and labels."""
        return sorted({topic for topic, _ in self._positions.values()})

    def read(self, *, before: Callable[[], None]) -> int:
        """Take what has come in hand, calling `before` where there is anything; returns the number of records."""
        received, n_read = self.reader.poll(), 0
        if received:
            before()
        for position, records in groupby(received, key=lambda record: (record.topic, record.partition)):
            if position[0] == self._clock_topic:
                for mark in filter(None, map(mark_of, records)):
                    self._merge.mark(mark)
            else:
                of_source = list(records)
                n_read += len(of_source)
                self._merge.add(self._by_position[position], of_source)
        return n_read

    def hold_hoards(self) -> None:
        """Hold partitions that are far ahead of the others, until half of what they have in hand is folded."""
        limit = self._max_source_bytes
        self.held = self._merge.hoards(limit) | (self.held & self._merge.hoards(limit // 2))
        self.reader.hold(self._positions[source] for source in self.held)

    def ask(self, *, count_stalls: bool) -> None:
        """Ask the broker where the partitions end; the answer holds for the moment the question was sent.

        With `count_stalls` the time that partitions keep the others waiting counts towards giving them up.
        """
        now_ms = time.time() * 1000
        if now_ms - self._asked_ms >= ASK_EVERY_MS:
            self._asked_ms = now_ms
            # A replay's marks say how far time has come: only our own positions are news there.
            ends = self.reader.ends() if self.live else dict.fromkeys(self._by_position, 0)
            self._n_answers += bool(ends)
            for position, end in ends.items():
                if source := self._by_position.get(position):
                    at = self.reader.position(position)
                    self._ends[source] = end
                    self._merge.observe(source, position=at, end=end, asked_ms=now_ms, live=self.live)
        if self.live and count_stalls:
            self._merge.tick(time.time() * 1000)

    def has_caught_up(self) -> bool:
        """Whether everything that was in Kafka at the start has been read."""
        return all(self.reader.position(self._positions[source]) >= end for source, end in self._first_ends.items())

    def busy(self) -> dict[str, Busy]:
        """What there is to read and to ask, for the health check; of a replay, nothing."""
        if not self.live:
            return {}
        busy = {"requesting the end offsets": Busy(self._n_answers, "Kafka does not answer")}
        for source, end in self._ends.items():
            position = self._positions[source]
            at = self.reader.position(position)
            if at < end and source not in self.held:
                why = f"it ends at offset {end}, but no records arrive after {at} (is a producer's transaction open?)"
                busy["reading {} [{}]".format(*position)] = Busy(at, why, is_fatal=False)
        return busy


def positions_of(stream: Stream, sources: Iterable[Source]) -> dict[Source, Position]:
    """Where the records of each source lie in Kafka."""
    return {source: (stream.topic(KIND_NAMES[source.kind]), source.partition) for source in sources}


def first_positions(stream: Stream, frontier: Mapping[Source, int], *, clock_from: int | None) -> dict[Position, int]:
    """From which offsets on to read; `clock_from` is that of a replay's clock topic."""
    positions = {position: frontier[source] for source, position in positions_of(stream, frontier).items()}
    return positions if clock_from is None else positions | {(stream.topic("clock"), 0): clock_from}
