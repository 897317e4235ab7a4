"""The run store: one folder a run, files as the truth."""
