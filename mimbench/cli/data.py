"""`mimbench data`: the toy data, and a check of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mimbench.cli.app import data
from mimbench.cli.options import make_console


@data.command("toy")
def make_toy(
    path: Annotated[
        Path | None,
        typer.Argument(help="Where; default: data/SIZE, or data/SIZE-seedN, in the workspace."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    size: Annotated[str, typer.Option("--size", help="toy or smoke.")] = "toy",
) -> None:
    """Make the project's own data: ImageFolder, ADE20K and COCO layouts, and captions."""
    from typing import cast

    from mimbench import paths
    from mimbench.data.toy import ensure

    place = path or paths.data() / (f"{size}-seed{seed}" if seed else size)  # seed 0 is what the tables use
    typer.echo(str(ensure(place, seed=seed, size=cast(Any, size))))


@data.command("check")
def check_data(
    path: Annotated[Path, typer.Argument(help="The root of a dataset in any of the formats.")],
) -> None:
    """Find what is wrong with a dataset before hours are spent on it."""
    from mimbench.data.check import check, print_report

    report = check(path)
    print_report(report, make_console())
    raise typer.Exit(0 if report.ok else 2)
