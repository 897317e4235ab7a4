"""The plan as a person reads it."""

from __future__ import annotations

from rich.console import Console

from mimbench.plan.graph import Plan


def show(plan: Plan, console: Console, *, rerun_stale: bool = False) -> None:
    """Print the graph: what is cached, what depends on what, the totals, and what sharing saves."""
    from rich.table import Table

    numbers = {key: index for index, key in enumerate(plan.nodes, start=1)}
    table = Table(title=f"{len(plan.nodes)} runs", title_justify="left")
    for name in ("#", "key", "run", "needs", "images", "FLOPs", "state"):
        table.add_column(name, justify="right" if name in ("#", "images", "FLOPs") else "left")
    for key, node in plan.nodes.items():
        needs = ", ".join(f"{role} #{numbers[parent]}" for role, parent in node.spec.parents.items())
        state = "cached" if node.outcome == "done" else "to do" if node.outcome == "missing" else node.outcome
        table.add_row(
            str(numbers[key]), key[:8], node.label, needs, f"{node.images:,}", f"{node.flops:.1e}", state
        )
    console.print(table)
    nodes, todo = plan.nodes.values(), plan.todo(rerun_stale=rerun_stale)
    alone = sum(node.flops * len(node.users) for node in nodes)
    total = sum(node.flops for node in nodes)
    console.print(
        f"to do: {len(todo)} of {len(plan.nodes)} runs, {sum(n.images for n in todo):,} images, "
        f"{sum(n.flops for n in todo):.1e} FLOPs"
    )
    runs_alone = sum(len(node.users) for node in nodes)
    if alone > total:
        console.print(
            f"sharing: {len(plan.nodes)} runs instead of {runs_alone}, "
            f"which saves {100 * (1 - total / alone):.0f} % of the FLOPs"
        )
    reasons: dict[str, list[str]] = {}
    for (row, _), reason in plan.blocked.items():
        reasons.setdefault(str(reason), []).append(row)
    for words, rows in reasons.items():
        console.print(f"not runnable ({', '.join(dict.fromkeys(rows))}): {words}")
