"""From a network's outputs to a calibrated score, a threshold and reasons; torch-free."""
