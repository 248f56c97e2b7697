"""Kafka, the only folder with a client of it: a port, an adapter, topics, progress records."""
