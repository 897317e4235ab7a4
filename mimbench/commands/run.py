"""Computes one run and what it needs: a method on a task, its pretraining alone, or a stored run."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from mimbench import discovery, paths
from mimbench.commands.list_runs import metrics_of
from mimbench.commands.plan import refuse
from mimbench.commands.reproduce import compute, tell_damage, tell_failures
from mimbench.commands.workspace import dataset, read_catalog
from mimbench.errors import Unavailable, UserError
from mimbench.execute.pool import Pool
from mimbench.plan.graph import Node, Plan
from mimbench.plan.names import find_run, wrong_name
from mimbench.plan.pace import expect
from mimbench.plan.planner import Planner
from mimbench.plan.proposals import proposing
from mimbench.plan.request import Request, check, flags
from mimbench.plan.show import show
from mimbench.store.folder import RunFolder
from mimbench.store.runs import RunStore
from mimbench.table.spec import Row


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
    """Compute one run and what it needs, and print its metrics and folder; returns the exit status.

    Args:
        name: a method, a teacher, or a stored run. task: None for the pretraining alone.

    Raises:
        UserError: an unknown name, a run that is not possible here, or an option that does not fit.
    """
    check(request)
    store = RunStore(paths.runs())
    with Pool(store, jobs) as pool:
        catalog = read_catalog(console, None if dry_run else pool)
        if name in (*discovery.names("method"), *discovery.names("teacher")):
            if task is not None and task not in discovery.names("task"):
                raise wrong_name("TASK", task, "task")
            title = catalog.describe(discovery.kind_of(name), name).title
            row = Row(id=name, label=title, method=name)
            sources = dataset(request, catalog)

            def build(request: Request) -> Plan:
                builder = Planner(catalog, store, sources, request)
                with_unavailable(lambda: builder.cell(row, task, seed, "command line"))
                refuse([builder])
                return builder.plan

            plan = proposing(build, request)
        elif task is None:
            stored = find_run(store, name, "method", "teacher")
            refuse_for_stored(request, seed)
            plan = plan_stored(stored, store)
        else:
            raise wrong_name("METHOD", name, "method", "teacher")
        if dry_run:
            expected = expect(plan, store, pool.jobs, rerun_stale=rerun_stale)
            show(plan, console, rerun_stale=rerun_stale, expected=expected)
            tell_damage(plan, store, console)
            return 0
        report = compute(plan, pool, console, rerun_stale=rerun_stale)
    tell_failures(plan, report, store, console)
    for key in plan.targets:
        folder = store.get(key)
        if folder and key not in report.failed and (result := folder.result):
            for metric, value in metrics_of(folder, result, catalog).items():
                console.print(f"{metric} {value:.4g}", markup=False)
            if folder.outcome() == "stale":
                console.print("stale: older code computed this; --rerun-stale computes it again")
        if folder:
            console.print(str(folder.path), markup=False, highlight=False, soft_wrap=True)
    return report.exit_code


def with_unavailable(plan: Any) -> None:
    """Turn Unavailable into UserError: for a single run it is the user's mistake, not a cell's state."""
    try:
        plan()
    except Unavailable as reason:
        remedy = f"{reason}. Choose another --scale, or give what is missing."
        raise UserError("RUN", remedy=remedy) from None


def refuse_for_stored(request: Request, seed: int) -> None:
    """Raises UserError for options that would turn a stored run into another one."""
    given = [
        *(f"--set {name}" for name in request.changes),
        *(f"--data {name}" for name in request.data),
        *(f"--weights {name}" for name in request.weights),
        *(["--seed"] if seed else []),
        *flags(request),
    ]
    if given:
        remedy = "These options cannot change a stored run. Name its method instead."
        raise UserError("RUN", ", ".join(given), remedy=remedy)


def plan_stored(folder: RunFolder, store: RunStore) -> Plan:
    """The plan that computes a stored run again from its folder's records.

    Raises:
        UserError: a run is not done, and a run that it starts from was removed.
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
