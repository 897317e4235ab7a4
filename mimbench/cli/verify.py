"""`mimbench runs verify`: are the run store's files what the runs wrote?"""

from __future__ import annotations

from typing import Annotated

import typer

from mimbench.cli import complete
from mimbench.cli.app import command
from mimbench.cli.options import YesOption, confirm, make_notices
from mimbench.cli.runs import counted, runs
from mimbench.errors import visible


@command(
    "verify",
    group=runs,
    examples="mimbench runs verify\nmimbench runs verify 3f2a\nmimbench runs verify --repair",
)
def verify_runs(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN...]", help="Names or keys, or their beginnings; default: every run.",
            autocompletion=complete.runs, show_default=False,
        ),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Set damaged checkpoints aside; delete what can be computed again."),
    ] = False,
    yes: YesOption = False,
) -> None:  # fmt: skip
    """Check all files of the runs: specs, results, encoders, checkpoints.

    Ends with status 1 if there is anything to repair.
    """
    from mimbench import paths
    from mimbench.commands import verify
    from mimbench.commands.remove import readable_size
    from mimbench.commands.workspace import read_catalog
    from mimbench.plan.names import find_run
    from mimbench.store.runs import RunStore

    store = RunStore(paths.runs())
    chosen = [find_run(store, name) for name in names] if names else None
    found = []
    for problem in verify.check(store, read_catalog(make_notices()), chosen):
        typer.echo(visible(problem.without_remedy() if repair else problem.message))
        found.append(problem)
    if not found:
        typer.echo(f"{counted(chosen or list(store), 'run')}: sound")
    elif not repair:
        typer.echo(
            f"{counted(found, 'problem')}. `mimbench runs verify --repair` repairs what it can.", err=True
        )
        raise typer.Exit(1)
    for place in verify.set_aside(found):
        typer.echo(visible(f"set aside: {place}"))
    if sizes := verify.deletions(found):
        for what, bytes_ in sizes.items():
            typer.echo(visible(f"to delete: {what} ({readable_size(bytes_)})"))
        confirm(f"Delete {readable_size(sum(sizes.values()))}?", yes=yes)
        verify.delete(store, found)
        for what, bytes_ in sizes.items():
            typer.echo(visible(f"deleted: {what} ({readable_size(bytes_)})"))
    if left := [problem for problem in found if not problem.repair]:
        typer.echo(f"{counted(left, 'problem')} left: see above.", err=True)
        raise typer.Exit(1)
