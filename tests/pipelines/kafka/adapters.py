"""Every adapter of the Kafka port; the battery runs for each."""

from pipelines.kafka.confluent.client import Confluent
from pipelines.kafka.kafka_python.client import KafkaPython
from pipelines.kafka.port import Adapter

ADAPTERS: dict[str, Adapter] = {"kafka-python": KafkaPython, "confluent-kafka": Confluent}
