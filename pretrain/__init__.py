"""Pretraining: a file per method in `methods/`, their teachers in `teachers/`, what they share beside."""
