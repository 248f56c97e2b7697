"""The data plane: from bytes in Kafka to scored, explained alerts. Independent of torch, MLflow and Prefect."""
