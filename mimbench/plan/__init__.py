"""From a request to the graph of runs behind it. Nothing here loads torch."""
