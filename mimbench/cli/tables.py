"""Commands that compute: a table, all tables, one run; and the plan of it."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from mimbench.cli.app import app
from mimbench.cli.options import (
    DataOption,
    DryOption,
    JobsOption,
    MethodArgument,
    ScaleOption,
    SeedsOption,
    SetOption,
    SkipOption,
    StaleOption,
    TableOption,
    WeightsOption,
    make_console,
    request_of,
)
from mimbench.errors import UserError


@app.command("reproduce-table")
def reproduce_table(
    method: MethodArgument,
    table: TableOption = "main",
    scale: ScaleOption = "toy",
    seeds: SeedsOption = 1,
    data: DataOption = None,
    weights: WeightsOption = None,
    settings: SetOption = None,
    skip_corrupt: SkipOption = False,
    rerun_stale: StaleOption = False,
    jobs: JobsOption = None,
    dry_run: DryOption = False,
) -> None:
    """Pretrain, fine-tune and render one table; what is done already is not done again."""
    from mimbench.commands import reproduce

    request = request_of(scale, seeds, data, weights, settings, skip_corrupt)
    command = shlex.join(["mimbench", *sys.argv[1:]])
    status = reproduce.reproduce_table(
        method,
        table,
        request,
        make_console(),
        command=command,
        jobs=jobs,
        rerun_stale=rerun_stale,
        dry_run=dry_run,
    )
    raise typer.Exit(status)


@app.command("reproduce-all")
def reproduce_all(
    table: Annotated[
        str, typer.Option("--table", help="Which table of every paper; `all` for the ablations too.")
    ] = "main",
    scale: ScaleOption = "toy",
    seeds: SeedsOption = 1,
    data: DataOption = None,
    weights: WeightsOption = None,
    settings: SetOption = None,
    skip_corrupt: SkipOption = False,
    rerun_stale: StaleOption = False,
    jobs: JobsOption = None,
    dry_run: DryOption = False,
) -> None:
    """Pretrain, fine-tune and render every paper's main table; runs that tables share are done once."""
    from mimbench.commands import reproduce
    from mimbench.table.spec import list_tables

    names = [name for name in list_tables() if table in ("all", name[1])]
    if not names:
        known = sorted({name for _, name in list_tables()})
        raise UserError("--table", table, allowed=["all", *known])
    request = request_of(scale, seeds, data, weights, settings, skip_corrupt)
    status = reproduce.reproduce_all(
        names,
        request,
        make_console(),
        jobs=jobs,
        rerun_stale=rerun_stale,
        dry_run=dry_run,
    )
    raise typer.Exit(status)


@app.command()
def plan(
    method: MethodArgument,
    table: TableOption = "main",
    scale: ScaleOption = "toy",
    seeds: SeedsOption = 1,
    data: DataOption = None,
    weights: WeightsOption = None,
    settings: SetOption = None,
    skip_corrupt: SkipOption = False,
    rerun_stale: StaleOption = False,
    dry_run: DryOption = True,
) -> None:
    """Print the graph of runs behind a table: what is cached, what depends on what, what it costs."""
    from mimbench.commands import reproduce

    request = request_of(scale, seeds, data, weights, settings, skip_corrupt)
    status = reproduce.reproduce_table(
        method, table, request, make_console(), rerun_stale=rerun_stale, dry_run=True
    )
    raise typer.Exit(status)


@app.command()
def run(
    name: Annotated[
        str, typer.Argument(metavar="METHOD|RUN", help="A method, or a run of the store by name or key.")
    ],
    task: Annotated[
        str | None, typer.Argument(metavar="[TASK]", help="Without it: only the pretraining.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    scale: ScaleOption = "toy",
    data: DataOption = None,
    weights: WeightsOption = None,
    settings: SetOption = None,
    skip_corrupt: SkipOption = False,
    rerun_stale: StaleOption = False,
    jobs: JobsOption = None,
    dry_run: DryOption = False,
) -> None:
    """Compute one run and whatever it needs."""
    from mimbench.commands import run as single

    request = request_of(scale, 1, data, weights, settings, skip_corrupt)
    status = single.run_one(
        name, task, request, make_console(), seed=seed, jobs=jobs, rerun_stale=rerun_stale, dry_run=dry_run
    )
    raise typer.Exit(status)
