"""Many papers' tables at once, as they stand in the store; nothing is computed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mimbench import paths
from mimbench.atomic import write_text
from mimbench.catalog import Catalog
from mimbench.errors import UserError
from mimbench.execute import Report
from mimbench.plan import Plan
from mimbench.render import Context, markdown, readme, terminal, write_all
from mimbench.render import index as index_page
from mimbench.reproduce import aggregate, context, outcomes, plan_table, version
from mimbench.request import Request, check, command_of, report_name
from mimbench.store import RunStore
from mimbench.table import cell, reported
from mimbench.table import spec as tables
from mimbench.table.cell import Cell, SeedOutcome, Table, TableRow
from mimbench.table.spec import Column, Row, TableSpec

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Stored:
    """A paper's table: what it asks for, the runs behind it, what became of them."""

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
        return context(self.spec, self.plan, request, command)


def stored_tables(request: Request, console: Console, *, ablations: bool = False) -> Iterator[Stored]:
    """The main table of every paper, or all of its others."""
    check(request)
    store, catalog = RunStore(paths.runs()), Catalog(paths.cache())
    for method, name in tables.list_tables():
        if (name != "main") != ablations:
            continue
        spec = tables.load(method, name)
        plan = plan_table(method, spec, request, catalog, store, console)
        where = f"tables/{method}/{name}.toml"
        table = aggregate(spec, plan, Report(), request, store, where=where)
        yield Stored(method, spec, plan, outcomes(spec, plan, Report(), request, store), table)


def leaderboard(request: Request, console: Console) -> int:
    """Every pretraining of the main tables once, best first in the first column, against none at all."""
    columns: dict[str, Column] = {}
    rows: dict[str, Row] = {}  # by the key of the pretraining with seed 0
    found: dict[tuple[str, str], dict[int, SeedOutcome]] = {}  # (row's id, metric) to what became of its runs
    rebuilt, untrained = set(), []
    for stored in stored_tables(request, console):
        columns |= {column.metric: column for column in stored.spec.columns if column.metric not in columns}
        for row in stored.spec.rows:
            keys = [stored.plan.cells.get((row.id, index)) for index in range(len(stored.spec.columns))]
            run = next((key[0] for key in keys if key), None)
            if run is None:
                continue  # reported only, or left out at this scale
            pretraining = stored.plan.nodes[run].spec.parents["encoder"]
            if pretraining not in rows:
                name = f"{stored.method} {row.id}"
                rows[pretraining] = row.model_copy(update={"id": name, "baseline": None})
                if row.id in stored.plan.rebuilt:
                    rebuilt.add(name)
                if not stored.plan.recipes[pretraining].about.trains:
                    untrained.append(name)
            name = rows[pretraining].id
            for index, column in enumerate(stored.spec.columns):
                if by_seed := stored.outcomes.get((row.id, index)):
                    found.setdefault((name, column.metric), by_seed)
    ids = [row.id for row in rows.values()]
    if not ids:
        remedy = "No row of a main table can be run at this scale with what is given; see `mimbench plan`."
        raise UserError("--scale", request.scale, remedy=remedy)
    spec = TableSpec(
        paper="The main tables of all papers",
        name="leaderboard",
        title="Leaderboard",
        section="Every pretraining that is run, once, best first",
        note="A row's reported values are those of the first table that has it.",
        baseline=next(iter(untrained), ids[0]),
        columns=tuple(columns.values()),
        rows=tuple(rows.values()),
    )
    places = {metric: index for index, metric in enumerate(columns)}
    by_index = {(name, places[metric]): by_seed for (name, metric), by_seed in found.items()}
    table = cell.aggregate(spec, by_index, reported.read(), request.scale, rebuilt, where="leaderboard")
    table = replace(table, rows=tuple(sorted(table.rows, key=_worst_last)))
    terminal.show(table, console)
    command = f"mimbench leaderboard --scale {request.scale} --seeds {request.seeds}"
    told = Context(command, {"mimbench": version()})
    files = write_all(table, paths.reports_out(), report_name("leaderboard", request), told)
    index_page.write(paths.reports_out())
    for file in reversed(files):
        console.print(str(file), markup=False, highlight=False, soft_wrap=True)
    return 0


def _worst_last(row: TableRow) -> float:
    mean = row.cells[0].mean
    return math.inf if mean is None else -mean


def results(document: Path, request: Request, console: Console) -> int:
    """The main tables, as far as they are done: briefly between a document's marks, whole in RESULTS.md."""
    known = stored_tables(request, console)
    found = [stored for stored in known if any(cell.complete for cell in stored.cells)]
    readme.update(document, [markdown.brief(stored.table) for stored in found])
    whole = _write(document.parent / "RESULTS.md", "Results", found, request)
    console.print(f"{document} and {whole.name} brought up to date", highlight=False)
    return 0


def ablations(document: Path, request: Request, console: Console) -> int:
    """The ablation tables of which no cell is open, in ABLATIONS.md beside a document."""
    known = stored_tables(request, console, ablations=True)
    found = [stored for stored in known if not any(cell.open for cell in stored.cells)]
    if not found:
        remedy = "Make a table first: mimbench reproduce-table METHOD --table TABLE."
        raise UserError("ablations", "none", remedy=remedy)
    whole = _write(document.parent / "ABLATIONS.md", "Ablations", found, request)
    console.print(f"{whole} brought up to date", highlight=False)
    return 0


def _write(path: Path, title: str, found: Sequence[Stored], request: Request) -> Path:
    whole = [markdown.render(stored.table, stored.told(request)) for stored in found]
    lower = [re.sub(r"^#", "##", table, flags=re.MULTILINE) for table in whole]
    write_text(path, "\n\n".join([f"# {title}", *lower]) + "\n")
    return path
