"""What `runs gc` may throw away."""

from __future__ import annotations

from pathlib import Path

from mimbench import garbage
from mimbench.catalog import Catalog
from mimbench.plan import Planner
from mimbench.request import Request
from mimbench.store import RunStore
from mimbench.table.spec import load


def test_gc_keeps_runs_that_loaded_weights() -> None:
    """Paper-scale rows whose teacher is loaded are in a table too, whether or not a path is given now."""
    found = {}
    for planner in (Planner, garbage._AnyPlanner):
        catalog = Catalog(None)
        build = planner(catalog, RunStore(Path("/nonexistent")), garbage._AnyData(), Request(scale="paper"))
        spec = load("dtm", "main")
        found[planner] = build.table(spec.rows, spec.columns, "tables/dtm/main.toml")
    plain, free = found.values()
    assert plain.blocked and not free.blocked
    assert {"clip", "dtm", "feature-mim"} <= {node.spec.name for node in free.nodes.values()}
