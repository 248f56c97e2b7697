"""Delta tables of all records in Kafka, the replay of their rows, and the audits."""
