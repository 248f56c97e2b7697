"""The wiring: Prefect flows, settings, local servers, the command line. Knows both pipelines and models."""
