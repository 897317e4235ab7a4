"""What `runs gc` may throw away."""

from __future__ import annotations

from pathlib import Path

from mimbench.catalog import Catalog
from mimbench.commands import gc as garbage
from mimbench.plan.planner import Planner
from mimbench.plan.request import Request
from mimbench.store.runs import RunStore
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


def test_gc_keeps_rows_that_are_left_out_for_time() -> None:
    """`mimbench run simmim classification` is what SdAE's table names in the place of its own row."""
    spec, catalog = load("sdae", "main"), Catalog(None)
    assert "toy" in spec.row("simmim").not_at
    build = garbage._AnyPlanner(catalog, RunStore(Path("/nonexistent")), garbage._AnyData(), Request())
    plan = build.table(spec.rows, spec.columns, "tables/sdae/main.toml")
    assert "simmim" in {node.spec.name for node in plan.nodes.values()}
    impossible = spec.row("sdae").model_copy(update={"set": {"num_folds": 1000}, "not_at": {"toy": "so"}})
    build = garbage._AnyPlanner(catalog, RunStore(Path("/nonexistent")), garbage._AnyData(), Request())
    plan = build.table([impossible, spec.row("mae")], spec.columns, "tables/sdae/main.toml")
    assert {row for row, _ in plan.cells} == {"mae"} and {row for row, _ in plan.blocked} == {"sdae"}
