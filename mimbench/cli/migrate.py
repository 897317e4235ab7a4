"""`mimbench runs migrate`: new keys for the finished runs of older versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mimbench.cli import complete
from mimbench.cli.app import command
from mimbench.cli.options import TrustOption, YesOption, confirm
from mimbench.cli.runs import counted, runs
from mimbench.errors import UserError, visible

if TYPE_CHECKING:
    from mimbench.commands.migrate import Left, Move


@command(
    "migrate",
    group=runs,
    examples="mimbench runs migrate --dry-run\n"
    "mimbench runs migrate --yes\n"
    "mimbench runs migrate --data imagenet=PATH",
)
def migrate_runs(
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", metavar="ROLE=PATH", help="Where a dataset is today, if it has moved.",
            autocompletion=complete.roles,
        ),
    ] = None,
    trust_stat: TrustOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be migrated.")] = False,
    yes: YesOption = False,
) -> None:  # fmt: skip
    """Find finished runs of older versions again, by the content of their data.

    Older versions identified your data by names and sizes of its files. Where these are still the same, the
    run gets the key that today's commands look for, and so do the runs that start from it. Nothing is
    computed. Their results say that the content was not recorded.
    """
    from rich.console import Console

    from mimbench import paths
    from mimbench.commands.migrate import Examination, Left, clear, migrate, num_stale
    from mimbench.commands.workspace import Reading
    from mimbench.plan.request import ROLES, parse_paths
    from mimbench.store.runs import RunStore

    store, moved = RunStore(paths.runs()), parse_paths("--data", data or ())
    for role in moved:
        if role not in ROLES:
            raise UserError("--data", role, allowed=ROLES, remedy="Write --data ROLE=PATH.")
    if not dry_run:
        clear(store)
    reading = Reading(Console(stderr=True))
    found = Examination(store, moved, trust_stat=trust_stat, cache=paths.cache(), progress=reading)
    moves: list[Move] = []
    left: list[Left] = []
    for each in found():
        if isinstance(each, Left):
            left.append(each)
        else:
            typer.echo(f"{'would migrate' if dry_run else 'to migrate'}: {_change(each)}")
            moves.append(each)
    for other in left:
        _tell_left(other)
    if not moves:
        typer.echo(
            f"Nothing to migrate. {counted(left, 'run')} left as they are." if left else "Nothing to migrate."
        )
        return
    if dry_run:
        typer.echo(f"{counted(moves, 'run')} in all")
        return
    confirm(f"Migrate {counted(moves, 'run')}?", yes=yes)
    done: list[Move] = []

    def tell(move: Move) -> None:
        done.append(move)
        typer.echo(f"migrated: {move.run.path.name} is {move.spec.folder} now")

    try:
        failed = migrate(moves, store, tell)
    finally:
        clear(store)
    for other in failed:
        _tell_left(other)
    typer.echo(f"{counted(done, 'run')} migrated, {len(left) + len(failed)} left as they are")
    if count := num_stale(store, done):
        typer.echo(
            f"{count} of them {'is' if count == 1 else 'are'} stale: the code has changed since. "
            '`mimbench runs restamp --because "..."` compares their numbers with those of today\'s code.'
        )
    if failed:
        raise typer.Exit(1)


def _change(move: Move) -> str:
    return f"{move.run.path.name}: its key becomes {move.spec.key[:8]}"


def _tell_left(left: Left) -> None:
    typer.echo(visible(f"left as it is: {left.run.path.name}: {left.reason}"), err=True)
