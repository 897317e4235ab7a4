"""Commands that list methods, tasks and tables, and what is installed here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from mimbench.cli.app import command
from mimbench.cli.help import ENVIRONMENT, LOOK
from mimbench.cli.options import JsonOption, PlainOption, make_console, make_notices, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from mimbench.catalog import Description
    from mimbench.cli.listing import ListConsole


@command(
    panel=LOOK,
    examples="mimbench methods\nmimbench methods --plain | grep reconstruction\nmimbench methods --json",
)
def methods(as_json: JsonOption = False, plain: PlainOption = False) -> None:
    """List the pretraining methods and their teachers."""
    from mimbench.commands.workspace import read_catalog

    catalog = read_catalog(make_notices())
    if as_json:
        from mimbench.commands import describe

        return print_json(describe.methods(catalog))
    from mimbench.cli.listing import list_console

    console = list_console(plain)
    console.print(_methods_table([*catalog.all("method"), *catalog.all("teacher")], console))
    if not console.plain:
        notes = (
            "\ncode: the official code that the method follows; `reconstruction`: there is none; `own`: an",
            "idea of the file's author. golden: compared with numbers of the official code. points:",
            "statements of the specification that have a test. needs: what is trained or loaded first.",
        )
        console.print(" ".join(notes), style="dim")


def _methods_table(found: Sequence[Description], console: ListConsole) -> Table:
    """The methods as a table. On a narrow terminal the facts go below the paper."""
    from rich.table import Column, Table

    from mimbench.cli.listing import cell, is_roomy, stack

    roomy = is_roomy(console)
    names = ("method", "kind", "golden", "points", "needs")
    name, kind, golden, points, needs = (Column(name, no_wrap=True) for name in names)
    paper, code = (Column(name, overflow="fold", ratio=ratio) for name, ratio in (("paper", 3), ("code", 2)))
    table = Table(*((name, kind, paper, code, golden, points, needs) if roomy else (name, paper)))
    for about in found:
        source = about.code or "" if about.provenance == "official" else about.provenance
        before = ", ".join(about.needs.values())
        if roomy:
            facts = (about.paper, source, "yes" if about.golden else "", about.points or "", before)
            table.add_row(*map(cell, (about.name, about.kind, *facts)))
            continue
        below = [source, "golden" if about.golden else "", f"{about.points} points" if about.points else ""]
        below.append(f"needs {before}" if before else "")
        kind_below = about.kind if about.kind == "teacher" else ""
        table.add_row(stack(about.name, kind_below), stack(about.paper, " · ".join(filter(None, below))))
    return table


@command(panel=LOOK, examples="mimbench tasks\nmimbench tasks --json")
def tasks(as_json: JsonOption = False, plain: PlainOption = False) -> None:
    """List the downstream tasks and their metrics."""
    from mimbench.commands.workspace import read_catalog

    catalog = read_catalog(make_notices())
    if as_json:
        from mimbench.commands import describe

        return print_json(describe.tasks(catalog))
    from rich.table import Column, Table

    from mimbench.cli.listing import cell, is_roomy, list_console, stack

    console = list_console(plain)
    task, data = (Column(name, no_wrap=True) for name in ("task", "data"))
    protocol, metrics = (Column(name, overflow="fold") for name in ("protocol", "metrics"))
    roomy = is_roomy(console)
    table = Table(*((task, data, protocol, metrics) if roomy else (task, data, protocol)))
    for about in catalog.all("task"):
        names = ", ".join(metric["name"] for metric in about.metrics)
        first = (cell(about.name), cell(about.data))
        if roomy:
            table.add_row(*first, cell(about.protocol), cell(names))
        else:
            table.add_row(*first, stack(about.protocol, names))
    console.print(table)


@command(panel=LOOK, examples="mimbench tables\nmimbench tables --plain | grep ^dtm\nmimbench tables --json")
def tables(as_json: JsonOption = False, plain: PlainOption = False) -> None:
    """List the tables that can be reproduced."""
    if as_json:
        from mimbench.commands import describe

        return print_json(describe.list_tables())
    from rich.table import Column, Table

    from mimbench.cli.listing import cell, is_roomy, list_console, stack
    from mimbench.table.spec import list_tables, load

    console = list_console(plain)
    method, name, rows = (Column(name, no_wrap=True) for name in ("method", "table", "run"))
    title, where = (Column(name, overflow="fold") for name in ("title", "where"))
    roomy = is_roomy(console)
    table = Table(*((method, name, rows, title, where) if roomy else (method, name, rows, title)))
    for paper, table_name in list_tables():
        spec = load(paper, table_name)
        count = sum(row.method is not None for row in spec.rows)
        first = map(cell, (paper, table_name, f"{count} of {len(spec.rows)}"))
        if roomy:
            table.add_row(*first, cell(spec.title), cell(spec.section))
        else:
            table.add_row(*first, stack(spec.title, spec.section))
    console.print(table)
    if not console.plain:
        console.print("\nrun: rows that mimbench computes; the others are only reported.", style="dim")


@command(panel=ENVIRONMENT, examples="mimbench doctor\nmimbench doctor --json")
def doctor(as_json: JsonOption = False) -> None:
    """Show what is installed, what can run here, what is missing and how to get it."""
    from mimbench.commands import doctor as examination

    if as_json:
        found = examination.examine()
        print_json(found.as_dict())
        raise typer.Exit(found.status)
    raise typer.Exit(examination.main(make_console()))
