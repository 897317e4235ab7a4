"""One table from beginning to end: plan, execute, aggregate, render."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from mimbench import paths
from mimbench.catalog import Catalog, kind_of
from mimbench.data.roles import Data
from mimbench.errors import UserError
from mimbench.execute import Pool, Report, gpu_ids, num_cores
from mimbench.plan import Node, Plan, Planner, show
from mimbench.progress import Progress, duration
from mimbench.request import Request, check, command_of, report_name, settings
from mimbench.spec import canonical_json
from mimbench.store import Options, RunFolder, RunStore

if TYPE_CHECKING:
    from mimbench.catalog import Resolved
    from mimbench.render import Context, UsedRecipe
    from mimbench.table.cell import SeedOutcome, Table
    from mimbench.table.spec import TableSpec

MAX_LOADER_WORKERS = 8  # per GPU
GIVE = r"--(?:data|weights) \S+=PATH"  # what the reason of a cell that lacks something asks for


@dataclass(frozen=True)
class MethodRow:
    """A row that is in no table: one method as its file has it."""

    id: str
    label: str
    method: str | None
    set: Mapping[str, Any] = field(default_factory=dict)
    at: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    not_at: Mapping[str, str] = field(default_factory=dict)


def reproduce_table(
    method: str,
    table: str,
    request: Request,
    console: Console,
    *,
    command: str = "",
    jobs: int | None = None,
    rerun_stale: bool = False,
    dry_run: bool = False,
) -> int:
    """Compute what a table lacks, print the table, write its files, and say where they are.

    Returns:
        The exit status: 0, 1 where a run failed, 2 where it failed for a mistake of the user's.
    """
    from mimbench import render
    from mimbench.render import index, terminal
    from mimbench.table import spec as tables

    check(request)
    spec = tables.load(method, table)
    store = RunStore(paths.runs())
    with Pool(store, jobs) as pool:
        catalog = read_catalog(console, None if dry_run else pool)
        plan = plan_table(method, spec, request, catalog, store, console)
        if dry_run:
            show(plan, console, rerun_stale=rerun_stale)
            return 0
        refuse_without_data(plan, request)
        report = execute(plan, pool, console, rerun_stale=rerun_stale)
    finished = aggregate(spec, plan, report, request, store, where=f"tables/{method}/{table}.toml")
    terminal.show(finished, console)
    told, name = context(spec, plan, request, command), report_name(table, request)
    files = render.write_all(finished, paths.reports_out() / method, name, told)
    index.write(paths.reports_out())
    tell_failures(plan, report, store, console)
    tell_sharing(plan, store, console)
    for file in reversed(files):  # the page comes last
        console.print(str(file), markup=False, highlight=False, soft_wrap=True)
    return report.exit_code


def reproduce_all(
    names: Sequence[tuple[str, str]],
    request: Request,
    console: Console,
    *,
    jobs: int | None = None,
    rerun_stale: bool = False,
    dry_run: bool = False,
) -> int:
    """Compute what several tables, given as (method, table), lack: one graph, in which every run is once.

    Each table's files are written, and the page that leads to all tables there are.

    Returns:
        The exit status, as `reproduce_table`.
    """
    from mimbench import render
    from mimbench.render import index, terminal
    from mimbench.table import spec as tables

    check(request)
    specs = {name: tables.load(*name) for name in names}
    store = RunStore(paths.runs())
    with Pool(store, jobs) as pool:
        catalog = read_catalog(console, None if dry_run else pool)
        plans, whole = plan_tables(specs, request, catalog, store, console)
        if dry_run:
            show(whole, console, rerun_stale=rerun_stale)
            return 0
        refuse_without_data(whole, request)
        report = execute(whole, pool, console, rerun_stale=rerun_stale)
    for (method, table), plan in plans.items():
        spec, where = specs[method, table], f"tables/{method}/{table}.toml"
        result = aggregate(spec, plan, report, request, store, where=where)
        terminal.show(result, console)
        told = context(spec, plan, request, command_of(method, table, request))
        render.write_all(result, paths.reports_out() / method, report_name(table, request), told)
    tell_failures(whole, report, store, console)
    tell_sharing(whole, store, console)
    page = index.write(paths.reports_out())
    console.print(str(page), markup=False, highlight=False, soft_wrap=True)
    return report.exit_code


def read_catalog(console: Console, pool: Pool | None = None) -> Catalog:
    """The catalog; where it must import the cards first, that is said, and the pool's workers start."""

    def on_miss() -> None:
        console.print("Reading methods and tasks (once after a change of their code)", style="dim")
        if pool:
            pool.start()

    return Catalog(paths.cache(), on_miss)


def machine_options() -> Options:
    """Loader processes feed a GPU; on CPU they would only take the cores away from the model."""
    gpus = len(gpu_ids())
    return Options(num_workers=min(num_cores() // gpus, MAX_LOADER_WORKERS) if gpus else 0)


def dataset(request: Request, console: Console) -> Data:
    def toy() -> Path:
        from mimbench.data.toy import ensure

        size: Literal["smoke", "toy"] = "smoke" if request.scale == "smoke" else "toy"
        root = paths.data() / size
        if (root / "toy.json").is_file():
            return ensure(root, size=size)
        with console.status(f"Making the {size} data in {root}"):
            return ensure(root, size=size)

    return Data(request, toy)


def plan_table(
    method: str, spec: TableSpec, request: Request, catalog: Catalog, store: RunStore, console: Console
) -> Plan:
    """Plan one table, and refuse what is wrong with it, its references included, before anything runs."""
    plans, _ = plan_tables({(method, spec.name): spec}, request, catalog, store, console)
    return plans[method, spec.name]


def plan_tables(
    specs: Mapping[tuple[str, str], TableSpec],
    request: Request,
    catalog: Catalog,
    store: RunStore,
    console: Console,
) -> tuple[dict[tuple[str, str], Plan], Plan]:
    """The plans of several tables, given as (method, table), and the one of all their runs.

    Raises:
        UserError: a mistake in a table, a reference to no reported figure, a --set or --weights that no table
            knows.
    """
    from mimbench.table import cell, reported

    data = dataset(request, console)
    planners = {name: Planner(catalog, store, data, request) for name in specs}
    plans = {}
    for (method, table), spec in specs.items():
        where = f"tables/{method}/{table}.toml"
        plans[method, table] = planners[method, table].table(spec.rows, spec.columns, where)
        cell.aggregate(spec, {}, reported.read(), request.scale, where=where)
    refuse(planners.values())
    whole = Plan.union({"/".join(name): plan for name, plan in plans.items()})
    whole.blocked = {
        (f"{'/'.join(name)} {row}", column): reason
        for name, plan in plans.items()
        for (row, column), reason in plan.blocked.items()
    }
    return plans, whole


def refuse(planners: Iterable[Planner]) -> None:
    """Raises UserError for a --set or --weights that is unknown to every one of the tables."""
    first, *others = [planner.unknown() for planner in planners]
    for option, name in first:
        if all((option, name) in other for other in others):
            known = set().union(*(unknown[option, name] for unknown in (first, *others)))
            prefix, dot, _ = name.rpartition(".")
            if dot and option == "--set":
                option, name = f"{option} {name}", prefix
            raise UserError(option, name, allowed=sorted(known), remedy="No run here takes it.")


def refuse_without_data(plan: Plan, request: Request) -> None:
    """Raises UserError where not one row can be run for want of data or checkpoints that were not given."""
    missing = sorted({option for reason in plan.blocked.values() for option in re.findall(GIVE, reason)})
    if missing and not plan.targets:
        remedy = (
            f"No row can be run at scale {request.scale} without what is yours: give {' '.join(missing)}."
        )
        raise UserError("--data", remedy=remedy)


def execute(plan: Plan, pool: Pool, console: Console, *, rerun_stale: bool = False) -> Report:
    todo = plan.todo(rerun_stale=rerun_stale)
    if not todo:
        return Report()
    with Progress(console, todo) as progress:
        return pool.run(plan, progress, rerun_stale=rerun_stale)


# -- from runs to cells --------------------------------------------------------------------------------------


def outcomes(
    spec: TableSpec, plan: Plan, report: Report, request: Request, store: RunStore
) -> dict[tuple[str, int], dict[int, SeedOutcome]]:
    """What the aggregation needs: every cell's outcome by seed, as it stands in the store now."""
    from mimbench.table.cell import SeedOutcome

    found: dict[tuple[str, int], dict[int, SeedOutcome]] = {}
    for cell, reason in plan.blocked.items():
        found[cell] = {seed: SeedOutcome("not_runnable", note=reason) for seed in range(request.seeds)}
    for (row, column), keys in plan.cells.items():
        metric = spec.columns[column].metric
        found[row, column] = {
            seed: _outcome(plan.nodes[key], metric, report, store) for seed, key in keys.items()
        }
    return found


def _outcome(node: Node, metric: str, report: Report, store: RunStore) -> SeedOutcome:
    from mimbench.table.cell import SeedOutcome

    run = node.spec.folder
    if node.key in report.failed:
        return SeedOutcome("failed", run=run, note=report.failed[node.key])
    if node.key in report.unreached:
        return SeedOutcome("failed", run=run, note=report.unreached[node.key])
    folder = store.get(node.key)
    status = folder.outcome() if folder else "missing"
    if folder is None or status == "missing":
        return SeedOutcome("missing", run=run)
    if status == "running":
        return SeedOutcome("running", run=run)
    if status == "failed":
        return SeedOutcome("failed", run=run, note=folder.status.get("message", ""))
    value = (folder.result or {}).get("metrics", {}).get(metric)
    if value is None:
        return SeedOutcome("not_runnable", run=run, note=f"this run cannot give {metric}")
    return SeedOutcome("stale" if status == "stale" else "ok", value=value, run=run)


def aggregate(
    spec: TableSpec, plan: Plan, report: Report, request: Request, store: RunStore, *, where: str
) -> Table:
    from mimbench.table import cell, reported

    found = outcomes(spec, plan, report, request, store)
    scale = f"changed {request.scale}" if request.changes else request.scale  # no longer the paper's recipe
    flops, loaded = plan.pretraining_flops(), plan.loaded()
    return cell.aggregate(spec, found, reported.read(), scale, plan.rebuilt, flops, loaded, where=where)


def context(spec: TableSpec, plan: Plan, request: Request, command: str) -> Context:
    """What the report says beside the table: the command, what --set changed, data, version, recipes."""
    from mimbench.render import Context

    facts = {"mimbench": version()}
    if request.changes:
        facts["changed"] = ", ".join(settings(request))
    for node in plan.nodes.values():
        for role, fingerprint in node.spec.data.items():
            facts[f"data: {role}"] = fingerprint[:16]
    return Context(command=command, facts=facts, recipes=used_recipes(spec, plan))


def used_recipes(spec: TableSpec, plan: Plan) -> list[UsedRecipe]:
    """The recipes of all runs behind a table: pretrainings, then teachers, then tasks."""
    from mimbench.render import UsedRecipe

    stages = ("pretrain", "teacher", "downstream")
    found: dict[tuple[int, str, str], dict[str, Resolved]] = {}
    for row, column in plan.cells:
        for key in plan.lineage(plan.cells[row, column][0]):
            node, resolved = plan.nodes[key], plan.recipes[key]
            same = canonical_json([resolved.values, resolved.sources])
            place = (stages.index(node.spec.stage), resolved.about.title, same)
            found.setdefault(place, {})[spec.row(row).label] = resolved
    used = []
    for (_, title, _), by_row in sorted(found.items(), key=lambda item: item[0][0]):
        resolved = next(iter(by_row.values()))
        fields = {name: (value, resolved.sources.get(name, "")) for name, value in resolved.values.items()}
        used.append(UsedRecipe(title, tuple(by_row), fields))
    return used


def version() -> str:
    try:
        return importlib.metadata.version("mimbench")
    except importlib.metadata.PackageNotFoundError:  # a checkout on the path, not installed
        return "not installed"


def tell_failures(plan: Plan, report: Report, store: RunStore, console: Console) -> None:
    for key, message in report.failed.items():
        folder = store.folder(key)
        console.print(f"{plan.nodes[key].label} failed: {message}", style="red", markup=False, soft_wrap=True)
        console.print(f"  its log: {folder.log_path}", markup=False, highlight=False, soft_wrap=True)
    if report.unreached:
        console.print(f"{len(report.unreached)} more runs could not start for that reason.", style="red")


def tell_sharing(plan: Plan, store: RunStore, console: Console) -> None:
    """What it saved that every run was computed once and not for each row by itself."""
    spent = saved = 0.0
    for key, node in plan.nodes.items():
        folder = store.get(key)
        seconds = folder.status.get("seconds", 0.0) if folder else 0.0
        spent, saved = spent + seconds, saved + seconds * (len(node.users) - 1)
    alone = sum(len(node.users) for node in plan.nodes.values())
    if alone > len(plan.nodes):
        console.print(
            f"{len(plan.nodes)} runs, {duration(spent)} of work; "
            f"every row by itself: {alone} runs, {duration(spent + saved)}",
            highlight=False,
        )


# -- single runs ---------------------------------------------------------------------------------------------


def run_one(
    name: str,
    task: str | None,
    request: Request,
    console: Console,
    *,
    seed: int = 0,
    jobs: int | None = None,
    rerun_stale: bool = False,
    dry_run: bool = False,
) -> int:
    """Compute one run and what it needs: a method on a task, its pretraining alone, or a run of the store."""
    from mimbench import catalog as cards

    check(request)
    store = RunStore(paths.runs())
    with Pool(store, jobs) as pool:
        catalog = read_catalog(console, None if dry_run else pool)
        pretrainings = (*cards.names("method"), *cards.names("teacher"))
        if task is None and name not in pretrainings and any(True for _ in store):
            stored = store.find(name, also=pretrainings)
            refuse_for_stored(request, seed)
            plan = plan_stored(stored, store)
        else:
            row = MethodRow(name, catalog.describe(kind_of(name), name).title, name)
            builder = Planner(catalog, store, dataset(request, console), request)
            with_unavailable(lambda: builder.cell(row, task, seed, "command line"))
            refuse([builder])
            plan = builder.plan
        if dry_run:
            show(plan, console, rerun_stale=rerun_stale)
            return 0
        report = execute(plan, pool, console, rerun_stale=rerun_stale)
    tell_failures(plan, report, store, console)
    for key in plan.targets:
        folder = store.get(key)
        if folder and folder.result:
            for metric, value in folder.result["metrics"].items():
                console.print(f"{metric} {value:.4g}", markup=False)
        if folder:
            console.print(str(folder.path), markup=False, highlight=False, soft_wrap=True)
    return report.exit_code


def with_unavailable(plan: Any) -> None:
    """A single run that is not runnable is the user's mistake; in a table it is a cell's state."""
    from mimbench.catalog import Unavailable

    try:
        plan()
    except Unavailable as reason:
        remedy = f"{reason}. Choose another --scale, or give what is missing."
        raise UserError("RUN", remedy=remedy) from None


def refuse_for_stored(request: Request, seed: int) -> None:
    """Raises UserError for options that would change what a run of the store is."""
    given = [
        *(f"--set {name}" for name in request.changes),
        *(f"--data {name}" for name in request.data),
        *(f"--weights {name}" for name in request.weights),
        *(["--seed"] if seed else []),
        *(["--skip-corrupt"] if request.skip_corrupt else []),
    ]
    if given:
        remedy = "A run of the store is what it is; name its method to compute another one."
        raise UserError("RUN", ", ".join(given), remedy=remedy)


def plan_stored(folder: RunFolder, store: RunStore) -> Plan:
    """The plan that computes a run of the store again from what its folder says.

    Raises:
        UserError: it is to do, and what it starts from was removed.
    """
    plan = Plan(targets={folder.spec.key})

    def add(folder: RunFolder) -> None:
        spec, inputs, outcome = folder.spec, folder.inputs, folder.outcome()
        for role, key in spec.parents.items():
            if parent := store.get(key):
                add(parent)
            elif outcome != "done":
                remedy = f"Its {role} was removed from the store; name its method to compute both again."
                raise UserError("RUN", folder.path.name, remedy=remedy)
        plan.nodes[spec.key] = Node(spec, inputs, spec.folder, 0, 1.0, outcome)

    add(folder)
    return plan
