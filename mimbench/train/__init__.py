"""Training: one runner, its schedules, its loader and the pretraining stage."""
