"""Pretraining: a file per method in `methods/`, their teachers in `teachers/`, shared parts beside these."""
