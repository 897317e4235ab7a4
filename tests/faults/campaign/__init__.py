"""A campaign of damaged files and odd datasets, drawn from a seed: is a wrong number ever shown?

`make faults SEED=7` runs it. `reference` computes a small store with real runs. `stored` damages its files,
and `computed` those that runs read; both look at what the commands then say. `data_cases` makes datasets with
one oddity each, whose right handling is known from elsewhere.
"""
