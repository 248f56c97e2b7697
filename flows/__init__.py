"""Application: Prefect flows, settings, local servers and the command line. Connects pipelines and models."""
