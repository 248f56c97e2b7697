"""The adapter for kafka-python, the only package that imports it."""
