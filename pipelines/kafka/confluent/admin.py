"""Administration of topics and groups."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from pipelines.kafka.confluent.errors import client_errors
from pipelines.kafka.confluent.opening import closed, opened
from pipelines.kafka.port import DELIVERY_MS, REQUEST_MS, Admin, ClusterFacts, Position, TopicFacts
from pipelines.kafka.server import Server

_TIMEOUT_S = DELIVERY_MS / 1000
_UNKNOWN = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_EXCEPTION}


class ConfluentAdmin(Admin):
    """An admin client."""

    def __init__(self, server: Server, *, opening_ms: int) -> None:
        self._clients: list[AdminClient] = [opened(server, AdminClient, {}, opening_ms=opening_ms)]

    @property
    def _client(self) -> Any:
        return self._clients[0]

    def ping(self) -> None:
        with client_errors("Kafka did not answer"):
            self._client.describe_cluster(request_timeout=REQUEST_MS / 1000).result()

    def create_topic(self, name: str, n_partitions: int, *, config: Mapping[str, str], replication: int) -> None:
        topic = NewTopic(name, n_partitions, replication, config=dict(config))
        with client_errors(f"topic {name} was not created"), _unless({KafkaError.TOPIC_ALREADY_EXISTS}):
            _wait(self._client.create_topics([topic], request_timeout=_TIMEOUT_S))

    def delete_topics(self, names: Iterable[str]) -> None:
        topics = sorted(names)
        with client_errors(f"topics {topics} were not deleted"):
            _wait(self._client.delete_topics(topics, request_timeout=_TIMEOUT_S))

    def create_partitions(self, counts: Mapping[str, int]) -> None:
        added = [NewPartitions(name, n) for name, n in counts.items()]
        with client_errors(f"no partitions were added to {sorted(counts)}"):
            _wait(self._client.create_partitions(added, request_timeout=_TIMEOUT_S))

    def topic_names(self) -> set[str]:
        with client_errors("no answer about topics"):
            return set(self._client.list_topics(timeout=_TIMEOUT_S).topics)

    def describe(self, names: Iterable[str]) -> dict[str, TopicFacts]:
        found: dict[str, TopicFacts] = {}
        with client_errors("no answer about topics"):
            asked = self._client.describe_topics(TopicCollection(list(names)), request_timeout=_TIMEOUT_S)
            for name, answer in asked.items():
                with _unless(_UNKNOWN):
                    topic = answer.result()
                    numbers = tuple(sorted(partition.id for partition in topic.partitions))
                    copies = min((len(partition.replicas) for partition in topic.partitions), default=0)
                    in_sync = min((len(partition.isr) for partition in topic.partitions), default=0)
                    found[name] = TopicFacts(_known_id(topic.topic_id), numbers, copies, in_sync)
        return {name: facts for name, facts in found.items() if facts.partitions}

    def cluster(self) -> ClusterFacts:
        with client_errors("no answer about the brokers"):
            nodes = self._client.describe_cluster(request_timeout=REQUEST_MS / 1000).result().nodes
            asked = [ConfigResource(ResourceType.BROKER, str(nodes[0].id))]
            (answer,) = self._client.describe_configs(asked, request_timeout=_TIMEOUT_S).values()
            settings = {name: entry.value for name, entry in answer.result().items() if entry.value is not None}
        return ClusterFacts(len(nodes), None, settings)

    def settings(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        topics = [ConfigResource(ResourceType.TOPIC, name) for name in names]
        with client_errors(f"no answer about the settings of {', '.join(topic.name for topic in topics)}"):
            answers = self._client.describe_configs(topics, request_timeout=_TIMEOUT_S)
            return {
                topic.name: {name: entry.value for name, entry in answer.result().items()}
                for topic, answer in answers.items()
            }

    def change_settings(self, names: Iterable[str], settings: Mapping[str, str]) -> None:
        changes = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in settings.items()
        ]
        topics = [ConfigResource(ResourceType.TOPIC, name, incremental_configs=changes) for name in sorted(names)]
        with client_errors(f"the settings of {', '.join(topic.name for topic in topics)} were not changed"):
            _wait(self._client.incremental_alter_configs(topics, request_timeout=_TIMEOUT_S))

    def group_positions(self, group: str) -> dict[Position, int]:
        with client_errors(f"no answer about group {group}"):
            asked = [ConsumerGroupTopicPartitions(group)]
            answers = self._client.list_consumer_group_offsets(asked, request_timeout=_TIMEOUT_S)
            return {(tp.topic, tp.partition): tp.offset for tp in answers[group].result().topic_partitions}

    def note_group(self, group: str, positions: Mapping[Position, int]) -> None:
        """Commit a group's offsets."""
        offsets = [TopicPartition(topic, partition, offset) for (topic, partition), offset in positions.items()]
        with client_errors(f"the offsets of group {group} were not committed"):
            asked = [ConsumerGroupTopicPartitions(group, offsets)]
            answers = self._client.alter_consumer_group_offsets(asked, request_timeout=_TIMEOUT_S)
            for tp in answers[group].result().topic_partitions:
                if tp.error is not None:
                    raise KafkaException(tp.error)

    def close(self) -> None:
        closed(self._clients)


def _wait(answers: Mapping[Any, Future[Any]]) -> None:
    for answer in answers.values():
        answer.result()


@contextmanager
def _unless(codes: Collection[int]) -> Iterator[None]:
    """Suppress errors of the client with one of these codes."""
    try:
        yield
    except KafkaException as error:
        if error.args[0].code() not in codes:
            raise


def _known_id(topic_id: Any) -> str | None:
    """The id of a topic as text; None if the broker does not support ids."""
    high, low = topic_id.get_most_significant_bits(), topic_id.get_least_significant_bits()
    return str(UUID(int=(high << 64) + (low & 2**64 - 1) & 2**128 - 1)) if high or low else None
