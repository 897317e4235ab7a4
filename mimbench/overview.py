"""All papers' main tables at once, as they stand in the store; nothing is computed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mimbench import paths
from mimbench.atomic import write_text
from mimbench.catalog import Catalog
from mimbench.execute import Report
from mimbench.render import markdown, readme, terminal
from mimbench.reproduce import aggregate, context, plan_table
from mimbench.request import Request, check, command_of
from mimbench.store import RunStore
from mimbench.table import spec as tables

if TYPE_CHECKING:
    from rich.console import Console

    from mimbench.render import Context
    from mimbench.table.cell import Table


def leaderboard(request: Request, console: Console) -> int:
    """The main table of every paper as it stands in the store; nothing is computed."""
    pages = ["# Leaderboard", f"Scale {request.scale}, {request.seeds} seed(s). What is not run yet says so."]
    for table, told in stored_tables(request, console):
        terminal.show(table, console)
        pages.append("#" + markdown.render(table, told))  # its title becomes a section
    path = paths.reports_out() / "leaderboard.md"
    write_text(path, "\n\n".join(pages) + "\n")
    console.print(str(path), markup=False, highlight=False, soft_wrap=True)
    return 0


def results(document: Path, request: Request, console: Console) -> int:
    """The finished main tables into a document: briefly between its marks, whole in RESULTS.md beside it."""
    found = [
        (table, told)
        for table, told in stored_tables(request, console)
        if any(cell.complete for row in table.rows for cell in row.cells)
    ]
    readme.update(document, [markdown.brief(table) for table, _ in found])
    whole = ["# Results", *("#" + markdown.render(table, told) for table, told in found)]
    write_text(document.parent / "RESULTS.md", "\n\n".join(whole) + "\n")
    console.print(f"{document} and RESULTS.md brought up to date", highlight=False)
    return 0


def stored_tables(request: Request, console: Console) -> Iterator[tuple[Table, Context]]:
    """The main table of every paper as it stands in the store."""
    check(request)
    store, catalog = RunStore(paths.runs()), Catalog(paths.cache())
    for method, name in tables.list_tables():
        if name != "main":
            continue
        spec = tables.load(method, name)
        plan = plan_table(method, spec, request, catalog, store, console)
        where = f"tables/{method}/{name}.toml"
        table = aggregate(spec, plan, Report(), request, store, where=where)
        yield table, context(spec, plan, command_of(method, name, request))
