"""`mimbench runs`: what has been computed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mimbench.cli.app import runs
from mimbench.cli.options import make_console
from mimbench.errors import UserError


@runs.command("list")
def list_runs() -> None:
    """Every run of the workspace."""
    from rich.table import Column, Table
    from rich.text import Text

    from mimbench import paths
    from mimbench.execute.progress import duration
    from mimbench.store.export import state, subject
    from mimbench.store.runs import RunStore

    key, outcome, took = (Column(name, no_wrap=True) for name in ("key", "state", "time"))
    run, result = (Column(name, min_width=16, overflow="fold") for name in ("run", "result"))
    table = Table(key, run, Column("seed", no_wrap=True), outcome, took, result)
    damaged = []
    for folder in RunStore(paths.runs()):
        status, became, shown = folder.status, state(folder), []
        if became == "damaged" or not status.state:
            damaged += folder.damage()
        if became != "damaged" and folder.result:
            numbers = folder.result.metrics
            shown = [f"{name} {value:.4g}" for name, value in numbers.items() if name != "lr"][:2]
        if became in ("running", "interrupted") and status.total:
            shown = [f"step {status.step} of {status.total}"]
        seed = "" if became == "damaged" else str(folder.spec.seed)
        short, seconds = folder.path.name.rpartition("-")[2], duration(status.seconds)
        cells = (short, subject(folder), seed, became, seconds, "\n".join(shown))
        table.add_row(*map(Text, cells))
    make_console().print(table)
    for message in damaged:
        typer.echo(message)


@runs.command("show")
def show_run(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Its name or key, or how these begin.")],
) -> None:
    """One run: what it is, what became of it, where its files are."""
    import json
    from dataclasses import asdict

    from mimbench import paths
    from mimbench.store.export import state
    from mimbench.store.runs import RunStore

    folder = RunStore(paths.runs()).find(run)
    shown = {
        "state": state(folder),
        "key": folder.spec.key,
        "spec": folder.spec.as_dict(),
        **({"plugin": folder.plugin} if folder.plugin else {}),
        "status": asdict(folder.status),
        "result": asdict(folder.result) if folder.result else None,
    }
    typer.echo(json.dumps(shown, indent=2))
    if shown["state"] == "failed" and folder.log_path.is_file():
        typer.echo("\n".join(folder.log_path.read_text(errors="replace").splitlines()[-20:]))
    typer.echo(str(folder.path))


@runs.command("export")
def export_runs(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A name that ends in .csv or .json.")],
) -> None:
    """Every run with its recipe and its numbers, a line each, as CSV or JSON."""
    from mimbench import paths
    from mimbench.store.export import export
    from mimbench.store.runs import RunStore

    count = export(RunStore(paths.runs()), file)
    typer.echo(f"{count} runs: {file}")


@runs.command("rm")
def remove_runs(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names or keys, or how these begin.")],
) -> None:
    """Delete runs."""
    from mimbench import paths
    from mimbench.store.runs import RunStore

    store = RunStore(paths.runs())
    for folder in [store.find(name) for name in names]:
        _remove(store, folder)


@runs.command("gc")
def collect(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete the runs that no table refers to (changed recipes, --set), and leftover temporary files."""
    from mimbench import paths
    from mimbench.catalog import Catalog
    from mimbench.commands.gc import unreferenced
    from mimbench.store.runs import RunStore

    store = RunStore(paths.runs())
    folders = unreferenced(store, Catalog(paths.cache()))
    leftovers = store.leftovers()
    for path in [*(folder.path for folder in folders), *leftovers]:
        typer.echo(f"{'would delete' if dry_run else 'to delete'}: {path}")
    if not (folders or leftovers):
        typer.echo("Nothing to collect.")
    if dry_run or not (folders or leftovers):
        return
    if not yes:
        typer.confirm(f"Delete {len(folders)} runs and {len(leftovers)} leftovers?", abort=True)
    for folder in folders:
        _remove(store, folder)
    store.remove_leftovers(leftovers)


def _remove(store: Any, folder: Any) -> None:
    from mimbench.store.folder import RunLocked

    try:
        store.remove(folder)
    except RunLocked:
        raise UserError(
            "RUN", folder.path.name, remedy="It is being computed right now; stop that first."
        ) from None
    typer.echo(f"deleted {folder.path.name}")


@runs.command("restamp")
def restamp_runs(
    because: Annotated[str, typer.Option("--because", help="Why no number changed; kept with each result.")],
    lines: Annotated[
        int, typer.Option("--lines", min=1, help="Lines of metrics.jsonl to compare, at least.")
    ] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compare, but write nothing.")] = False,
) -> None:
    """Let stale runs count as done where today's code gives their recorded numbers again, bit for bit."""
    from mimbench.commands.restamp import restamp

    raise typer.Exit(restamp(because, make_console(), lines=lines, dry_run=dry_run))
