"""Options that several commands share, and the request that is built from them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from mimbench.cli import complete
from mimbench.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from mimbench.plan.request import Request
    from mimbench.recipe import Scale

SCALE_WORDS = "smoke|toy|small|paper"  # mimbench.recipe.SCALES, which --help need not load


def whole_number(option: str, least: int) -> Callable[[Any], int]:
    """A parser of an option's value; raises UserError for anything but a whole number from `least`."""

    def parse(text: Any) -> int:
        from mimbench.plan.request import parse_count

        return parse_count(option, text, least)

    return parse


MethodArgument = Annotated[
    str,
    typer.Argument(
        metavar="METHOD",
        help="The paper's method; `mimbench tables` lists them.",
        autocompletion=complete.papers,
        show_default=False,
    ),
]
TableOption = Annotated[
    str,
    typer.Option("--table", metavar="TABLE", help="Which of its tables.", autocompletion=complete.tables),
]
ScaleOption = Annotated[
    str,
    typer.Option(
        "--scale",
        metavar=SCALE_WORDS,
        help="smoke: seconds a run, for tests. toy: minutes a run on two cores, with data that mimbench "
        "makes. small: your own images, one GPU or patience. paper: the paper's data and recipe.",
        autocompletion=complete.scales,
    ),
]
SeedsOption = Annotated[
    int,
    typer.Option(
        "--seeds", metavar="N", help="How many seeds, from seed 0.", parser=whole_number("--seeds", 1)
    ),
]
SeedOption = Annotated[
    int, typer.Option("--seed", metavar="N", help="Which seed.", parser=whole_number("--seed", 0))
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="ROLE=PATH",
        help="A dataset; ROLE: imagenet, ade20k, coco, captions.",
        autocompletion=complete.roles,
    ),
]
WeightsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        metavar="NAME=PATH",
        help="A checkpoint of a teacher (clip=PATH) or of a method (mae=PATH), which then needs no training.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="A value for FIELD of every row's pretraining, or for METHOD.FIELD, TEACHER.FIELD, TASK.FIELD.",
    ),
]
SkipOption = Annotated[
    bool, typer.Option("--skip-corrupt", help="Leave unreadable images out, and record which.")
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-stat",
        help="Identify images and label maps by size and time instead of content; results say so.",
    ),
]
StaleOption = Annotated[bool, typer.Option("--rerun-stale", help="Recompute results whose code has changed.")]
JobsOption = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        metavar="N",
        help="Runs at the same time; default: one per GPU, or one per core without a GPU.",
        parser=whole_number("--jobs", 1),
    ),
]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Print the graph of runs; compute nothing.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON instead, and nothing else on standard output.")
]
PlainOption = Annotated[bool, typer.Option("--plain", help="Print one line per row, as in a pipe.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def make_console() -> Console:
    from mimbench.cli.console import TextConsole

    return TextConsole()


def make_notices() -> Console:
    """A console on standard error, for notices of commands whose output is data."""
    from mimbench.cli.console import TextConsole

    return TextConsole(stderr=True)


def print_json(values: dict[str, Any]) -> None:
    """Print a command's JSON document."""
    import json

    typer.echo(json.dumps(values, indent=2, allow_nan=False))


def confirm(question: str, *, yes: bool) -> None:
    """Ask the user, and return only if they agree.

    Raises:
        UserError: nobody can be asked, and --yes was not given.
        typer.Abort: the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError("--yes", remedy=f"{question} Nobody can be asked here: give --yes to agree.")
    typer.confirm(question, abort=True)


def request_of(
    scale: str,
    seeds: int,
    data: list[str] | None,
    weights: list[str] | None,
    settings: list[str] | None,
    skip_corrupt: bool,
    trust_stat: bool = False,
) -> Request:
    from mimbench.execute.machine import options
    from mimbench.plan.request import Request, parse_paths, parse_setting, parse_weights

    return Request(
        scale=cast("Scale", scale),  # `check` refuses other values
        seeds=seeds,
        data=parse_paths("--data", data or ()),
        weights=parse_weights(weights or ()),
        changes=dict(parse_setting(text) for text in settings or ()),
        skip_corrupt=skip_corrupt,
        trust_stat=trust_stat,
        options=options(),
    )
