"""One file per method: the algorithm as in its paper, then its recipes."""
