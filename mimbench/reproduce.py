"""One table from beginning to end: plan, execute, aggregate, render."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from mimbench import paths
from mimbench.catalog import Catalog, Description, kind_of
from mimbench.errors import UserError
from mimbench.execute import Pool, Report, gpu_ids, num_cores
from mimbench.plan import Data, Node, Plan, Planner, Request, show
from mimbench.progress import Progress
from mimbench.recipe import SCALES
from mimbench.spec import canonical_json
from mimbench.store import Options, RunFolder, RunStore

if TYPE_CHECKING:
    from mimbench.render import Context
    from mimbench.table.cell import Outcome, Table
    from mimbench.table.spec import TableSpec

MAX_LOADER_WORKERS = 8  # per GPU


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
    from mimbench.render import terminal
    from mimbench.table import spec as tables

    check(request)
    spec = tables.load(method, table)
    store = RunStore(paths.runs())
    with Pool(store, jobs) as pool:
        catalog = Catalog(paths.cache(), on_miss=None if dry_run else pool.start)
        plan = plan_table(method, spec, request, catalog, store, console)
        if dry_run:
            show(plan, console, rerun_stale=rerun_stale)
            return 0
        report = execute(plan, pool, console, rerun_stale=rerun_stale)
    finished = aggregate(spec, plan, report, request, catalog, store, where=f"tables/{method}/{table}.toml")
    terminal.show(finished, console)
    files = render.write_all(finished, paths.reports_out() / method, table, context(plan, command))
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
    command: str = "",
    jobs: int | None = None,
    rerun_stale: bool = False,
    dry_run: bool = False,
) -> int:
    """Compute what several tables, given as (method, table), lack: one graph, in which every run is once.

    Each table's files are written, and the page that leads to all of them.

    Returns:
        The exit status, as `reproduce_table`.
    """
    from mimbench import render
    from mimbench.render import index, terminal
    from mimbench.table import cell, reported
    from mimbench.table import spec as tables

    check(request)
    specs = {name: tables.load(*name) for name in names}
    store = RunStore(paths.runs())
    with Pool(store, jobs) as pool:
        catalog = Catalog(paths.cache(), on_miss=None if dry_run else pool.start)
        data = dataset(request, console)
        planners = {name: Planner(catalog, store, data, request) for name in names}
        plans = {
            name: planners[name].table(spec.rows, spec.columns, f"tables/{'/'.join(name)}.toml")
            for name, spec in specs.items()
        }
        refuse(planner.unknown() for planner in planners.values())
        whole = Plan.union(plans.values())
        whole.blocked = {
            (f"{'/'.join(name)} {row}", column): reason
            for name, plan in plans.items()
            for (row, column), reason in plan.blocked.items()
        }
        for name, spec in specs.items():  # a wrong reference must not wait for the last run
            cell.aggregate(
                spec, {}, reported.read(), request.scale, {}, where=f"tables/{'/'.join(name)}.toml"
            )
        if dry_run:
            show(whole, console, rerun_stale=rerun_stale)
            return 0
        report = execute(whole, pool, console, rerun_stale=rerun_stale)
    finished = {}
    for (method, table), plan in plans.items():
        spec, where = specs[method, table], f"tables/{method}/{table}.toml"
        finished[method, table] = aggregate(spec, plan, report, request, catalog, store, where=where)
        terminal.show(finished[method, table], console)
        folder, told = paths.reports_out() / method, context(plan, command_of(method, table, request))
        render.write_all(finished[method, table], folder, table, told)
    tell_failures(whole, report, store, console)
    tell_sharing(whole, store, console)
    page = index.write(finished, paths.reports_out(), command)
    console.print(str(page), markup=False, highlight=False, soft_wrap=True)
    return report.exit_code


def check(request: Request) -> None:
    """Raises UserError for what no plan is needed to refuse."""
    if request.scale not in SCALES:
        raise UserError("--scale", request.scale, allowed=SCALES)
    if request.seeds < 1:
        raise UserError("--seeds", request.seeds, remedy="Give a whole number from 1.")


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
    planner = Planner(catalog, store, dataset(request, console), request)
    plan = planner.table(spec.rows, spec.columns, f"tables/{method}/{spec.name}.toml")
    refuse([planner.unknown()])
    return plan


def refuse(unknown: Iterable[Mapping[str, UserError]]) -> None:
    """Raises the UserError of a --set or --weights that is unknown to every one of the tables."""
    first, *others = unknown
    for name, error in first.items():
        if all(name in other for other in others):
            raise error


def execute(plan: Plan, pool: Pool, console: Console, *, rerun_stale: bool = False) -> Report:
    todo = plan.todo(rerun_stale=rerun_stale)
    if not todo:
        return Report()
    with Progress(console, todo) as progress:
        return pool.run(plan, progress, rerun_stale=rerun_stale)


# -- from runs to cells --------------------------------------------------------------------------------------


def outcomes(
    spec: TableSpec, plan: Plan, report: Report, request: Request, store: RunStore
) -> dict[tuple[str, int], dict[int, Outcome]]:
    """What the aggregation needs: every cell's outcome by seed, as it stands in the store now."""
    from mimbench.table.cell import Outcome

    found: dict[tuple[str, int], dict[int, Outcome]] = {}
    for cell, reason in plan.blocked.items():
        found[cell] = {seed: Outcome("not_runnable", note=reason) for seed in range(request.seeds)}
    for (row, column), keys in plan.cells.items():
        metric = spec.columns[column].metric
        found[row, column] = {
            seed: _outcome(plan.nodes[key], metric, report, store) for seed, key in keys.items()
        }
    return found


def _outcome(node: Node, metric: str, report: Report, store: RunStore) -> Outcome:
    from mimbench.table.cell import Outcome

    run = node.spec.folder
    if node.key in report.failed:
        return Outcome("failed", run=run, note=report.failed[node.key])
    if node.key in report.unreached:
        return Outcome("failed", run=run, note=report.unreached[node.key])
    folder = store.get(node.key)
    status = folder.outcome() if folder else "missing"
    if folder is None or status == "missing":
        return Outcome("missing", run=run)
    if status == "running":
        return Outcome("running", run=run)
    if status == "failed":
        return Outcome("failed", run=run, note=folder.status.get("message", ""))
    value = (folder.result or {}).get("metrics", {}).get(metric)
    if value is None:
        return Outcome("not_runnable", run=run, note=f"this run cannot give {metric}")
    return Outcome("stale" if status == "stale" else "ok", value=value, run=run)


def aggregate(
    spec: TableSpec,
    plan: Plan,
    report: Report,
    request: Request,
    catalog: Catalog,
    store: RunStore,
    *,
    where: str,
) -> Table:
    from mimbench.table import cell, reported

    rebuilt = {
        row.id: catalog.describe(kind_of(row.method), row.method).reconstruction
        for row in spec.rows
        if row.method is not None
    }
    found = outcomes(spec, plan, report, request, store)
    scale = f"changed {request.scale}" if request.changes else request.scale  # no longer the paper's recipe
    return cell.aggregate(spec, found, reported.read(), scale, rebuilt, where=where)


def context(plan: Plan, command: str) -> Context:
    """What the report says beside the table: the command, the data, the version, every row's recipe."""
    from mimbench.render import Context

    facts = {"mimbench": version()}
    recipes: dict[str, dict[str, tuple[Any, str]]] = {}
    for (row, _), keys in plan.cells.items():
        node = plan.nodes[keys[0]]
        encoder = plan.nodes[node.spec.parents["encoder"]]
        resolved = plan.recipes[encoder.key]
        recipes[row] = {
            name: (value, resolved.sources.get(name, "")) for name, value in resolved.values.items()
        }
    for node in plan.nodes.values():
        for role, fingerprint in node.spec.data.items():
            facts[f"data: {role}"] = fingerprint[:16]
    return Context(command=command, facts=facts, recipes=recipes)


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
            f"{len(plan.nodes)} runs, {spent / 60:.0f} minutes of work; "
            f"every row by itself: {alone} runs, {(spent + saved) / 60:.0f} minutes",
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
        catalog = Catalog(paths.cache(), on_miss=None if dry_run else pool.start)
        pretrainings = (*cards.names("method"), *cards.names("teacher"))
        if task is None and name not in pretrainings and any(True for _ in store):
            plan = plan_stored(store.find(name), store)
        else:
            row = MethodRow(name, catalog.describe(kind_of(name), name).title, name)
            builder = Planner(catalog, store, dataset(request, console), request)
            with_unavailable(lambda: builder.cell(row, task, seed, "command line"))
            refuse([builder.unknown()])
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
        raise UserError(
            "RUN", str(reason), remedy="Choose another --scale, or give what is missing."
        ) from None


def plan_stored(folder: RunFolder, store: RunStore) -> Plan:
    """The plan that computes a run of the store again from what its folder says."""
    plan = Plan(targets={folder.spec.key})

    def add(folder: RunFolder) -> None:
        for parent in folder.parents.values():
            add(parent)
        spec, inputs = folder.spec, folder.inputs
        plan.nodes[spec.key] = Node(spec, inputs, spec.folder, 0, 1.0, folder.outcome())

    add(folder)
    return plan


# -- garbage -------------------------------------------------------------------------------------------------


class _AnyData(Data):
    """Stands for whatever data a run was made with: a plan's recipes do not depend on it."""

    def __init__(self) -> None:
        pass

    def path(self, role: str) -> Path:
        return Path()

    def fingerprint(self, role: str) -> str:
        return ""

    def size(self, role: str, *, labelled: bool) -> int:
        return 1


class _AnyPlanner(Planner):
    """Plans as if every checkpoint that a recipe loads had been given."""

    def _weights(self, title: str, name: str | None) -> dict[str, Path]:
        del title, name
        return {}


def unreferenced(store: RunStore, catalog: Catalog) -> list[RunFolder]:
    """Runs whose recipe no table has today, at any scale; seed and data do not matter."""
    from mimbench import catalog as cards
    from mimbench.table import spec as tables

    wanted: set[str] = set()
    loaded = dict.fromkeys(cards.names("method"), Path())  # as --weights METHOD=PATH has it
    requests = [Request(scale=scale, weights=weights) for scale in SCALES for weights in ({}, loaded)]
    for method, table in tables.list_tables():
        spec = tables.load(method, table)
        for request in requests:
            empty = RunStore(store.root / ".none")
            build = _AnyPlanner(catalog, empty, _AnyData(), request)
            plan = build.table(spec.rows, spec.columns, f"tables/{method}/{table}.toml")
            signatures: dict[str, str] = {}
            for key, node in plan.nodes.items():
                parents = {role: signatures[parent] for role, parent in node.spec.parents.items()}
                signatures[key] = _signature(node, parents)
            wanted.update(signatures.values())

    def is_wanted(folder: RunFolder) -> str | None:
        """The run's signature if a table has it; a parent that is gone cannot speak against its child."""
        parents = {}
        for role, key in folder.spec.parents.items():
            parent = store.get(key)
            if parent is None:
                return ""
            signature = is_wanted(parent)
            if signature is None:
                return None
            parents[role] = signature
        signature = _signature(folder, parents)
        return signature if signature in wanted or "" in parents.values() else None

    return [folder for folder in store if is_wanted(folder) is None]


def _signature(run: Node | RunFolder, parents: Mapping[str, str]) -> str:
    spec = replace(run.spec, data={}, seed=0, parents=dict(parents), skip_corrupt=False)
    return canonical_json(spec.as_dict())


# -- all tables on one page ----------------------------------------------------------------------------------


def leaderboard(request: Request, console: Console) -> int:
    """The main table of every paper as it stands in the store; nothing is computed."""
    from mimbench.atomic import write_text
    from mimbench.render import markdown, terminal

    pages = ["# Leaderboard", f"Scale {request.scale}, {request.seeds} seed(s). What is not run yet says so."]
    for table, told in stored_tables(request, console):
        terminal.show(table, console)
        pages.append("#" + markdown.render(table, told))  # its title becomes a section
    path = paths.reports_out() / "leaderboard.md"
    write_text(path, "\n\n".join(pages) + "\n")
    console.print(str(path), markup=False, highlight=False, soft_wrap=True)
    return 0


def results(document: Path, request: Request, console: Console) -> int:
    """The finished main tables into a document: briefly between its marks, whole in RESULTS.md beside it."""
    from mimbench.atomic import write_text
    from mimbench.render import markdown, readme

    found = [
        (table, told)
        for table, told in stored_tables(request, console)
        if any(cell.complete for row in table.rows for cell in row.cells)
    ]
    readme.update(document, [markdown.brief(table) for table, _ in found])
    whole = ["# Results", *("#" + markdown.render(table, told) for table, told in found)]
    write_text(document.parent / "RESULTS.md", "\n\n".join(whole) + "\n")
    console.print(f"{document} and RESULTS.md brought up to date", highlight=False)
    return 0


def stored_tables(request: Request, console: Console) -> Iterator[tuple[Table, Context]]:
    """The main table of every paper as it stands in the store."""
    from mimbench.table import spec as tables

    check(request)
    store, catalog = RunStore(paths.runs()), Catalog(paths.cache())
    for method, name in tables.list_tables():
        if name != "main":
            continue
        spec = tables.load(method, name)
        plan = plan_table(method, spec, request, catalog, store, console)
        where = f"tables/{method}/{name}.toml"
        table = aggregate(spec, plan, Report(), request, catalog, store, where=where)
        yield table, context(plan, command_of(method, name, request))


def command_of(method: str, table: str, request: Request) -> str:
    """The command that makes this table again."""
    words = ["mimbench", "reproduce-table", method, "--table", table]
    words += ["--scale", request.scale, "--seeds", str(request.seeds)]
    for option, given in (("--data", request.data), ("--weights", request.weights)):
        words += [word for name, path in given.items() for word in (option, f"{name}={path}")]
    for name, value in request.changes.items():
        words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join([*words, *(["--skip-corrupt"] if request.skip_corrupt else [])])


def describe_all(kind: Any, catalog: Catalog) -> Sequence[Description]:
    from mimbench import catalog as cards

    return [catalog.describe(kind, name) for name in cards.names(kind)]
