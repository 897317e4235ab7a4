"""`mimbench data`: makes the toy data, and checks a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mimbench.cli.app import add_group, command
from mimbench.cli.help import ENVIRONMENT
from mimbench.cli.options import SeedOption, make_console
from mimbench.errors import UserError, visible

data = add_group("data", "Make the toy data, or check a dataset.", ENVIRONMENT)
SIZES = ("toy", "smoke")


def _sizes() -> list[str]:
    return list(SIZES)


@command("toy", group=data, examples="mimbench data toy\nmimbench data toy my-data --size smoke")
def make_toy(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER",
            help="Where; default: data/SIZE, or data/SIZE-seedN, in the workspace.",
            show_default=False,
        ),
    ] = None,
    seed: SeedOption = 0,
    size: Annotated[
        str,
        typer.Option(
            "--size", metavar="|".join(SIZES), help="For scale toy or scale smoke.", autocompletion=_sizes
        ),
    ] = "toy",
) -> None:
    """Make the project's own data: ImageFolder, ADE20K and COCO layouts, and captions."""
    from typing import cast

    from mimbench import paths
    from mimbench.data.toy.make import ensure

    if size not in SIZES:
        raise UserError("--size", size, allowed=SIZES)
    place = path or paths.data() / (f"{size}-seed{seed}" if seed else size)  # seed 0 is what the tables use
    typer.echo(visible(str(ensure(place, seed=seed, size=cast(Any, size)))))


@command("check", group=data, examples="mimbench data check data/toy/coco")
def check_data(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="The root of a dataset, in any supported format.", show_default=False
        ),
    ],
    full: Annotated[
        bool, typer.Option("--full", help="Decode every image; without it, only those of small datasets.")
    ] = False,
) -> None:
    """Check a dataset for errors before you spend hours on it."""
    from mimbench import paths
    from mimbench.commands.workspace import Reading
    from mimbench.data.check import check, print_report

    console = make_console()
    report = check(path, full=full, cache=paths.cache(), progress=Reading(console))
    print_report(report, console)
    raise typer.Exit(0 if report.ok else 2)
