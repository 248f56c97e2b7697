"""The dead letters of a stream, read in bounded memory and chosen by rule, time and partition."""

import base64
import binascii
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from pipelines.contracts.contract import UNDECODABLE
from pipelines.contracts.messages import Progress, Refused, decode
from pipelines.contracts.stream import Stream
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.record import Received

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """A refused event: where it is in the events topic, and the beginning of the sha256 of its value.

    After the topic was created again, another event may have the same partition and offset.
    """

    partition: int
    offset: int
    digest: str


class Raw(NamedTuple):
    """An event as its producer sent it."""

    key: bytes | None
    value: bytes


class Choice(NamedTuple):
    """Which dead letters are meant: of these rules and partitions, refused in [`from_ms`, `until_ms`); None: any."""

    rules: frozenset[str] | None = None
    partitions: frozenset[int] | None = None
    from_ms: int | None = None
    until_ms: int | None = None

    def includes(self, letter: "Letter") -> bool:
        """Whether a dead letter is meant."""
        return (
            (self.rules is None or letter.refused.rule in self.rules)
            and (self.partitions is None or letter.refused.source.partition in self.partitions)
            and (self.from_ms is None or letter.at_ms >= self.from_ms)
            and (self.until_ms is None or letter.at_ms < self.until_ms)
        )


class Letter(NamedTuple):
    """A dead letter: its message, when it was published (ms since 1970), and its Kafka key."""

    refused: Refused
    at_ms: int
    key: bytes | None

    @property
    def place(self) -> Place:
        """The event that was refused."""
        source = self.refused.source
        return Place(source.partition, source.offset, self.refused.sha256[:16])

    def whole_event(self) -> Raw | None:
        """The event, if the letter contains its key and its value completely."""
        if self.refused.key_bytes is not None:
            return None
        try:
            value = base64.b64decode(self.refused.raw_base64, validate=True)
        except binascii.Error:
            return None
        whole = len(value) == self.refused.raw_bytes and hashlib.sha256(value).hexdigest() == self.refused.sha256
        return Raw(self.key, value) if whole else None


ACCEPTED = frozenset({"duplicate", "unpublishable"})  # dead letters about events that kept the contract


class _Read(Refused, frozen=True, kw_only=True):
    """As `Refused`; letters of formats 1 and 2 have no `fix`."""

    fix: str = ""


def letters(
    connection: Connection,
    stream: Stream,
    choice: Choice = Choice(),
    *,
    begin: Mapping[int, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[list[Letter]]:
    """Yield the chosen dead letters in batches, oldest first within a partition.

    Records that are not dead letters about the events of the stream are skipped with a warning.

    Args:
        begin: the first offset of the topic to read, per partition; others are read from their beginning.
        progress: called with the number of offsets read and their total.

    Raises:
        BrokerError: the topic does not exist, or Kafka does not answer.
    """
    topic = stream.topic("refused")
    spans = {
        position: (max(first, (begin or {}).get(position[1], 0)), end)
        for position, (first, end) in topics.bounds(connection, [topic]).items()
        if choice.partitions is None or position[1] in choice.partitions
    }
    done, total = {position: first for position, (first, _) in spans.items()}, sum(e - f for f, e in spans.values())
    for batch in topics.read_between(connection, spans):
        found = [
            letter for record in batch if (letter := _letter(record, stream)) is not None and choice.includes(letter)
        ]
        if found:
            yield found
        if progress:
            done |= {(record.topic, record.partition): record.offset + 1 for record in batch}
            progress(sum(done[p] - first for p, (first, _) in spans.items()), total)


def refused_earlier(
    connection: Connection, stream: Stream, progress: Mapping[int, Progress], folded: Mapping[int, int]
) -> dict[tuple[int, int], str]:
    """Events that were refused before the stream file was changed: (partition, offset) -> rule.

    What was refused stays refused when it is folded or ingested again with another contract: it was not scored, and it
    may have been sent again meanwhile.

    Args:
        progress: the last record of the partitions.
        folded: the first offset that is folded or ingested next, per partition.
    """
    changed = {
        p: record
        for p, record in progress.items()
        if record.definition_start > record.start and folded.get(p, 0) < record.definition_start
    }
    if not changed:
        return {}
    begin = {p: record.outcomes_from.get("refused", 0) for p, record in changed.items()}
    return {
        (source.partition, source.offset): letter.refused.rule
        for batch in letters(connection, stream, Choice(partitions=frozenset(changed)), begin=begin)
        for letter in batch
        for source in [letter.refused.source]
        if letter.refused.rule not in ACCEPTED
        and folded.get(source.partition, 0) <= source.offset < changed[source.partition].definition_start
    }


def _letter(record: Received, stream: Stream) -> Letter | None:
    try:
        refused = decode(record.value, _Read)
    except UNDECODABLE:
        log.warning(
            "%s [%d], offset %d, is not a dead letter of Unmask; skipped",
            record.topic, record.partition, record.offset,
        )  # fmt: skip
        return None
    if refused.source.topic != stream.topic("events"):
        return None
    return Letter(refused, record.timestamp_ms, record.key)
