"""The adapter for confluent-kafka (librdkafka)."""
