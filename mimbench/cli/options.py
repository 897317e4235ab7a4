"""The options that several commands share, and the request that they make up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from mimbench.plan.request import Request
    from mimbench.recipe import Scale

MethodArgument = Annotated[
    str, typer.Argument(metavar="METHOD", help="The paper's method, as `mimbench tables` says.")
]
TableOption = Annotated[str, typer.Option("--table", help="Which of its tables.")]
ScaleOption = Annotated[str, typer.Option("--scale", help="smoke, toy, small or paper.")]
SeedsOption = Annotated[int, typer.Option("--seeds", help="How many seeds, from 0.")]
DataOption = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="ROLE=PATH", help="A dataset; ROLE: imagenet, ade20k, coco, captions."),
]
WeightsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        metavar="NAME=PATH",
        help="A checkpoint: a teacher's (clip=...), or in place of a method's pretraining.",
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
    bool, typer.Option("--skip-corrupt", help="Leave unreadable pictures out, and record it.")
]
StaleOption = Annotated[bool, typer.Option("--rerun-stale", help="Compute again what older code computed.")]
JobsOption = Annotated[
    int | None, typer.Option("--jobs", min=1, help="Runs side by side; default: GPUs, or cores.")
]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Print the graph of runs, compute none of them.")]


def make_console() -> Console:
    from rich.console import Console

    return Console()


def request_of(
    scale: str,
    seeds: int,
    data: list[str] | None,
    weights: list[str] | None,
    settings: list[str] | None,
    skip_corrupt: bool,
) -> Request:
    from mimbench.execute.machine import options
    from mimbench.plan.request import Request, parse_paths, parse_setting, parse_weights

    return Request(
        scale=cast("Scale", scale),  # `check` refuses another
        seeds=seeds,
        data=parse_paths("--data", data or ()),
        weights=parse_weights(weights or ()),
        changes=dict(parse_setting(text) for text in settings or ()),
        skip_corrupt=skip_corrupt,
        options=options(),
    )
