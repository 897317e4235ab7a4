"""The papers' tables, filled from stored runs; nothing is computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from rich.console import Console

from mimbench import paths
from mimbench.commands.outcomes import context, outcomes, tabulate
from mimbench.commands.plan import plan_table
from mimbench.commands.workspace import read_catalog
from mimbench.execute.pool import Report
from mimbench.plan.graph import Plan
from mimbench.plan.request import Request, check, command_of
from mimbench.render import Context
from mimbench.store.runs import RunStore
from mimbench.table import spec as tables
from mimbench.table.cell import Cell, SeedOutcome, Table
from mimbench.table.spec import TableSpec


@dataclass(frozen=True)
class Stored:
    """A paper's table: its spec, the plan of its runs, their outcomes, and its cells."""

    method: str
    spec: TableSpec
    plan: Plan
    outcomes: dict[tuple[str, int], dict[int, SeedOutcome]]
    table: Table

    @property
    def cells(self) -> list[Cell]:
        return [cell for row in self.table.rows for cell in row.cells]

    def told(self, request: Request) -> Context:
        command = command_of(self.method, self.spec.name, request)
        return context(self.spec, self.plan, request, command, RunStore(paths.runs()))


def stored_tables(request: Request, console: Console, *, ablations: bool = False) -> Iterator[Stored]:
    """The main table of every paper; with `ablations`, all other tables instead."""
    check(request)
    store, catalog = RunStore(paths.runs()), read_catalog(console)
    for method, name in tables.list_tables():
        if (name != "main") != ablations:
            continue
        spec = tables.load(method, name)
        plan = plan_table(method, spec, request, catalog, store)
        where = f"tables/{method}/{name}.toml"
        found = outcomes(spec, plan, Report(), request, store)
        found = {place: {n: _brief(each) for n, each in by_seed.items()} for place, by_seed in found.items()}
        yield Stored(method, spec, plan, found, tabulate(spec, plan, found, request, where=where))


def _brief(outcome: SeedOutcome) -> SeedOutcome:
    """An outcome for a document: without the message of a failed run, which may name local paths."""
    return replace(outcome, note="") if outcome.status == "failed" else outcome
