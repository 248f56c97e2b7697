"""Administration of topics and groups."""

from collections.abc import Iterable, Mapping
from contextlib import suppress

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.errors import TopicAlreadyExistsError

from pipelines.kafka.kafka_python.errors import client_errors
from pipelines.kafka.kafka_python.opening import opened
from pipelines.kafka.port import DELIVERY_MS, REQUEST_MS, Admin, ClusterFacts, Position, TopicFacts
from pipelines.kafka.server import Server


class KafkaPythonAdmin(Admin):
    """An admin client."""

    def __init__(self, server: Server, *, opening_ms: int) -> None:
        self._client: KafkaAdminClient = opened(
            server, KafkaAdminClient, opening_ms=opening_ms, request_timeout_ms=REQUEST_MS
        )

    def ping(self) -> None:
        with client_errors("Kafka did not answer"):
            self._client.describe_cluster()

    def create_topic(self, name: str, n_partitions: int, *, config: Mapping[str, str], replication: int) -> None:
        with client_errors(f"topic {name} was not created"), suppress(TopicAlreadyExistsError):
            self._client.create_topics(
                [NewTopic(name, n_partitions, replication, topic_configs=dict(config))], timeout_ms=DELIVERY_MS
            )

    def delete_topics(self, names: Iterable[str]) -> None:
        topics = sorted(names)
        with client_errors(f"topics {topics} were not deleted"):
            self._client.delete_topics(topics, timeout_ms=DELIVERY_MS)

    def create_partitions(self, counts: Mapping[str, int]) -> None:
        with client_errors(f"no partitions were added to {sorted(counts)}"):
            self._client.create_partitions(dict(counts), timeout_ms=DELIVERY_MS)

    def topic_names(self) -> set[str]:
        with client_errors("no answer about topics"):
            return set(self._client.list_topics())

    def describe(self, names: Iterable[str]) -> dict[str, TopicFacts]:
        with client_errors("no answer about topics"):
            described = self._client.describe_topics(list(names))
        return {
            topic["name"]: TopicFacts(
                _known_id(topic["topic_id"]),
                tuple(sorted(p["partition_index"] for p in topic["partitions"])),
                min(len(p["replica_nodes"]) for p in topic["partitions"]),
                min(len(p["isr_nodes"]) for p in topic["partitions"]),
            )
            for topic in described
            if not topic["error_code"] and topic["partitions"]
        }

    def cluster(self) -> ClusterFacts:
        with client_errors("no answer about the brokers"):
            brokers = [broker["broker_id"] for broker in self._client.describe_cluster()["brokers"]]
            version = self._client.get_broker_version_data(brokers[0]).broker_version
            asked = [ConfigResource(ConfigResourceType.BROKER, str(brokers[0]))]
            (found,) = self._client.describe_configs(asked, config_filter="all")["broker"].values()
        settings = {name: said["value"] for name, said in found.items() if said.get("value") is not None}
        return ClusterFacts(len(brokers), ".".join(map(str, version)), settings)

    def settings(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        topics = list(names)
        with client_errors(f"no answer about the settings of {', '.join(topics)}"):
            found = self._client.describe_configs(
                [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics], config_filter="all"
            )["topic"]
        return {topic: {name: said.get("value") for name, said in found[topic].items()} for topic in topics}

    def change_settings(self, names: Iterable[str], settings: Mapping[str, str]) -> None:
        topics = sorted(names)
        with client_errors(f"the settings of {', '.join(topics)} were not changed"):
            self._client.alter_configs(
                [ConfigResource(ConfigResourceType.TOPIC, topic, configs=dict(settings)) for topic in topics],
                incremental=True,
            )

    def group_positions(self, group: str) -> dict[Position, int]:
        with client_errors(f"no answer about group {group}"):
            found = self._client.list_group_offsets(group)[group]
        return {(tp.topic, tp.partition): noted.offset for tp, noted in found.items()}

    def close(self) -> None:
        with suppress(Exception):
            self._client.close()


def _known_id(topic_id: object) -> str | None:
    """The id of a topic as text; None if the broker does not support ids."""
    text = str(topic_id)
    return None if text.strip("0-") in ("", "None") else text
