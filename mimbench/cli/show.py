"""The list of runs as a table, and the page of one run."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from mimbench.cli.console import TextConsole
from mimbench.cli.listing import ListConsole, aligned, cell, flat, is_roomy, stack
from mimbench.commands.list_runs import Listed
from mimbench.commands.remove import readable_size, size
from mimbench.plan.show import duration
from mimbench.store.folder import UNREADABLE, RunFolder
from mimbench.store.remarks import remarks
from mimbench.store.spec import canonical_json

COLUMNS = ("key", "run", "scale", "changes", "seed", "state", "when", "time", "result")
STYLES = {
    "done": "green",
    "stale": "magenta",
    "failed": "red",
    "damaged": "red",
    "edited": "red",
    "running": "cyan",
}
LOG_LINES = 20


def runs_table(found: Sequence[Listed], console: ListConsole) -> Table:
    """The runs as a table. A narrow terminal shows no times, and a run's changes below its name."""
    roomy = is_roomy(console)
    run = Column("run", min_width=16, overflow="fold")
    changes = Column("changes", min_width=12, overflow="fold")
    short = [Column(name, no_wrap=True) for name in ("key", "scale", "seed", "state", "when", "time")]
    key, scale, seed, state, when, took = short
    result = Column("result", min_width=10, overflow="fold")
    shown = [key, run, scale, changes, seed, state, when, took, result]
    table = Table(*(column for column in shown if roomy or column not in (changes, when, took)))
    for listed in found:
        lines = dict(zip(COLUMNS, _cells(listed), strict=True))
        cells = {name: cell(*each) for name, each in lines.items()}
        cells["state"] = cell(*lines["state"], style=STYLES.get(listed.state, ""))
        if not roomy:
            cells["run"] = stack(*lines["run"], *lines["changes"])
        table.add_row(*(cells[str(column.header)] for column in table.columns))
    return table


def runs_lines(found: Sequence[Listed]) -> list[str]:
    """The runs as plain lines with aligned columns."""
    columns = zip(*map(_cells, found), strict=True)
    return aligned(flat([(name,), *column]) for name, column in zip(COLUMNS, columns, strict=True))


@functools.cache
def _minute(count: int) -> str:
    """Local date and time of that minute since 1970."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(60 * count))


def _cells(listed: Listed) -> Sequence[Sequence[str]]:
    """The lines of each cell of a run's row, by COLUMNS."""
    return (
        (listed.key,),
        (listed.subject,),
        (listed.scale,),
        (" ".join(listed.changed()),),
        ("" if listed.spec is None else str(listed.spec.seed),),
        (listed.state,),
        (_minute(int(listed.updated) // 60),),
        (duration(listed.seconds),),
        outcome(listed),
    )


def outcome(listed: Listed) -> list[str]:
    """How far a run is, or its first two numbers, the headline first."""
    if listed.state in ("running", "interrupted") and listed.total:
        return [f"step {listed.step} of {listed.total}"]
    return [f"{name} {value:.4g}" for name, value in listed.metrics.items() if name != "lr"][:2]


def show(listed: Listed, children: Iterable[RunFolder]) -> None:
    """Print one run's page: what it is, how it ended, its recipe, and where its files are."""
    console = TextConsole()
    folder, spec = listed.folder, listed.spec
    console.print(cell(listed.subject, style="bold"))
    lines: list[tuple[str, Iterable[str]]] = [("run", [listed.name]), ("state", [_state(listed)])]
    if spec:
        parents = folder.store
        for role, key in spec.parents.items():
            parent = parents.get(key)
            lines.append((role, [parent.path.name if parent else f"{key[:8]}, which was removed"]))
        lines += [
            ("scale", [listed.scale or "unknown: there is no recipe for this run today"]),
            ("changes", listed.changed()),
            ("seed", [str(spec.seed)]),
            ("plug-in", list((folder.plugin or {}).values())),
            ("data", [f"{role} {print_[:8]}" for role, print_ in spec.data.items()]),
            ("used by", [child.path.name for child in children]),
            ("numbers", [f"{name} {value:.6g}" for name, value in listed.metrics.items()]),
            ("remarks", _remarks(listed)),
            ("recipe", [f"{name}={canonical_json(value)}" for name, value in spec.recipe.items()]),
        ]
    lines.append(("size", [readable_size(size(folder.path))]))
    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for title, values in lines:
        if text := _joined(title, list(values)):
            grid.add_row(cell(title, style="dim"), text)
    console.print(grid)
    if listed.state == "failed":
        _show_log(folder, console)
    console.print(cell(folder.path), soft_wrap=True, highlight=False)


def _remarks(listed: Listed) -> list[str]:
    result = listed.folder.result if listed.state not in UNREADABLE else None
    return remarks(result.details) if result else []


def _state(listed: Listed) -> str:
    parts = [listed.state]
    if listed.total and listed.state != "done":
        parts.append(f"step {listed.step} of {listed.total}")
    parts.append(f"{duration(listed.seconds)} of work")
    when = "last update on" if listed.state in ("running", "interrupted", "missing") else "ended on"
    parts.append(time.strftime(f"{when} %Y-%m-%d at %H:%M", time.localtime(listed.updated)))
    return ", ".join(parts) + (f": {listed.message}" if listed.message else "")


def _joined(title: str, values: list[str]) -> Text:
    """Runs, changes and numbers: one per line. Recipe fields: side by side, none broken across lines."""
    if title in ("used by", "changes", "numbers", "remarks"):
        return cell(*values)
    if title == "recipe":
        return cell(" · ".join(value.replace(" ", "\N{NO-BREAK SPACE}") for value in values))
    return cell(", ".join(values))


def _show_log(folder: RunFolder, console: Console) -> None:
    if not folder.log_path.is_file():
        return
    console.print(Text(f"\nThe last lines of {folder.log_path.name}", style="dim"))
    for line in folder.log_path.read_text(errors="replace").splitlines()[-LOG_LINES:]:
        console.print(cell(line.expandtabs()), soft_wrap=True, highlight=False)
