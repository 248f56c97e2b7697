"""Local servers: Kafka, MLflow and Prefect as child processes."""
