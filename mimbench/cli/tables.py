"""Commands that plan or compute a table, all tables or one run."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mimbench.cli import complete
from mimbench.cli.app import command
from mimbench.cli.help import COMPUTE
from mimbench.cli.options import (
    DataOption,
    DryOption,
    JobsOption,
    JsonOption,
    MethodArgument,
    PlainOption,
    ScaleOption,
    SeedOption,
    SeedsOption,
    SetOption,
    SkipOption,
    StaleOption,
    TableOption,
    TrustOption,
    WeightsOption,
    make_console,
    make_notices,
    print_json,
    request_of,
)
from mimbench.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console


@command(
    panel=COMPUTE,
    examples="mimbench plan dtm\n"
    "mimbench plan dtm --table loss --scale small --data imagenet=PATH\n"
    "mimbench plan dtm --json",
    allow_extra_args=True,
)
def plan(
    ctx: typer.Context,
    method: MethodArgument,
    table: TableOption = "main",
    scale: ScaleOption = "toy",
    seeds: SeedsOption = 1,
    data: DataOption = None,
    weights: WeightsOption = None,
    settings: SetOption = None,
    skip_corrupt: SkipOption = False,
    trust_stat: TrustOption = False,
    rerun_stale: StaleOption = False,
    as_json: JsonOption = False,
    plain: PlainOption = False,
) -> None:
    """Print the graph of runs behind a table: what is cached, what depends on what, what it costs."""
    from mimbench.commands.plan import make_plan

    _refuse_extra(ctx, method)
    request = request_of(scale, seeds, data, weights, settings, skip_corrupt, trust_stat)
    notices = make_notices()
    found = make_plan(method, table, request, notices)
    from mimbench import paths
    from mimbench.cli.listing import list_console
    from mimbench.commands.reproduce import tell_damage
    from mimbench.execute.machine import default_jobs
    from mimbench.plan.pace import expect
    from mimbench.plan.show import show
    from mimbench.store.runs import RunStore

    store = RunStore(paths.runs())
    expected = expect(found, store, default_jobs(), rerun_stale=rerun_stale)
    if as_json:
        from mimbench.commands import describe

        return print_json(describe.plan(method, table, request, found, expected, rerun_stale=rerun_stale))
    show(found, list_console(plain), rerun_stale=rerun_stale, expected=expected)
    tell_damage(found, store, notices)


@command(
    "reproduce-table",
    panel=COMPUTE,
    examples="mimbench reproduce-table dtm\n"
    "mimbench reproduce-table dtm --table loss --seeds 3\n"
    "mimbench reproduce-table dtm --scale small --data imagenet=PATH --data ade20k=PATH --data coco=PATH",
    allow_extra_args=True,
)
def reproduce_table(
    ctx: typer.Context,
    method: MethodArgument,
    table: TableOption = "main",
    scale: ScaleOption = "toy",
    seeds: SeedsOption = 1,
    data: DataOption = None,
    weights: WeightsOption = None,
    settings: SetOption = None,
    skip_corrupt: SkipOption = False,
    trust_stat: TrustOption = False,
    rerun_stale: StaleOption = False,
    jobs: JobsOption = None,
    dry_run: DryOption = False,
) -> None:
    """Pretrain, fine-tune and render one table; finished runs are kept."""
    from mimbench.commands import reproduce

    _refuse_extra(ctx, method)
    request = request_of(scale, seeds, data, weights, settings, skip_corrupt, trust_stat)
    status = reproduce.reproduce_table(
        method,
        table,
        request,
        _console(dry_run),
        command=_typed(),
        jobs=jobs,
        rerun_stale=rerun_stale,
        dry_run=dry_run,
    )
    raise typer.Exit(status)


@command(
    "reproduce-all",
    panel=COMPUTE,
    examples="mimbench reproduce-all --scale smoke\nmimbench reproduce-all --table all --seeds 3 --dry-run",
)
def reproduce_all(
    table: Annotated[
        str,
        typer.Option(
            "--table",
            metavar="TABLE|all",
            help="Which table of every paper; `all` for the ablations too.",
            autocompletion=complete.any_table,
        ),
    ] = "main",
    scale: ScaleOption = "toy",
    seeds: SeedsOption = 1,
    data: DataOption = None,
    weights: WeightsOption = None,
    settings: SetOption = None,
    skip_corrupt: SkipOption = False,
    trust_stat: TrustOption = False,
    rerun_stale: StaleOption = False,
    jobs: JobsOption = None,
    dry_run: DryOption = False,
) -> None:
    """Pretrain, fine-tune and render every paper's main table; shared runs are computed once."""
    from mimbench.commands import reproduce
    from mimbench.table.spec import list_tables

    names = [name for name in list_tables() if table in ("all", name[1])]
    if not names:
        from mimbench.plan.names import wrong_name

        known = sorted({name for _, name in list_tables()})
        raise wrong_name("--table", table, "table", allowed=["all", *known])
    request = request_of(scale, seeds, data, weights, settings, skip_corrupt, trust_stat)
    status = reproduce.reproduce_all(
        names,
        request,
        _console(dry_run),
        jobs=jobs,
        rerun_stale=rerun_stale,
        dry_run=dry_run,
    )
    raise typer.Exit(status)


@command(
    panel=COMPUTE,
    examples="mimbench run mae classification\n"
    "mimbench run mae classification --scale smoke --set mask_ratio=0.5\n"
    "mimbench run beit",
)
def run(
    name: Annotated[
        str,
        typer.Argument(
            metavar="METHOD|RUN",
            help="A method, or a stored run by name or key.",
            autocompletion=complete.methods_and_runs,
            show_default=False,
        ),
    ],
    task: Annotated[
        str | None,
        typer.Argument(
            metavar="TASK",
            help="Without TASK, only the pretraining is computed.",
            autocompletion=complete.tasks,
            show_default=False,
        ),
    ] = None,
    seed: SeedOption = 0,
    scale: ScaleOption = "toy",
    data: DataOption = None,
    weights: WeightsOption = None,
    settings: SetOption = None,
    skip_corrupt: SkipOption = False,
    trust_stat: TrustOption = False,
    rerun_stale: StaleOption = False,
    jobs: JobsOption = None,
    dry_run: DryOption = False,
) -> None:
    """Compute one run and whatever it needs."""
    from mimbench.commands import run as single

    request = request_of(scale, 1, data, weights, settings, skip_corrupt, trust_stat)
    status = single.run_one(
        name, task, request, _console(dry_run), seed=seed, jobs=jobs, rerun_stale=rerun_stale, dry_run=dry_run
    )
    raise typer.Exit(status)


def _console(dry_run: bool) -> Console:
    """A console for results; with `dry_run`, one for lists."""
    from mimbench.cli.listing import list_console

    return list_console() if dry_run else make_console()


def _typed() -> str:
    """The command as the user typed it."""
    return shlex.join(["mimbench", *sys.argv[1:]])


def _refuse_extra(ctx: typer.Context, method: str) -> None:
    """Raises UserError for further words after METHOD. The user mostly means --table."""
    if ctx.args:
        remedy = f"Give one METHOD. To choose one of its tables: {method} --table {ctx.args[0]}."
        raise UserError("METHOD", " ".join([method, *ctx.args]), remedy=remedy)
