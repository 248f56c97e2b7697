"""Every adapter of the Kafka port; the battery runs for each, all other tests for that of KAFKA_CLIENT."""

import os

from pipelines.kafka.confluent.client import Confluent
from pipelines.kafka.kafka_python.client import KafkaPython
from pipelines.kafka.port import Adapter

ADAPTERS: dict[str, Adapter] = {"kafka-python": KafkaPython, "confluent-kafka": Confluent}
CLIENT = os.environ.get("KAFKA_CLIENT", "kafka-python")
