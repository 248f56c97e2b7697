"""Scorers that are killed under load, and what must hold afterwards."""
