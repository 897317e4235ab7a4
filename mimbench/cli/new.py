"""`mimbench new`: writes a method or a task for the user to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mimbench.cli.app import add_group, command
from mimbench.cli.help import COMPUTE
from mimbench.cli.options import make_console

new = add_group("new", "Write a method or a task of your own to start from.", COMPUTE)

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="Small letters and digits, with - or _ between them.", show_default=False
    ),
]
FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--in",
        metavar="FOLDER",
        help="Where; default: the checkout if you are in it, else NAME-plugin in the current folder.",
        show_default=False,
    ),
]


@command(
    "method", group=new, examples="mimbench new method my-mae\nmimbench new method my-mae --in my-plugin"
)
def new_method(name: NameArgument, folder: FolderOption = None) -> None:
    """Write a pretraining method that trains as it is, and a table with it, for you to change."""
    from mimbench.commands.new import new as write

    raise typer.Exit(write("method", name, folder, make_console()))


@command("task", group=new, examples="mimbench new task nearest --in my-plugin")
def new_task(name: NameArgument, folder: FolderOption = None) -> None:
    """Write a downstream task that runs as it is, and a table with it, for you to change."""
    from mimbench.commands.new import new as write

    raise typer.Exit(write("task", name, folder, make_console()))
