"""Tables from beginning to end: plan, compute, aggregate, render."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from mimbench import paths, render
from mimbench.commands.outcomes import aggregate, context
from mimbench.commands.plan import plan_table, plan_tables, refuse_without_data
from mimbench.commands.weights import require_loadable
from mimbench.commands.workspace import prepare_data, read_catalog
from mimbench.execute.pool import Pool, Report
from mimbench.execute.progress import Progress
from mimbench.plan.graph import Plan
from mimbench.plan.names import load_table
from mimbench.plan.pace import Pace, expect, history
from mimbench.plan.request import Request, check, command_of, report_name
from mimbench.plan.show import duration, literal, show
from mimbench.render import index, terminal
from mimbench.store.folder import UNREADABLE
from mimbench.store.runs import RunStore


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
    """Compute a table's missing runs, print the table, write its files, and print where they are.

    Returns:
        The exit status: 0; 1 if a run failed; 2 if it failed because of a user's mistake.
    """
    check(request)
    spec = load_table(method, table)
    store = RunStore(paths.runs())
    with Pool(store, jobs) as pool:
        catalog = read_catalog(console, None if dry_run else pool)
        plan = plan_table(method, spec, request, catalog, store)
        if dry_run:
            expected = expect(plan, store, pool.jobs, rerun_stale=rerun_stale)
            show(plan, console, rerun_stale=rerun_stale, expected=expected)
            tell_damage(plan, store, console)
            return 0
        refuse_without_data(plan, request)
        report = compute(plan, pool, console, rerun_stale=rerun_stale)
    finished = aggregate(spec, plan, report, request, store, where=f"tables/{method}/{table}.toml")
    terminal.show(finished, console)
    told, name = context(spec, plan, request, command, store), report_name(table, request)
    files = render.write_all(finished, paths.reports_out() / method, name, told)
    index.write(paths.reports_out())
    tell_failures(plan, report, store, console)
    tell_sharing(plan, store, console)
    for file in reversed(files):  # so that the HTML page comes last
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
    """Compute the missing runs of several tables, given as (method, table); a shared run is computed once.

    Writes each table's files, and the index page of all tables.

    Returns:
        The exit status, as `reproduce_table`.
    """
    check(request)
    specs = {name: load_table(*name) for name in names}
    store = RunStore(paths.runs())
    with Pool(store, jobs) as pool:
        catalog = read_catalog(console, None if dry_run else pool)
        plans, whole = plan_tables(specs, request, catalog, store)
        if dry_run:
            expected = expect(whole, store, pool.jobs, rerun_stale=rerun_stale)
            show(whole, console, rerun_stale=rerun_stale, expected=expected)
            tell_damage(whole, store, console)
            return 0
        refuse_without_data(whole, request)
        report = compute(whole, pool, console, rerun_stale=rerun_stale)
    for (method, table), plan in plans.items():
        spec, where = specs[method, table], f"tables/{method}/{table}.toml"
        result = aggregate(spec, plan, report, request, store, where=where)
        terminal.show(result, console)
        told = context(spec, plan, request, command_of(method, table, request), store)
        render.write_all(result, paths.reports_out() / method, report_name(table, request), told)
    tell_failures(whole, report, store, console)
    tell_sharing(whole, store, console)
    page = index.write(paths.reports_out())
    console.print(str(page), markup=False, highlight=False, soft_wrap=True)
    return report.exit_code


def compute(plan: Plan, pool: Pool, console: Console, *, rerun_stale: bool = False) -> Report:
    """Compute a plan's missing runs. Makes the project's own data first, if a run reads it."""
    todo = plan.todo(rerun_stale=rerun_stale)
    if not todo:
        return Report()
    require_loadable(todo, pool.store)
    prepare_data(todo, console)
    pace = Pace(history(plan, pool.store))
    with Progress(console, todo, pace=pace, workers=pool.jobs) as progress:
        return pool.run(plan, progress, rerun_stale=rerun_stale)


def tell_damage(plan: Plan, store: RunStore, console: Console) -> None:
    """Print the damaged files of a plan's runs, and what to do about them."""
    for key, node in plan.nodes.items():
        if node.outcome in UNREADABLE:
            for message in store.folder(key).damage():
                console.print(message, style="red", markup=False, soft_wrap=True)


def tell_failures(plan: Plan, report: Report, store: RunStore, console: Console) -> None:
    """Print the logs of the failed runs. Why they failed was printed when they did."""
    for key in report.failed:
        folder = store.get(key)
        if folder and folder.log_path.exists():
            told = literal(f"{plan.nodes[key].label} failed; its log: {folder.log_path}")
            console.print(told, style="red", soft_wrap=True)
    if report.unreached:
        console.print(
            f"{len(report.unreached)} more runs could not start, because they need failed runs.", style="red"
        )


def tell_sharing(plan: Plan, store: RunStore, console: Console) -> None:
    """Print what it saved to compute shared runs once instead of once per row."""
    spent = saved = 0.0
    for key, node in plan.nodes.items():
        folder = store.get(key)
        seconds = folder.status.seconds if folder else 0.0
        spent, saved = spent + seconds, saved + seconds * (len(node.users) - 1)
    alone = sum(len(node.users) for node in plan.nodes.values())
    if alone > len(plan.nodes):
        console.print(
            f"{len(plan.nodes)} runs, {duration(spent)} of work; "
            f"without sharing: {alone} runs, {duration(spent + saved)}",
            highlight=False,
        )
