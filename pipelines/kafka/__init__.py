"""Access to Kafka: the client interface (port) and its adapters, topics, progress records."""
