"""`mimbench runs`: what has been computed."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from mimbench.cli import complete
from mimbench.cli.app import add_group, command
from mimbench.cli.help import LOOK
from mimbench.cli.options import (
    SCALE_WORDS,
    JsonOption,
    PlainOption,
    YesOption,
    confirm,
    make_notices,
    print_json,
    whole_number,
)
from mimbench.errors import UserError, visible

if TYPE_CHECKING:
    from mimbench.commands.list_runs import Listed

runs = add_group("runs", "The runs that have been computed, and their upkeep.", LOOK)

MANY = 500  # runs: a list of more has plain lines on a terminal too, since a styled one takes seconds
RUN = "A run's name or key, or the beginning of either."
TablesFilter = Annotated[
    list[str] | None,
    typer.Option(
        "--table",
        metavar="METHOD[/TABLE]",
        help="Runs of this table, or of all tables of a method's paper.",
        autocompletion=complete.papers_and_tables,
    ),
]
ScalesFilter = Annotated[
    list[str] | None,
    typer.Option("--scale", metavar=SCALE_WORDS, help="Runs of this scale.", autocompletion=complete.scales),
]
MethodsFilter = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="METHOD",
        help="A method's pretraining, and the tasks on its encoder.",
        autocompletion=complete.methods,
    ),
]
TasksFilter = Annotated[
    list[str] | None,
    typer.Option("--task", metavar="TASK", help="Runs of this task.", autocompletion=complete.tasks),
]
StatesFilter = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        metavar="STATE",
        help="done, stale, running, interrupted, failed, missing, damaged, edited or orphaned (its method is "
        "gone).",
        autocompletion=complete.states,
    ),
]
StagesFilter = Annotated[
    list[str] | None,
    typer.Option(
        "--stage", metavar="teacher|pretrain|downstream", help="Runs of this stage.",
        autocompletion=complete.stages,
    ),
]  # fmt: skip
SeedsFilter = Annotated[
    list[int] | None,
    typer.Option("--seed", metavar="N", help="Runs of this seed.", parser=whole_number("--seed", 0)),
]
SortOption = Annotated[
    str,
    typer.Option(
        "--sort", metavar="newest|oldest|name", help="What comes first.", autocompletion=complete.sorts
    ),
]


@command(
    "list",
    group=runs,
    examples="mimbench runs list\n"
    "mimbench runs list --table dtm/main --scale toy\n"
    "mimbench runs list --state failed --state interrupted\n"
    "mimbench runs list --task classification --json",
)
def list_runs(
    table: TablesFilter = None,
    scale: ScalesFilter = None,
    method: MethodsFilter = None,
    task: TasksFilter = None,
    state: StatesFilter = None,
    stage: StagesFilter = None,
    seed: SeedsFilter = None,
    sort: SortOption = "newest",
    as_json: JsonOption = False,
    plain: PlainOption = False,
) -> None:
    """List the runs of the workspace.

    A filter may be given several times: a run passes with any of its values. A run's scale and changes come
    from a comparison with today's recipes. `changes` are the fields that differ from the method's or the
    task's own recipe: a table's row or --set changed them, or the recipe has changed since.
    """
    found = _select(
        sort,
        tables=table,
        scales=scale,
        methods=method,
        tasks=task,
        states=state,
        stages=stage,
        seeds=seed,
    )
    if as_json:
        from mimbench.commands import describe

        return print_json(describe.runs(found))
    from mimbench.cli.listing import list_console
    from mimbench.cli.show import runs_lines, runs_table

    if found:
        console = list_console(plain)
        if console.plain or len(found) > MANY:
            console.print_lines(runs_lines(found))
        else:
            console.print(runs_table(found, console))
        _tell_damage(found)
    else:
        _explain_nothing(filtered=any((table, scale, method, task, state, stage, seed)))


@command("show", group=runs, examples="mimbench runs show 3f2a\nmimbench runs show 3f2a --json")
def show_run(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help=RUN, autocompletion=complete.runs, show_default=False)
    ],
    as_json: JsonOption = False,
) -> None:
    """Show one run: what it is, how it ended, where its files are."""
    from mimbench import paths
    from mimbench.commands.list_runs import Reader
    from mimbench.commands.workspace import read_catalog
    from mimbench.plan.names import find_run
    from mimbench.store.index import snapshot
    from mimbench.store.runs import RunStore

    store = RunStore(paths.runs())
    folder = find_run(store, run)
    reader = Reader(snapshot(store), read_catalog(make_notices()))
    listed, children = reader.read(folder), reader.children(folder)
    if as_json:
        from mimbench.commands import describe

        return print_json(describe.one_run(listed, children))
    from mimbench.cli.show import show

    show(listed, children)
    _tell_damage([listed])


@command(
    "export",
    group=runs,
    examples="mimbench runs export runs.csv\n"
    "mimbench runs export - --table dtm/main --scale toy | head\n"
    "mimbench runs export - --format json --state done",
)
def export_runs(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|-", help="A name that ends in .csv or .json; - for standard output.",
            show_default=False,
        ),
    ],
    form: Annotated[
        str,
        typer.Option("--format", metavar="csv|json", help="Default: by the end of FILE's name; csv for -."),
    ] = "",
    table: TablesFilter = None,
    scale: ScalesFilter = None,
    method: MethodsFilter = None,
    task: TasksFilter = None,
    state: StatesFilter = None,
    stage: StagesFilter = None,
    seed: SeedsFilter = None,
    sort: SortOption = "name",
) -> None:  # fmt: skip
    """Export runs with their recipes and numbers, one row per run, as CSV or JSON."""
    from mimbench.store.export import export

    found = _select(
        sort,
        tables=table,
        scales=scale,
        methods=method,
        tasks=task,
        states=state,
        stages=stage,
        seeds=seed,
    )
    extra = {
        run.name: {"scale": run.scale or None, "changes": " ".join(run.changed()) or None} for run in found
    }
    target = None if str(file) == "-" else file
    _tell_damage(found)
    readable = [run.folder for run in found if run.state not in ("damaged", "edited")]
    count = export(readable, target, form=form, extra=extra)
    if target:
        typer.echo(f"{count} runs: {visible(str(file))}")


@command("rm", group=runs, examples="mimbench runs rm 3f2a\nmimbench runs rm --yes 3f2a 9b01")
def remove_runs(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Names or keys, or their beginnings.", autocompletion=complete.runs,
            show_default=False,
        ),
    ],
    yes: YesOption = False,
) -> None:  # fmt: skip
    """Delete runs. The runs that start from them keep their numbers."""
    from mimbench import paths
    from mimbench.commands.remove import dependants, readable_size, size
    from mimbench.plan.names import find_run
    from mimbench.store.index import snapshot
    from mimbench.store.runs import RunStore

    store = RunStore(paths.runs())
    found = [find_run(store, name) for name in names]
    folders = list({folder.path: folder for folder in found}.values())
    for folder in folders:
        if folder.is_locked():
            _refuse_running(folder)
    sizes = {folder.path: size(folder.path) for folder in folders}
    for folder in folders:
        typer.echo(f"to delete: {folder.path.name} ({readable_size(sizes[folder.path])})")
    if children := dependants(snapshot(store), folders):
        typer.echo(f"{counted(children, 'run')} in the store started from these; the numbers stay:")
        for child in children[:10]:
            typer.echo(f"  {child.path.name}")
        if len(children) > 10:
            typer.echo(f"  and {len(children) - 10} more")
    confirm(f"Delete {counted(folders, 'run')}, {readable_size(sum(sizes.values()))}?", yes=yes)
    for folder in folders:
        _remove(store, folder)
    typer.echo(f"{readable_size(sum(sizes.values()))} freed")


@command("gc", group=runs, examples="mimbench runs gc --dry-run\nmimbench runs gc --yes")
def collect(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be deleted.")] = False,
    yes: YesOption = False,
) -> None:
    """Delete the runs that no table refers to (changed recipes, --set), and leftover temporary files."""
    from mimbench import paths
    from mimbench.commands.gc import unreferenced
    from mimbench.commands.remove import readable_size, size
    from mimbench.commands.workspace import read_catalog
    from mimbench.store.index import snapshot
    from mimbench.store.runs import RunStore

    gc.disable()  # as for lists
    store = RunStore(paths.runs())
    folders = unreferenced(snapshot(store), read_catalog(make_notices()))
    leftovers = store.leftovers()
    if paths.old_cache().is_dir():
        leftovers.append(paths.old_cache())
    places = [*(folder.path for folder in folders), *leftovers]
    sizes = [size(path) for path in places]
    for path, bytes_ in zip(places, sizes, strict=True):
        typer.echo(
            f"{'would delete' if dry_run else 'to delete'}: {visible(str(path))} ({readable_size(bytes_)})"
        )
    if not places:
        typer.echo("Nothing to delete.")
        return
    total = readable_size(sum(sizes))
    what = f"{counted(folders, 'run')} and {counted(leftovers, 'leftover')}, {total}"
    if dry_run:
        typer.echo(f"{what} in all")
        return
    confirm(f"Delete {what}?", yes=yes)
    for folder in folders:
        _remove(store, folder)
    store.remove_leftovers(leftovers)
    typer.echo(f"{total} freed")


def _select(sort: str, **given: list[Any] | None) -> list[Listed]:
    """The runs that pass the filters; `given` has the fields of Filters."""
    from mimbench import paths
    from mimbench.commands.list_runs import Filters, list_runs
    from mimbench.commands.workspace import read_catalog
    from mimbench.store.index import snapshot
    from mimbench.store.runs import RunStore

    gc.disable()  # nothing here is garbage, and to look for it takes a fifth of the time of a long list
    filters = Filters(**{name: tuple(values or ()) for name, values in given.items()})
    return list_runs(snapshot(RunStore(paths.runs())), read_catalog(make_notices()), filters, sort)


def _explain_nothing(*, filtered: bool) -> None:
    """Say where no run was found, and what to do about it."""
    from mimbench import paths

    place = visible(str(paths.runs()))
    if filtered:
        typer.echo(f"No run in {place} matches; `mimbench runs list` shows all of them.", err=True)
    else:
        typer.echo(
            f"There is no run yet in {place}. Start with `mimbench reproduce-table dtm --scale smoke`, or "
            "set MIMBENCH_HOME to the folder that holds your runs/.",
            err=True,
        )


def counted(things: list[Any], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _remove(store: Any, folder: Any) -> None:
    from mimbench.store.lock import RunLocked

    try:
        store.remove(folder)
    except RunLocked:
        _refuse_running(folder)
    typer.echo(f"deleted {folder.path.name}")


def _tell_damage(found: Iterable[Listed]) -> None:
    """Name the damaged files on standard error, each with its remedy."""
    for listed in found:
        for message in listed.damage:
            typer.echo(visible(message), err=True)


def _refuse_running(folder: Any) -> NoReturn:
    remedy = "It is being computed right now; stop that first."
    raise UserError("RUN", folder.path.name, remedy=remedy) from None


@command(
    "restamp",
    group=runs,
    examples='mimbench runs restamp --because "modules moved" --dry-run',
)
def restamp_runs(
    because: Annotated[str, typer.Option("--because", help="Why no number changed; kept with each result.")],
    lines: Annotated[
        int, typer.Option("--lines", min=1, help="Compare at least so many lines of metrics.jsonl.")
    ] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compare, but write nothing.")] = False,
) -> None:
    """Mark stale runs as done if today's code gives their recorded numbers again, bit for bit."""
    from mimbench.commands.restamp import restamp

    raise typer.Exit(restamp(because, make_notices(), lines=lines, dry_run=dry_run))
