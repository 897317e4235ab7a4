"""What methods must have before they start: a teacher is trained (or loaded) by a run of its own."""
