"""The learning; knows no Kafka, Delta or Prefect."""
