"""Scoring without torch: calibrated scores, thresholds and reasons from the outputs of a network."""
