"""Training: the runner and its loop, the loader, the optimizer, checkpoints, and the pretraining stage."""
