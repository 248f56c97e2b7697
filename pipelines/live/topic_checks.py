"""Checks of a stream's topics, their partitions and ids, at the start and while a scorer runs."""

from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, Future

from pipelines.contracts.stream import Stream
from pipelines.errors import BrokerError, RestoreError
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Reader


def input_ids(connection: Connection, stream: Stream) -> dict[str, str]:
    """Kafka's ids (KIP-516) of the input topics by kind; empty if the broker does not support ids."""
    found = topics.topic_ids(connection, [stream.topic(kind) for kind in stream.inputs])
    return {kind: found[stream.topic(kind)] for kind in stream.inputs if stream.topic(kind) in found}


def check_inputs(connection: Connection, stream: Stream, told: Mapping[str, str]) -> None:
    """Check for a running scorer that the input topics still have the ids in `told`.

    Raises:
        RestoreError: one was deleted and recreated.
        BrokerError: one does not exist, or Kafka does not answer.
    """
    now = input_ids(connection, stream) if told else {}
    for kind, topic_id in told.items():
        if now.get(kind, topic_id) != topic_id:
            raise RestoreError(f"{remade_words(stream.topic(kind), topic_id, now[kind])}; run `unmask recover`")


def remade_words(topic: str, told: str, now: str) -> str:
    return f"{topic} was deleted and recreated since it was last scored (its id was {told}, now {now})"


def checked_partitions(connection: Connection, stream: Stream) -> int:
    """Number of partitions, which must be the same in every topic of the stream except the clock."""
    counts = partition_counts(connection, stream)
    if counts["events"] > min(counts.values()):
        raise BrokerError(
            f"the topics of {stream.topics} have different numbers of partitions: {counts}; all must have as many as "
            "the events topic; if partitions were added, run `unmask recover`"
        )
    if len(set(counts.values())) != 1:
        raise BrokerError(
            f"the topics of {stream.topics} have different numbers of partitions: {counts}; all must have as many as "
            "the events topic; add partitions to it, or recreate the other topics"
        )
    return counts["events"]


def partition_counts(connection: Connection, stream: Stream) -> dict[str, int]:
    """Number of partitions of every topic of the stream except the clock, by kind."""
    kinds = ["events", "scores", "alerts", "refused", "progress"] + (["labels"] if stream.labels else [])
    return {kind: len(topics.partitions_of(connection, stream.topic(kind))) for kind in kinds}


def stamped_by_broker(connection: Connection, stream: Stream) -> bool:
    """Whether the broker sets the timestamps of the stream's records (live); False for a replay with its own clock.

    Raises:
        BrokerError: neither is the case, or the topics differ.
    """
    live = topics.stamps_appends(connection, *(stream.topic(kind) for kind in stream.inputs))
    if not live and not _is_replay(connection, stream):
        raise BrokerError(
            f"{stream.topic('events')} must have message.timestamp.type=LogAppendTime (only a replay, which has its "
            f"own clock in {stream.topic('clock')}, does not need it)"
        )
    return live


def _is_replay(connection: Connection, stream: Stream) -> bool:
    """Whether the producer of the events writes marks to the clock, or may still begin to."""
    events, clock = stream.topic("events"), stream.topic("clock")
    if clock not in topics.topic_names(connection):
        return False
    spans = topics.bounds(connection, [events, clock])
    return spans[clock, 0][1] > 0 or all(end == 0 for (topic, _), (_, end) in spans.items() if topic == events)


class TopicChecks:
    """Detects, while a scorer runs, that an input topic has more partitions or was deleted and recreated.

    Args:
        aside: executor that requests the topic ids without blocking the caller.
        told: ids of the topics that the state was built from.
    """

    def __init__(
        self, connection: Connection, stream: Stream, aside: Executor, told: Mapping[str, str], n_partitions: int
    ) -> None:
        self._connection, self._stream, self._aside = connection, stream, aside
        self._told, self._n_partitions = told, n_partitions
        self._asked: Future[None] | None = None

    def look(self, reader: Reader, read_topics: Iterable[str]) -> None:
        """Request the topic ids, and raise the result of an earlier request.

        Raises:
            BrokerError: a topic has more partitions.
            RestoreError: a topic was deleted and recreated.
        """
        if self._asked is not None and self._asked.done():
            error, self._asked = self._asked.exception(), None
            if isinstance(error, RestoreError):
                raise error
        if self._asked is None:
            self._asked = self._aside.submit(check_inputs, self._connection, self._stream, self._told)
        for topic in read_topics:
            n = reader.n_partitions(topic)
            if n is not None and n != self._n_partitions:
                raise BrokerError(
                    f"{topic} had {self._n_partitions} partitions when this scorer started, now it has {n}; nothing in "
                    "the old partitions is lost, but the new ones are not read: stop the producers that write to them, "
                    "then run `unmask recover`, which adds them"
                )
