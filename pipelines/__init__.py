"""The data plane: from bytes on Kafka to scored, explained alerts. Knows no torch, MLflow or Prefect."""
