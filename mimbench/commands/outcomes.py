"""Turns a plan and its stored runs into a table's cells and the facts of its report."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from mimbench import discovery
from mimbench.catalog import Description, Resolved
from mimbench.execute.pool import Report
from mimbench.paths import version
from mimbench.plan.graph import Node, Plan
from mimbench.plan.request import Request, settings
from mimbench.render import Context, UsedRecipe
from mimbench.store.folder import UNREADABLE
from mimbench.store.records import Damaged, impossible
from mimbench.store.remarks import of_data
from mimbench.store.runs import RunStore
from mimbench.store.spec import canonical_json
from mimbench.table import aggregate as aggregation
from mimbench.table import reported
from mimbench.table.cell import SeedOutcome, Table
from mimbench.table.spec import TableSpec

SEE = "see `mimbench runs verify`"
"""The note of a damaged run: its own message is long, and names a path of this machine."""


def outcomes(
    spec: TableSpec, plan: Plan, report: Report, request: Request, store: RunStore
) -> dict[tuple[str, int], dict[int, SeedOutcome]]:
    """(row id, column index) to {seed: outcome}, read from the store now."""
    found: dict[tuple[str, int], dict[int, SeedOutcome]] = {}
    for cell, reason in plan.blocked.items():
        found[cell] = {seed: SeedOutcome("not_runnable", note=str(reason)) for seed in range(request.seeds)}
    for (row, column), keys in plan.cells.items():
        metric = spec.columns[column].metric
        found[row, column] = {
            seed: replace(
                _outcome(plan.nodes[key], metric, plan.recipes[key].about, report, store),
                start=_start(plan, plan.nodes[key]),
            )
            for seed, key in keys.items()
        }
    return found


def _start(plan: Plan, node: Node) -> str:
    """The folder's name of the run that a task's run starts from."""
    return next((plan.nodes[key].spec.folder for key in node.spec.parents.values() if key in plan.nodes), "")


def _outcome(node: Node, metric: str, about: Description, report: Report, store: RunStore) -> SeedOutcome:
    run = node.spec.folder
    folder = store.get(node.key)
    status = folder.outcome() if folder else "missing"
    if status in UNREADABLE:
        return SeedOutcome("damaged", run=run, note=SEE)
    if node.key in report.failed:
        return SeedOutcome("failed", run=run, note=report.failed[node.key])
    if node.key in report.unreached:
        return SeedOutcome("failed", run=run, note=report.unreached[node.key])
    if folder is None or status == "missing":
        return SeedOutcome("missing", run=run)
    if status == "running":
        return SeedOutcome("running", run=run)
    if status == "failed":
        return SeedOutcome("failed", run=run, note=folder.status.message)
    value = folder.result.metrics.get(metric) if folder.result else None
    if value is not None and impossible({metric: value}, about.percentages):
        return SeedOutcome("damaged", run=run, note=SEE)
    if value is None:
        return SeedOutcome("not_runnable", run=run, note=f"this run cannot give {metric}")
    return SeedOutcome("stale" if status == "stale" else "ok", value=value, run=run)


def aggregate(
    spec: TableSpec, plan: Plan, report: Report, request: Request, store: RunStore, *, where: str
) -> Table:
    """The table of a plan's outcomes; see `tabulate`."""
    return tabulate(spec, plan, outcomes(spec, plan, report, request, store), request, where=where)


def tabulate(
    spec: TableSpec,
    plan: Plan,
    found: Mapping[tuple[str, int], Mapping[int, SeedOutcome]],
    request: Request,
    *,
    where: str,
) -> Table:
    """The table of outcomes, by (row's id, column's index) and seed.

    Args:
        where: the table's file in error messages.
    """
    scale = f"changed {request.scale}" if request.changes else request.scale  # no longer the paper's recipe
    flops, loaded = plan.pretraining_flops(), plan.loaded()
    return aggregation.aggregate(
        spec, found, reported.read(), scale, plan.provenance, flops, loaded, where=where
    )


def context(spec: TableSpec, plan: Plan, request: Request, command: str, store: RunStore) -> Context:
    """The report's facts besides the table: the command, what --set changed, data, version, recipes."""
    facts = {"mimbench": version()}
    remarks: dict[str, str] = {}
    if request.changes:
        facts["changed"] = ", ".join(settings(request))
    for node in plan.nodes.values():
        for role, fingerprint in node.spec.data.items():
            facts[f"data: {role}"] = fingerprint[:16]
        if used := discovery.plugin_of(discovery.STAGES[node.spec.stage], node.spec.name):
            facts[f"plug-in: {used.name}"] = used.distribution or str(used.path)
        with suppress(Damaged):  # its cell says so
            folder = store.get(node.key)
            result = folder.result if folder else None
            remarks |= of_data(result.details if result else {})
    for remark in dict.fromkeys(remarks.values()):
        facts[", ".join(role for role in remarks if remarks[role] == remark)] = remark
    return Context(command=command, facts=facts, recipes=used_recipes(spec, plan))


def used_recipes(spec: TableSpec, plan: Plan) -> list[UsedRecipe]:
    """The recipes of all runs behind a table: pretrainings, then teachers, then tasks."""
    stages = ("pretrain", "teacher", "downstream")
    found: dict[tuple[int, str, str], dict[str, Resolved]] = {}
    for row, column in plan.cells:
        for key in plan.lineage(plan.cells[row, column][0]):
            node, resolved = plan.nodes[key], plan.recipes[key]
            same = canonical_json([resolved.values, resolved.sources])
            place = (stages.index(node.spec.stage), resolved.about.title, same)
            found.setdefault(place, {})[spec.row(row).label] = resolved
    used = []
    for (_, title, _), by_row in sorted(found.items(), key=lambda item: item[0][0]):
        resolved = next(iter(by_row.values()))
        fields = {name: (value, resolved.sources.get(name, "")) for name, value in resolved.values.items()}
        used.append(UsedRecipe(title, tuple(by_row), fields))
    return used
