"""Plans of whole tables; what is wrong with a table or a request is refused before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console

from mimbench.catalog import Catalog
from mimbench.commands.workspace import dataset
from mimbench.errors import UserError
from mimbench.plan.graph import Plan
from mimbench.plan.planner import Planner
from mimbench.plan.request import Request
from mimbench.store.runs import RunStore
from mimbench.table import aggregate, reported
from mimbench.table.spec import TableSpec


def plan_table(
    method: str, spec: TableSpec, request: Request, catalog: Catalog, store: RunStore, console: Console
) -> Plan:
    """Plan one table, and refuse what is wrong with it, its references included, before anything runs."""
    plans, _ = plan_tables({(method, spec.name): spec}, request, catalog, store, console)
    return plans[method, spec.name]


def plan_tables(
    specs: Mapping[tuple[str, str], TableSpec],
    request: Request,
    catalog: Catalog,
    store: RunStore,
    console: Console,
) -> tuple[dict[tuple[str, str], Plan], Plan]:
    """The plans of several tables, given as (method, table), and the one of all their runs.

    Raises:
        UserError: a mistake in a table, a reference to no reported figure, a --set or --weights that no table
            knows.
    """
    data = dataset(request, console)
    planners = {name: Planner(catalog, store, data, request) for name in specs}
    plans = {}
    for (method, table), spec in specs.items():
        where = f"tables/{method}/{table}.toml"
        plans[method, table] = planners[method, table].table(spec.rows, spec.columns, where)
        aggregate.aggregate(spec, {}, reported.read(), request.scale, where=where)
    refuse(planners.values())
    whole = Plan.union({"/".join(name): plan for name, plan in plans.items()})
    whole.blocked = {
        (f"{'/'.join(name)} {row}", column): reason
        for name, plan in plans.items()
        for (row, column), reason in plan.blocked.items()
    }
    return plans, whole


def refuse(planners: Iterable[Planner]) -> None:
    """Raises UserError for a --set or --weights that is unknown to every one of the tables."""
    first, *others = [planner.unknown() for planner in planners]
    for option, name in first:
        if all((option, name) in other for other in others):
            known = set().union(*(unknown[option, name] for unknown in (first, *others)))
            prefix, dot, _ = name.rpartition(".")
            if dot and option == "--set":
                option, name = f"{option} {name}", prefix
            raise UserError(option, name, allowed=sorted(known), remedy="No run here takes it.")


def refuse_without_data(plan: Plan, request: Request) -> None:
    """Raises UserError where not one row can be run for want of data or checkpoints that were not given."""
    missing = sorted({reason.option for reason in plan.blocked.values() if reason.option})
    if missing and not plan.targets:
        remedy = (
            f"No row can be run at scale {request.scale} without what is yours: give {' '.join(missing)}."
        )
        raise UserError("--data", remedy=remedy)
