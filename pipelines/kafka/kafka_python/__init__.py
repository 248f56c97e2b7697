"""The adapter for kafka-python: the only folder that imports it."""
