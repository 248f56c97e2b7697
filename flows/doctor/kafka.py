"""What Kafka says of a stream: asked once, judged by `topics`."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from pipelines.contracts.stream import TOPICS, Stream
from pipelines.errors import BrokerError, LoginError
from pipelines.kafka import topics
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import ClusterFacts, Position, TopicFacts

OPENING_MS = 5_000


@dataclass(frozen=True)
class KafkaFacts:
    """The topics of a stream that exist, by kind, with their settings and the offsets of the committed records.

    Args:
        cluster: the brokers; None if this login may not see them.
    """

    connection: Connection
    stream: Stream
    topics: Mapping[str, TopicFacts]
    settings: Mapping[str, Mapping[str, str]]
    spans: Mapping[Position, tuple[int, int]]
    cluster: ClusterFacts | None

    @classmethod
    def ask(cls, connection: Connection, stream: Stream) -> Self:
        """Ask the broker.

        Raises:
            BrokerError: it does not answer, or refuses.
        """
        names = {stream.topic(kind): kind for kind in TOPICS if kind != "labels" or stream.labels}
        with connection.asking(opening_ms=OPENING_MS) as admin:
            found = admin.describe(names)
            settings = admin.settings(found) if found else {}
            try:
                cluster = admin.cluster()
            except LoginError:
                raise
            except BrokerError:
                cluster = None
        return cls(
            connection,
            stream,
            {names[name]: facts for name, facts in found.items()},
            {names[name]: said for name, said in settings.items()},
            topics.bounds(connection, found) if found else {},
            cluster,
        )

    def n_partitions(self, kind: str) -> int:
        """Number of partitions of an existing topic."""
        return len(self.topics[kind].partitions)

    def span(self, kind: str) -> dict[int, tuple[int, int]]:
        """First and end offset of each partition of a topic."""
        return {p: span for (topic, p), span in self.spans.items() if topic == self.stream.topic(kind)}

    @property
    def is_replay(self) -> bool:
        """Whether the events are those of a replay with its own clock, or none have been sent yet."""
        clock, events = self.span("clock"), self.span("events")
        return any(end for _, end in clock.values()) or (bool(clock) and not any(end for _, end in events.values()))

    def stamps(self, kind: str) -> bool:
        """Whether the broker sets the timestamps of a topic."""
        return self.settings[kind].get("message.timestamp.type") == "LogAppendTime"

    def number(self, kind: str, setting: str) -> int:
        """A setting of a topic as a number; -1 is no limit."""
        return int(self.settings[kind].get(setting) or -1)

    def set_topic(self, kind: str, **settings: object) -> str:
        """The command that changes settings of a topic; ``_`` in a name stands for a dot."""
        config = ",".join(f"{name.replace('_', '.')}={value}" for name, value in settings.items())
        return self.tool("kafka-configs.sh", f"--alter --topic {shlex.quote(self.stream.topic(kind))} "
                                             f"--add-config {config}")  # fmt: skip

    def tool(self, name: str, words: str) -> str:
        """A command of Kafka's own tools for this broker; the file of a login is the user's."""
        login = " --command-config client.properties" if self.connection.options else ""
        return f"{name} --bootstrap-server {self.connection.bootstrap}{login} {words}"
