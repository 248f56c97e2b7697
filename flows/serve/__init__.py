"""The live scorer as a service without Prefect, and consumers of its output."""
