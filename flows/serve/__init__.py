"""The live scorer as a plain service, and consumers of what it publishes; no Prefect."""
