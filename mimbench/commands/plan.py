"""Plans whole tables, and refuses wrong tables and requests before anything runs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console

from mimbench import paths
from mimbench.catalog import Catalog
from mimbench.commands.workspace import dataset, read_catalog
from mimbench.errors import UserError
from mimbench.plan.graph import Plan
from mimbench.plan.ledger import SHAPE
from mimbench.plan.names import load_table
from mimbench.plan.planner import Planner
from mimbench.plan.proposals import proposing
from mimbench.plan.recipes import MISSPELT, Recipes
from mimbench.plan.request import Request, check
from mimbench.store.runs import RunStore
from mimbench.table import aggregate, reported
from mimbench.table.spec import TableSpec


def make_plan(method: str, table: str, request: Request, notices: Console) -> Plan:
    """The plan of a table as `mimbench plan` shows it; nothing is computed.

    Raises:
        UserError: an unknown table, or an option that does not fit it.
    """
    check(request)
    store, catalog = RunStore(paths.runs()), read_catalog(notices)
    return plan_table(method, load_table(method, table), request, catalog, store)


def plan_table(method: str, spec: TableSpec, request: Request, catalog: Catalog, store: RunStore) -> Plan:
    """Plan one table; raises as `plan_tables` does."""
    plans, _ = plan_tables({(method, spec.name): spec}, request, catalog, store)
    return plans[method, spec.name]


def plan_tables(
    specs: Mapping[tuple[str, str], TableSpec],
    request: Request,
    catalog: Catalog,
    store: RunStore,
) -> tuple[dict[tuple[str, str], Plan], Plan]:
    """The plan of each table, by (method, table), and one plan of all their runs.

    Raises:
        UserError: a mistake in a table, a reference to a reported figure that does not exist, or a --set or
            --weights entry that no table uses.
    """
    data = dataset(request, catalog)

    def build(request: Request) -> dict[tuple[str, str], Plan]:
        recipes = Recipes(catalog, data, request.scale)
        planners = {name: Planner(catalog, store, data, request, recipes) for name in specs}
        plans = {}
        for (method, table), spec in specs.items():
            where = f"tables/{method}/{table}.toml"
            plans[method, table] = planners[method, table].table(spec.rows, spec.columns, where)
            aggregate.aggregate(spec, {}, reported.read(), request.scale, where=where)
        refuse(planners.values())
        return plans

    plans = proposing(build, request)
    whole = Plan.union({"/".join(name): plan for name, plan in plans.items()})
    whole.blocked = {
        (f"{'/'.join(name)} {row}", column): reason
        for name, plan in plans.items()
        for (row, column), reason in plan.blocked.items()
    }
    return plans, whole


def refuse(planners: Iterable[Planner]) -> None:
    """Raises UserError for a --set or --weights entry that no run of any of the tables uses."""
    planners = list(planners)
    first, *others = [planner.ledger.unused(planner.plan) for planner in planners]
    for option, name in first:
        if all((option, name) in other for other in others):
            known = set().union(*(unused[option, name] for unused in (first, *others)))
            raise _unused(option, name, known, planners)


def _unused(option: str, name: str, known: set[str], planners: Sequence[Planner]) -> UserError:
    """The error for an entry that no run uses; `known` are the names that some run would use."""
    prefix, dot, field = name.rpartition(".")
    if option == "--set" and prefix in known and planners[0].ledger.is_idle(prefix, field):
        shape = ", ".join(f"{prefix}.{other}" for other in sorted(SHAPE))
        return UserError(f"--set {name}", remedy=f"{prefix} trains nothing. What can be set is {shape}.")
    if option == "--set" and dot:
        return UserError(f"{option} {name}", prefix, allowed=sorted(known), remedy="No run here takes it.")
    is_misspelt = difflib.get_close_matches(name, known, cutoff=MISSPELT)
    owners = planners[0].recipes.owners(name) if option == "--set" and not is_misspelt else []
    if owners:
        return UserError(f"--set {name}", remedy=_where_else(name, owners, planners))
    return UserError(option, name, allowed=sorted(known), remedy="No run here takes it.")


def _where_else(field: str, owners: Sequence[str], planners: Sequence[Planner]) -> str:
    """What to do about a field that some recipes have, but no pretraining of the plans takes."""
    parts = {node.spec.name for planner in planners for node in planner.plan.nodes.values()}
    trained = [owner for owner in owners if planners[0].recipes.trains(owner)]
    untrained = sorted(parts & set(owners) - set(trained))
    here = [f"--set {part}.{field}=VALUE" for part in trained if part in parts]
    sentences = ["No pretraining here takes it."]
    if untrained:
        sentences.append(f"{', '.join(untrained)} trains nothing.")
    if here:
        sentences.append(f"Write {' or '.join(here)}.")
    elif trained:
        sentences.append(f"It is a field of {', '.join(trained)}.")
    return " ".join(sentences)


def refuse_without_data(plan: Plan, request: Request) -> None:
    """Raises UserError where no row can be run because data or checkpoints were not given."""
    missing = sorted({reason.option for reason in plan.blocked.values() if reason.option})
    if missing and not plan.targets:
        remedy = (
            f"No row can be run at scale {request.scale} without your own data: give {' '.join(missing)}."
        )
        raise UserError("--data", remedy=remedy)
