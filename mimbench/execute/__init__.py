"""Computes the graph of runs: worker processes, their progress, this machine."""
