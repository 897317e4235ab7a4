"""Downstream tasks: one file per task, and the parts that they share."""
