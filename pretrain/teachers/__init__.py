"""Teachers and tokenizers that methods need: each is trained (or loaded) by a separate run."""
