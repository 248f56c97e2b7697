"""Models: training, scoring and the model registry. Independent of Kafka, Delta and Prefect."""
