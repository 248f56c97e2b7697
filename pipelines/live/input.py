"""The input of a replica: reads partitions into the merge, pauses those far ahead, requests end offsets."""

import time
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby

from pipelines.contracts.stream import Stream
from pipelines.kafka.port import Position, Reader
from pipelines.live.health import Busy
from pipelines.live.marks import mark_of
from pipelines.order import KIND_NAMES, Frontier, Merge, Source

ASK_EVERY_MS = 20
MIN_IN_HAND = 1 << 20  # bytes per partition, about the size of one fetch


class Input:
    """Moves records from the reader into the merge.

    Args:
        reader: reads the partitions of `ends` from the position of the merge; in a replay, also the clock topic.
        live: the broker sets the timestamps; a replay (False) has its own clock.
        ends: end offset of each source at the start of the scorer.
        max_bytes: limit of buffered records of all partitions together.
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
        """Move arrived records to the merge and return their number; `before` is called first if there are any."""
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
        """Pause partitions that are far ahead of the others, until half of their buffered records are folded."""
        limit = self._max_source_bytes
        self.held = self._merge.hoards(limit) | (self.held & self._merge.hoards(limit // 2))
        self.reader.hold(self._positions[source] for source in self.held)

    def ask(self, *, count_stalls: bool) -> None:
        """Request the end offsets of the partitions; the answer is valid for the time of the request.

        With `count_stalls`, the time that partitions keep the others waiting counts towards ignoring them.
        """
        now_ms = time.time() * 1000
        if now_ms - self._asked_ms >= ASK_EVERY_MS:
            self._asked_ms = now_ms
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

    def has_caught_up(self) -> bool:
        """Whether all records that were in Kafka at the start have been read."""
        return all(self.reader.position(self._positions[source]) >= end for source, end in self._first_ends.items())

    def busy(self) -> dict[str, Busy]:
        """Pending reads and requests, for the health check; empty in a replay."""
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
    """Topic and partition of each source."""
    return {source: (stream.topic(KIND_NAMES[source.kind]), source.partition) for source in sources}


def first_positions(stream: Stream, frontier: Mapping[Source, int], *, clock_from: int | None) -> dict[Position, int]:
    """Offsets to start reading at; `clock_from` is the one of a replay's clock topic."""
    positions = {position: frontier[source] for source, position in positions_of(stream, frontier).items()}
    return positions if clock_from is None else positions | {(stream.topic("clock"), 0): clock_from}
