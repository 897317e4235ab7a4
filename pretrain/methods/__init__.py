"""One file per method: the algorithm as its paper tells it, then its recipes."""
