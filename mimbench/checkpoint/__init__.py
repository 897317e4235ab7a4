"""Weights in and out: our own file, and other people's names."""
