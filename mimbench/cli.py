"""The command line. Everything heavy is imported inside the commands, so that --help answers at once."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from mimbench.errors import RunFailed, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from mimbench.request import Request


class Guarded(TyperGroup):
    """Turns our errors into a message and an exit status: 2 for the user's mistakes, 1 for failures."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.echo(f"mimbench: {error}", err=True)
            raise typer.Exit(2) from None
        except RunFailed as error:
            typer.echo(f"mimbench: {error}", err=True)
            raise typer.Exit(1) from None
        except (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
            typer.echo(f"mimbench: {error}. Give another place.", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("mimbench: stopped. The same command goes on from the last checkpoints.", err=True)
            raise typer.Exit(130) from None


def _group(text: str) -> typer.Typer:
    return typer.Typer(help=text, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


app = typer.Typer(
    cls=Guarded,
    help="Reproduce the comparison tables of masked-image-modelling papers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
runs = _group("What has been computed: list, show, export, rm, gc.")
data = _group("Make the toy data, or check a dataset.")
app.add_typer(runs, name="runs")
app.add_typer(data, name="data")

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


def _console() -> Console:
    from rich.console import Console

    return Console()


def _request(
    scale: str,
    seeds: int,
    data: list[str] | None,
    weights: list[str] | None,
    settings: list[str] | None,
    skip_corrupt: bool,
) -> Request:
    from mimbench.reproduce import machine_options
    from mimbench.request import Request, parse_paths, parse_setting, parse_weights

    return Request(
        scale=scale,
        seeds=seeds,
        data=parse_paths("--data", data or ()),
        weights=parse_weights(weights or ()),
        changes=dict(parse_setting(text) for text in settings or ()),
        skip_corrupt=skip_corrupt,
        options=machine_options(),
    )


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
    from mimbench import reproduce

    request = _request(scale, seeds, data, weights, settings, skip_corrupt)
    command = shlex.join(["mimbench", *sys.argv[1:]])
    status = reproduce.reproduce_table(
        method,
        table,
        request,
        _console(),
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
    from mimbench import reproduce
    from mimbench.table.spec import list_tables

    names = [name for name in list_tables() if table in ("all", name[1])]
    if not names:
        known = sorted({name for _, name in list_tables()})
        raise UserError("--table", table, allowed=["all", *known])
    request = _request(scale, seeds, data, weights, settings, skip_corrupt)
    status = reproduce.reproduce_all(
        names,
        request,
        _console(),
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
    from mimbench import reproduce

    request = _request(scale, seeds, data, weights, settings, skip_corrupt)
    status = reproduce.reproduce_table(
        method, table, request, _console(), rerun_stale=rerun_stale, dry_run=True
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
    from mimbench import reproduce

    request = _request(scale, 1, data, weights, settings, skip_corrupt)
    status = reproduce.run_one(
        name, task, request, _console(), seed=seed, jobs=jobs, rerun_stale=rerun_stale, dry_run=dry_run
    )
    raise typer.Exit(status)


# -- what there is -------------------------------------------------------------------------------------------


@app.command()
def methods() -> None:
    """List the pretraining methods and their teachers."""
    from rich.table import Column, Table

    from mimbench.reproduce import read_catalog

    console = _console()
    catalog = read_catalog(console)
    names = [Column(name, overflow="fold") for name in ("paper", "official code", "needs")]
    table = Table(Column("method", no_wrap=True), *names[:2], "golden", "points", names[2])
    kinds: tuple[Literal["method", "teacher"], ...] = ("method", "teacher")
    for kind in kinds:
        for about in catalog.all(kind):
            code = "reconstruction" if about.reconstruction else about.code or ""
            name = about.name if kind == "method" else f"{about.name}\n(teacher)"
            golden = "yes" if about.golden else "–"
            needs = ", ".join(about.needs.values())
            table.add_row(name, about.paper, code, golden, str(about.points or "–"), needs)
    console.print(table)
    console.print(
        "golden: compared with numbers of the official code. points: statements of the specification that "
        "are tests. needs: what is trained or loaded first.",
        style="dim",
    )


@app.command()
def tasks() -> None:
    """List the downstream tasks and their metrics."""
    from rich.table import Column, Table

    from mimbench.reproduce import read_catalog

    console = _console()
    name, data, metrics = (Column(name, no_wrap=True) for name in ("task", "data", "metrics"))
    table = Table(name, Column("protocol", overflow="fold"), data, metrics)
    for about in read_catalog(console).all("task"):
        names = "\n".join(metric["name"] for metric in about.metrics)
        table.add_row(about.name, about.protocol, about.data, names)
    console.print(table)


@app.command()
def tables() -> None:
    """List the tables that can be reproduced."""
    from rich.table import Column, Table

    from mimbench.table.spec import list_tables, load

    names = [Column(name, no_wrap=True) for name in ("method", "table")]
    table = Table(*names, "title", "where", "rows run / all")
    for method, name in list_tables():
        spec = load(method, name)
        count = sum(row.method is not None for row in spec.rows)
        table.add_row(method, name, spec.title, spec.section, f"{count} / {len(spec.rows)}")
    _console().print(table)


@app.command()
def leaderboard(scale: ScaleOption = "toy", seeds: SeedsOption = 1, data: DataOption = None) -> None:
    """Every pretraining of the papers' main tables on one page, best first, as far as it is computed."""
    from mimbench import overview

    raise typer.Exit(overview.leaderboard(_request(scale, seeds, data, None, None, False), _console()))


@app.command()
def results(
    document: Annotated[Path, typer.Argument(help="A Markdown file with the two results marks.")] = Path(
        "README.md"
    ),
    scale: ScaleOption = "toy",
    seeds: SeedsOption = 1,
    data: DataOption = None,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="The finished ablation tables instead, into ABLATIONS.md.")
    ] = False,
) -> None:
    """Write the main tables, as far as they are done, between the marks of a document and into RESULTS.md."""
    from mimbench import overview

    write = overview.ablations if ablations else overview.results
    raise typer.Exit(write(document, _request(scale, seeds, data, None, None, False), _console()))


@app.command()
def doctor() -> None:
    """What is installed, what can run here, what is missing and how to get it."""
    from mimbench import doctor as examination

    raise typer.Exit(examination.main(_console()))


# -- runs ----------------------------------------------------------------------------------------------------


@runs.command("list")
def list_runs() -> None:
    """Every run of the workspace."""
    from rich.table import Column, Table

    from mimbench import paths
    from mimbench.frame import state, subject
    from mimbench.progress import duration
    from mimbench.store import RunStore

    key, outcome, took = (Column(name, no_wrap=True) for name in ("key", "state", "time"))
    run, result = (Column(name, min_width=16, overflow="fold") for name in ("run", "result"))
    table = Table(key, run, Column("seed", no_wrap=True), outcome, took, result)
    for folder in RunStore(paths.runs()):
        status, became = folder.status, state(folder)
        numbers = (folder.result or {}).get("metrics", {})
        shown = [f"{name} {value:.4g}" for name, value in numbers.items() if name != "lr"][:2]
        if became in ("running", "interrupted") and status.get("total"):
            shown = [f"step {status['step']} of {status['total']}"]
        seed = "" if became == "damaged" else str(folder.spec.seed)
        short, seconds = folder.path.name.rpartition("-")[2], duration(status.get("seconds"))
        table.add_row(short, subject(folder), seed, became, seconds, "\n".join(shown))
    _console().print(table)


@runs.command("show")
def show_run(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Its name or key, or how these begin.")],
) -> None:
    """One run: what it is, what became of it, where its files are."""
    import json

    from mimbench import paths
    from mimbench.frame import state
    from mimbench.store import RunStore

    folder = RunStore(paths.runs()).find(run)
    shown = {
        "state": state(folder),
        "key": folder.spec.key,
        "spec": folder.spec.as_dict(),
        "status": folder.status,
        "result": folder.result,
    }
    typer.echo(json.dumps(shown, indent=2))
    if shown["state"] == "failed" and folder.log_path.is_file():
        typer.echo("\n".join(folder.log_path.read_text(errors="replace").splitlines()[-20:]))
    typer.echo(str(folder.path))


@runs.command("export")
def export_runs(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A name that ends in .csv or .json.")],
) -> None:
    """Every run with its recipe and its numbers, a line each, as CSV or JSON."""
    from mimbench import paths
    from mimbench.frame import export
    from mimbench.store import RunStore

    count = export(RunStore(paths.runs()), file)
    typer.echo(f"{count} runs: {file}")


@runs.command("rm")
def remove_runs(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names or keys, or how these begin.")],
) -> None:
    """Delete runs."""
    from mimbench import paths
    from mimbench.store import RunStore

    store = RunStore(paths.runs())
    for folder in [store.find(name) for name in names]:
        _remove(store, folder)


@runs.command("gc")
def collect(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete the runs that no table refers to (changed recipes, --set), and leftover temporary files."""
    from mimbench import paths
    from mimbench.catalog import Catalog
    from mimbench.garbage import unreferenced
    from mimbench.store import RunStore

    store = RunStore(paths.runs())
    folders = unreferenced(store, Catalog(paths.cache()))
    leftovers = store.leftovers()
    for path in [*(folder.path for folder in folders), *leftovers]:
        typer.echo(f"{'would delete' if dry_run else 'to delete'}: {path}")
    if not (folders or leftovers):
        typer.echo("Nothing to collect.")
    if dry_run or not (folders or leftovers):
        return
    if not yes:
        typer.confirm(f"Delete {len(folders)} runs and {len(leftovers)} leftovers?", abort=True)
    for folder in folders:
        _remove(store, folder)
    store.remove_leftovers(leftovers)


def _remove(store: Any, folder: Any) -> None:
    from mimbench.store import RunLocked

    try:
        store.remove(folder)
    except RunLocked:
        raise UserError(
            "RUN", folder.path.name, remedy="It is being computed right now; stop that first."
        ) from None
    typer.echo(f"deleted {folder.path.name}")


# -- data ----------------------------------------------------------------------------------------------------


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
    print_report(report, _console())
    raise typer.Exit(0 if report.ok else 2)
