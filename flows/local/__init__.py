"""Servers of this machine: Kafka, MLflow, Prefect as child processes."""
