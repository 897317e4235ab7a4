"""`mimbench doctor`: one screen of what is installed, what can run here, and how to get the rest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mimbench import paths, plugin
from mimbench.commands.remove import readable_size, size
from mimbench.errors import visible
from mimbench.execute.machine import num_cores
from mimbench.store.runs import RunStore

TOY_DISK_GB = 1.0  # toy data, four rows, three tasks and their checkpoints, rounded up
TOY_MEMORY_GB = 4.0

MARKS = {"ok": ("✓", "green"), "note": ("•", "yellow"), "missing": ("✗", "bold red")}


class Check(NamedTuple):
    """One line of the screen.

    Attributes:
        status: `ok`, `note` (fine for the toy table) or `missing` (the toy table cannot run).
        remedy: what to do about it; shown after what was found.
        details: short items, shown below in grey.
    """

    status: str
    name: str
    found: str
    remedy: str = ""
    details: tuple[str, ...] = ()


class Examination(NamedTuple):
    """All lines of the screen, by section."""

    sections: dict[str, list[Check]]

    @property
    def problems(self) -> list[Check]:
        return [check for section in self.sections.values() for check in section if check.status == "missing"]

    @property
    def status(self) -> int:
        """The exit status: 0 if the default (toy) table can run, else 1."""
        return int(bool(self.problems))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for --json; `mimbench.commands.describe` lists them."""
        checks = [
            {"section": section, **check._asdict()}
            for section, found in self.sections.items()
            for check in found
        ]
        return {"schema": 1, "ready": not self.problems, "checks": checks}


def examine() -> Examination:
    """Look at the machine, the installed packages and the places of the workspace; nothing is written."""
    dependencies = list(check_dependencies())
    broken = any(check.status == "missing" for check in dependencies)
    sections = {
        "machine": list(check_machine()),
        "devices": [] if broken else list(check_devices()),
        "dependencies": dependencies,
        "places": [*check_places(), *check_plugins()],
    }
    if not broken:
        sections["dependencies"].append(check_ops())
    problems = Examination(sections).problems
    sections["scales"] = list(check_scales(problems, gpu=any("CUDA" in c.name for c in sections["devices"])))
    return Examination(sections)


def main(console: Console | None = None) -> int:
    """Print the screen. Returns 0 if the default (toy) table can run, else 1."""
    console = console or Console()
    found = examine()
    grid = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    for column in ("section", "mark", "name"):
        grid.add_column(column, no_wrap=True)
    grid.add_column("found", overflow="fold")
    for title, section in found.sections.items():
        for number, check in enumerate(section):
            grid.add_row(Text(title if number == 0 else "", style="bold cyan"), *_cells(check))
    console.print(grid)
    console.print()
    if found.problems:
        names = ", ".join(check.name for check in found.problems)
        line = Text.assemble(("The toy table cannot run here:", "bold red"), f" {names}.")
    else:
        ready, command = ("Ready.", "bold green"), ("mimbench reproduce-table dtm", "bold")
        line = Text.assemble(ready, " Start with: ", command)
    console.print(line, highlight=False)
    return found.status


def _cells(check: Check) -> tuple[Text, Text, Text]:
    mark, colour = MARKS[check.status]
    found = Text(visible(check.found))
    if check.remedy:
        found.append(f"  {visible(check.remedy)}", style="yellow")
    if check.details:  # a no-break space keeps each item on one line
        found.append(
            "\n" + " · ".join(item.replace(" ", "\N{NO-BREAK SPACE}") for item in check.details), style="dim"
        )
    return Text(mark, style=colour), Text(check.name), found


def check_machine() -> Iterable[Check]:
    """Python, the operating system, cores and memory."""
    yield Check("ok", "python", f"{platform.python_version()} at {sys.executable}")
    yield Check("ok", "system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    enough = memory >= TOY_MEMORY_GB
    yield Check(
        "ok" if enough else "note",
        "cores, memory",
        f"{num_cores()} cores, {memory:.1f} GB",
        "" if enough else f"The toy table needs {TOY_MEMORY_GB:.0f} GB.",
    )


def check_devices() -> Iterable[Check]:
    """The CPU, and every CUDA device that torch can use."""
    import torch

    yield Check("ok", "CPU", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    if not torch.cuda.is_available():
        why = f"no driver for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
        yield Check("note", "GPU", f"none ({why}); smoke and toy need none")
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield Check("ok", f"CUDA {index}", f"{device.name}, {device.total_memory / 2**30:.0f} GB")


def check_dependencies() -> Iterable[Check]:
    """The installed version of every dependency against the one that mimbench requires."""
    fine = []
    for requirement in requirements():
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed_version(requirement.name)
        if version is None:
            remedy = f"pip install '{_without_marker(requirement)}'"
            yield Check("missing", requirement.name, "not installed", remedy)
        elif not requirement.specifier.contains(version, prereleases=True):
            remedy = f"needs {requirement.specifier}: pip install '{_without_marker(requirement)}'"
            yield Check("missing", requirement.name, version, remedy)
        else:
            fine.append(f"{requirement.name} {version}")
    if fine:
        yield Check("ok", "packages", f"{len(fine)} in the versions mimbench asks for", details=tuple(fine))


def check_ops() -> Check:
    """Which kernels mmdetection's NMS and RoIAlign run on."""
    from mimbench.ops import ensure_mmcv_ops

    kind = ensure_mmcv_ops()
    found = {"compiled": "mmcv's own, compiled", "torchvision": "torchvision's; no compiled mmcv is needed"}
    return Check("ok", "mmcv kernels", found[kind])


def check_places() -> Iterable[Check]:
    """Where tables, data, runs, reports and the cache are, and the free disk space there."""
    tables = paths.share("tables")
    count = len(list(tables.glob("*/*.toml")))
    if count:
        yield Check("ok", "tables", f"{tables} ({count})")
    else:
        yield Check("missing", "tables", f"none in {tables}", "reinstall mimbench")
    for name, place in (("data", paths.data()), ("runs", paths.runs()), ("reports", paths.reports_out())):
        base = existing_parent(place)
        free = shutil.disk_usage(base).free / 2**30
        state = ", not made yet"
        if place.is_dir():
            state = _runs_in(place) if name == "runs" else ""
        if not os.access(base, os.W_OK):
            remedy = "not writable: set MIMBENCH_HOME to a folder that is"
            yield Check("missing", name, f"{place}{state}", remedy)
        elif free < TOY_DISK_GB:
            remedy = f"the toy table needs {TOY_DISK_GB:.0f} GB: set MIMBENCH_HOME to a roomier disk"
            yield Check("missing", name, f"{place}{state}, {free:.1f} GB free", remedy)
        else:
            yield Check("ok", name, f"{place}{state}, {free:.0f} GB free")
    yield check_cache()


def _runs_in(place: Path) -> str:
    """`, 120 runs (3.4 GB)`."""
    count = sum(1 for _ in RunStore(place))
    return f", {count} run{'' if count == 1 else 's'} ({readable_size(size(place))})"


def check_cache() -> Check:
    """The cache folder. Without a cache, every command reads all methods again."""
    place = paths.cache()
    if place is None:
        return Check("note", "cache", "none: there is no home folder", "set MIMBENCH_CACHE to a folder")
    base = existing_parent(place)
    if not base.is_dir() or not os.access(base, os.W_OK | os.X_OK):
        remedy = "not writable, so nothing is cached: set MIMBENCH_CACHE to a folder that is"
        return Check("note", "cache", str(place), remedy)
    return Check(
        "ok",
        "cache",
        f"{place} ({readable_size(size(place))})" if place.is_dir() else f"{place}, not made yet",
    )


def check_plugins() -> Iterable[Check]:
    """Each plug-in, with how many methods, teachers, tasks and tables it holds."""
    for found in plugin.plugins():
        if found.path.is_file():
            yield Check("ok", "plug-in", str(found))
            continue
        counts = {
            pattern.split("/")[0]: sum(file.name[0] != "_" for file in found.path.glob(pattern))
            for pattern in plugin.HOLDS
        }
        details = tuple(f"{count} {kind}" for kind, count in counts.items() if count)
        yield Check("ok", "plug-in", str(found), details=details)


def check_scales(problems: list[Check], *, gpu: bool) -> Iterable[Check]:
    """What can run here, scale by scale, and what the other scales need."""
    if not problems:
        yield Check("ok", "smoke, toy", "on data that mimbench makes itself")
    own = "--data imagenet=PATH --data ade20k=PATH --data coco=PATH"
    yield Check("note", "small", "needs your own images:", own)
    gpus = "" if gpu else ", and GPUs (there are none here)"
    yield Check(
        "note",
        "paper",
        f"needs --data imagenet, ade20k, coco; --weights for the teachers clip, dino and dall-e{gpus}",
    )


def requirements() -> list[Requirement]:
    """What mimbench asks for: the installed package's metadata, else the checkout's pyproject.toml."""
    try:
        lines = importlib.metadata.requires("mimbench") or []
    except importlib.metadata.PackageNotFoundError:
        lines = _declared(paths.PACKAGE.parent / "pyproject.toml")
    return [Requirement(line) for line in lines]


def _declared(pyproject: Path) -> list[str]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    project = tomllib.loads(pyproject.read_text())["project"]
    extras = project["optional-dependencies"].items()
    optional = [f"{line}; extra == '{extra}'" for extra, lines in extras for line in lines]
    return [*project["dependencies"], *optional]


def _without_marker(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


def installed_version(name: str) -> str | None:
    """The installed version of a distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def existing_parent(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    return next(parent for parent in (path, *path.parents) if parent.exists())
