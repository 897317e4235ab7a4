"""Every pretraining of the papers' main tables on one page, best first."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace

from rich.console import Console

from mimbench import paths, plugin
from mimbench.commands.stored import stored_tables
from mimbench.errors import UserError
from mimbench.paths import version
from mimbench.plan.request import Request, report_name
from mimbench.render import Context, terminal, write_all
from mimbench.render import index as index_page
from mimbench.table import aggregate, reported
from mimbench.table.cell import SeedOutcome, TableRow
from mimbench.table.spec import Column, Row, TableSpec


def leaderboard(request: Request, console: Console) -> int:
    """Print and write every pretraining of the main tables once, best first by the first column.

    The baseline is the first row without pretraining, or else the first row.
    """
    columns: dict[str, Column] = {}
    rows: dict[str, Row] = {}  # by the key of the pretraining with seed 0
    found: dict[tuple[str, str], dict[int, SeedOutcome]] = {}  # (row's id, metric) to what became of its runs
    provenance: dict[str, str] = {}
    untrained = []
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
                provenance[name] = stored.plan.provenance[row.id]
                if not stored.plan.recipes[pretraining].about.trains:
                    untrained.append(name)
            name = rows[pretraining].id
            for index, column in enumerate(stored.spec.columns):
                if by_seed := stored.outcomes.get((row.id, index)):
                    found.setdefault((name, column.metric), by_seed)
    ids = [row.id for row in rows.values()]
    if not ids:
        remedy = "No row of a main table can be run at this scale with this data; see `mimbench plan`."
        raise UserError("--scale", request.scale, remedy=remedy)
    if not any(seed.value is not None for by_seed in found.values() for seed in by_seed.values()):
        scale = "" if request.scale == "toy" else f" --scale {request.scale}"
        console.print(
            f"Nothing is computed at scale {request.scale} yet, so no page is written. "
            f"`mimbench reproduce-table METHOD{scale}` computes a table, "
            f"`mimbench reproduce-all{scale}` all of them; `mimbench tables` lists them.",
            highlight=False,
            soft_wrap=True,
        )
        return 0
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
    table = aggregate.aggregate(
        spec, by_index, reported.read(), request.scale, provenance, where="leaderboard"
    )
    table = replace(table, rows=tuple(sorted(table.rows, key=_worst_last)))
    terminal.show(table, console)
    options = ["--scale", request.scale, "--seeds", str(request.seeds)]
    command = shlex.join(["mimbench", *plugin.words(), "leaderboard", *options])
    told = Context(command, {"mimbench": version()})
    files = write_all(table, paths.reports_out(), report_name("leaderboard", request), told)
    index_page.write(paths.reports_out())
    for file in reversed(files):
        console.print(str(file), markup=False, highlight=False, soft_wrap=True)
    return 0


def _worst_last(row: TableRow) -> float:
    mean = row.cells[0].mean
    return math.inf if mean is None else -mean
