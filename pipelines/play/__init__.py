"""A simulated stream, and the producer of a replay."""
