"""Commands that say what there is: methods, tasks, tables, and what is installed here."""

from __future__ import annotations

from typing import Literal

import typer

from mimbench.cli.app import app
from mimbench.cli.options import make_console


@app.command()
def methods() -> None:
    """List the pretraining methods and their teachers."""
    from rich.table import Column, Table

    from mimbench.commands.workspace import read_catalog

    console = make_console()
    catalog = read_catalog(console)
    names = [Column(name, overflow="fold") for name in ("paper", "official code", "needs")]
    table = Table(Column("method", no_wrap=True), *names[:2], "golden", "points", names[2])
    kinds: tuple[Literal["method", "teacher"], ...] = ("method", "teacher")
    for kind in kinds:
        for about in catalog.all(kind):
            code = about.code or "" if about.provenance == "official" else about.provenance
            name = about.name if kind == "method" else f"{about.name}\n(teacher)"
            golden = "yes" if about.golden else "–"
            needs = ", ".join(about.needs.values())
            table.add_row(name, about.paper, code, golden, str(about.points or "–"), needs)
    console.print(table)
    console.print(
        "golden: compared with numbers of the official code. points: statements of the specification that "
        "are tests. needs: what is trained or loaded first.",
        style="dim",
    )


@app.command()
def tasks() -> None:
    """List the downstream tasks and their metrics."""
    from rich.table import Column, Table

    from mimbench.commands.workspace import read_catalog

    console = make_console()
    name, data, metrics = (Column(name, no_wrap=True) for name in ("task", "data", "metrics"))
    table = Table(name, Column("protocol", overflow="fold"), data, metrics)
    for about in read_catalog(console).all("task"):
        names = "\n".join(metric["name"] for metric in about.metrics)
        table.add_row(about.name, about.protocol, about.data, names)
    console.print(table)


@app.command()
def tables() -> None:
    """List the tables that can be reproduced."""
    from rich.table import Column, Table

    from mimbench.table.spec import list_tables, load

    names = [Column(name, no_wrap=True) for name in ("method", "table")]
    table = Table(*names, "title", "where", "rows run / all")
    for method, name in list_tables():
        spec = load(method, name)
        count = sum(row.method is not None for row in spec.rows)
        table.add_row(method, name, spec.title, spec.section, f"{count} / {len(spec.rows)}")
    make_console().print(table)


@app.command()
def doctor() -> None:
    """What is installed, what can run here, what is missing and how to get it."""
    from mimbench.commands import doctor as examination

    raise typer.Exit(examination.main(make_console()))
