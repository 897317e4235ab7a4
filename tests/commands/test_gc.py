"""What `runs gc` may throw away."""

from __future__ import annotations

from pathlib import Path

from mimbench.catalog import Catalog
from mimbench.plan.datasets import Data, Everything, Source
from mimbench.plan.graph import Plan
from mimbench.plan.planner import Planner
from mimbench.plan.request import Request
from mimbench.store.runs import RunStore
from mimbench.table.spec import TableSpec, load

NOTHING = RunStore(Path("/nonexistent"))


def plan_of(spec: TableSpec, request: Request, data: Source) -> Plan:
    planner = Planner(Catalog(None), NOTHING, data, request)
    return planner.table(spec.rows, spec.columns, f"tables/{spec.name}.toml")


def test_gc_keeps_runs_that_loaded_weights() -> None:
    """Paper-scale rows whose teacher is loaded are in a table too, whether or not a path is given now."""
    request = Request(scale="paper")
    given = plan_of(load("dtm"), request, Data(request, Path))
    everything = plan_of(load("dtm"), request, Everything())
    assert given.blocked and not everything.blocked
    assert {"clip", "dtm", "feature-mim"} <= {node.spec.name for node in everything.nodes.values()}


def test_gc_keeps_rows_that_are_left_out_for_time() -> None:
    """SdAE's table leaves its SimMIM row out at scale toy; `mimbench run simmim classification` makes it."""
    spec, request = load("sdae"), Request()
    assert "toy" in spec.row("simmim").not_at
    plan = plan_of(spec, request, Everything())
    assert "simmim" in {node.spec.name for node in plan.nodes.values()}
    impossible = spec.row("sdae").model_copy(update={"set": {"num_folds": 1000}, "not_at": {"toy": "so"}})
    plan = plan_of(spec.model_copy(update={"rows": (impossible, spec.row("mae"))}), request, Everything())
    assert {row for row, _ in plan.cells} == {"mae"} and {row for row, _ in plan.blocked} == {"sdae"}
