"""Training: splits, pretraining, fine-tuning, checkpoints, the probe."""
