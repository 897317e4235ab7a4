"""The run store: one folder per run. Its files are the only record."""
