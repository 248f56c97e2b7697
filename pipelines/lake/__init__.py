"""Delta tables of what went through Kafka, the replay of their rows, the audits."""
