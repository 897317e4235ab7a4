"""Commands that collect stored results: the leaderboard, and results in documents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mimbench.cli.app import command
from mimbench.cli.help import LOOK
from mimbench.cli.options import DataOption, ScaleOption, SeedsOption, make_console, request_of


@command(panel=LOOK, examples="mimbench leaderboard\nmimbench leaderboard --scale small --seeds 3")
def leaderboard(scale: ScaleOption = "toy", seeds: SeedsOption = 1, data: DataOption = None) -> None:
    """Rank every pretraining of the papers' main tables on one page; unfinished ones come last."""
    from mimbench.commands.leaderboard import leaderboard as show

    raise typer.Exit(show(request_of(scale, seeds, data, None, None, False), make_console()))


@command(
    panel=LOOK, examples="mimbench results README.md --table dtm\nmimbench results README.md --ablations"
)
def results(
    document: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A Markdown file with the two results marks; default: README.md."
        ),
    ] = Path("README.md"),
    scale: ScaleOption = "toy",
    seeds: SeedsOption = 1,
    data: DataOption = None,
    table: Annotated[
        str,
        typer.Option("--table", metavar="METHOD", help="Show only this paper's rows in the document."),
    ] = "",
    ablations: Annotated[
        bool,
        typer.Option("--ablations", help="Write the finished ablation tables into ABLATIONS.md instead."),
    ] = False,
) -> None:
    """Write the finished main tables between the marks of a document and into RESULTS.md."""
    from mimbench.commands import results as documents

    request, console = request_of(scale, seeds, data, None, None, False), make_console()
    if ablations:
        raise typer.Exit(documents.ablations(document, request, console))
    raise typer.Exit(documents.results(document, request, console, excerpt=table))
