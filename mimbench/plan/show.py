"""Prints a plan for people."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from mimbench.plan.graph import Plan
from mimbench.plan.pace import Estimate
from mimbench.render.escape import visible


def show(
    plan: Plan,
    console: Console,
    *,
    rerun_stale: bool = False,
    expected: Estimate | None = None,
) -> None:
    """Print the graph: what is cached, what depends on what, the totals, and what sharing saves.

    Args:
        expected: how long the runs to do take; None leaves it out.
    """
    _show_runs(plan, console)
    nodes, todo = plan.nodes.values(), plan.todo(rerun_stale=rerun_stale)
    console.print(
        f"to do: {len(todo)} of {len(plan.nodes)} runs, {sum(n.images for n in todo):,} images, "
        f"{sum(n.flops for n in todo):.1e} FLOPs"
    )
    if todo and expected is not None:
        console.print(literal(time_line(expected)))
    alone, total = sum(node.flops * len(node.users) for node in nodes), sum(node.flops for node in nodes)
    if alone > total:
        runs_alone = sum(len(node.users) for node in nodes)
        console.print(
            f"sharing: {len(plan.nodes)} runs instead of {runs_alone}, "
            f"which saves {100 * (1 - total / alone):.0f} % of the FLOPs"
        )
    reasons: dict[str, list[str]] = {}
    for (row, _), reason in plan.blocked.items():
        reasons.setdefault(str(reason), []).append(row)
    for words, rows in reasons.items():
        console.print(literal(f"not runnable ({', '.join(dict.fromkeys(rows))}): {words}"))


def _show_runs(plan: Plan, console: Console) -> None:
    from rich.table import Table

    numbers = {key: index for index, key in enumerate(plan.nodes, start=1)}
    table = Table(title=f"{len(plan.nodes)} runs", title_justify="left")
    for name in ("#", "key", "run", "needs", "images", "FLOPs", "state"):
        table.add_column(name, justify="right" if name in ("#", "images", "FLOPs") else "left")
    for key, node in plan.nodes.items():
        needs = ", ".join(f"{role} #{numbers[parent]}" for role, parent in node.spec.parents.items())
        state = "cached" if node.outcome == "done" else "to do" if node.outcome == "missing" else node.outcome
        cells = (
            str(numbers[key]),
            key[:8],
            node.label,
            needs,
            f"{node.images:,}",
            f"{node.flops:.1e}",
            state,
        )
        table.add_row(*map(literal, cells))
    console.print(table)


def time_line(expected: Estimate) -> str:
    """The estimate in words."""
    if expected.seconds is None:
        return "time: unknown until a run like these has finished"
    workers = f"{expected.workers} worker{'s' if expected.workers > 1 else ''}"
    if not expected.unknown:
        return f"time: about {duration(expected.seconds)} with {workers}, by finished runs like these"
    unknown = ", ".join(expected.unknown)
    return (
        f"time: about {duration(expected.seconds)} with {workers}, by finished runs; "
        f"no run like it yet: {unknown}"
    )


def duration(seconds: float | None) -> str:
    """`12 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds or 0.0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def literal(written: str) -> Text:
    """Plain text for rich: brackets are not markup, and control characters are escaped."""
    return Text(visible(written))
