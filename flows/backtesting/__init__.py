"""A past period replayed from the lake: who would have been caught, when, at what workload."""
