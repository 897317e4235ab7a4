"""Plug-ins: methods, teachers, tasks and tables that do not come with this project.

A plug-in is a folder or one Python file that the user names with `--include` (or in MIMBENCH_INCLUDE), or a
package that an installed distribution declares under the entry point group `mimbench.plugins`. A folder or a
package may hold:

    methods/*.py, teachers/*.py, tasks/*.py     which end in METHOD = MethodCard(...) or TASK = TaskCard(...)
    tables/PAPER/TABLE.toml, tables/reported.csv
    any further modules that these import: from ..layers import Mixer

An included folder or file is imported as `mimbench.plugin.NAME`, wherever it lies. So its modules clash with
no other package, and every process with the same environment finds the same modules.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from mimbench.errors import RunFailed, Unavailable, UserError, visible

VARIABLE = "MIMBENCH_INCLUDE"
GROUP = "mimbench.plugins"
HOLDS = ("methods/*.py", "teachers/*.py", "tasks/*.py", "tables/*/*.toml")

__path__: list[str] = []  # makes this module a package: `_Finder` imports included plug-ins below it


@dataclass(frozen=True)
class Plugin:
    """A folder, file or package with methods, teachers, tasks or tables.

    Attributes:
        name: the name of the folder, the file or the entry point.
        package: the package name under which its modules are imported.
        path: its folder, or its one file.
        distribution: the `name version` of what installed it; empty if the user named its path.
    """

    name: str
    package: str
    path: Path
    distribution: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution or self.path})"

    @property
    def is_included(self) -> bool:
        """Whether the user named its path. Then an error in it stops the command."""
        return not self.distribution

    @property
    def root(self) -> str:
        """The package whose modules count as the plug-in's source; if installed, its top-level package."""
        return self.package if self.is_included else self.package.partition(".")[0]

    @property
    def tables(self) -> Path:
        return self.path / "tables"

    def facts(self) -> dict[str, str]:
        """The plug-in's name and place, as a run records them."""
        place = {"path": str(self.path)} if self.is_included else {"distribution": self.distribution}
        return {"name": self.name, **place}


# -- which there are -----------------------------------------------------------------------------------------


def include(places: Iterable[str | os.PathLike[str]]) -> None:
    """Add plug-ins by their paths, for this process and those that it starts.

    Raises:
        UserError: a path is not there, or holds nothing that a plug-in may hold.
    """
    known = [*included(), *(Path(place).expanduser().absolute() for place in places)]
    for path in known:
        if os.pathsep in str(path):
            raise UserError("--include", str(path), remedy=f"Its path must not contain {os.pathsep!r}.")
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys(map(str, known)))
    forget()
    plugins()


def included() -> list[Path]:
    """The paths that the user named; absolute, because a worker has another current folder."""
    return [
        Path(text).expanduser().absolute() for text in os.environ.get(VARIABLE, "").split(os.pathsep) if text
    ]


def words() -> list[str]:
    """The --include options that a command needs to be repeated."""
    return [word for path in included() for word in ("--include", str(path))]


@functools.cache
def plugins() -> tuple[Plugin, ...]:
    """Every plug-in: those of installed distributions, then the included ones.

    Raises:
        UserError: an included path is not there, or holds nothing that a plug-in may hold.
    """
    found: list[Plugin] = []
    own = {path.resolve() for path in included()}
    for installed in _installed():
        if installed.path not in own:  # a path that the user also names counts as included
            found.append(installed)
    taken = set(_OWN_NAMES)
    for path in dict.fromkeys(path.resolve() for path in included()):
        _check(path)
        name = path.stem if path.is_file() else path.name
        identifier = re.sub(r"\W", "_", name)
        while identifier in taken:
            identifier += "_"
        taken.add(identifier)
        found.append(Plugin(name, f"{__name__}.{identifier}", path))
    return tuple(found)


def _installed() -> Iterator[Plugin]:
    for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda point: point.name):
        top, *rest = point.module.split(".")
        folder = package_folder(top)
        path = folder.joinpath(*rest) if folder else None
        name = f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"
        if path is None or not path.is_dir():
            warn(f"the plug-in {point.name} of {name} is left out: there is no package {point.module}")
            continue
        yield Plugin(point.name, point.module, path.resolve(), name)


def _check(path: Path) -> None:
    """Raises UserError for a path that is not a plug-in."""
    if not path.exists():
        raise UserError("--include", str(path), remedy="There is no such file or folder.")
    if path.is_file():
        if path.suffix != ".py":
            raise UserError("--include", str(path), remedy="Name a folder or a Python file.")
        return
    if not any(True for pattern in HOLDS for _ in path.glob(pattern)):
        remedy = f"A plug-in holds at least one of {', '.join(HOLDS)}; this folder holds none."
        raise UserError("--include", str(path), remedy=remedy)


def package_folder(package: str) -> Path | None:
    """Where a top-level package lies, found without importing it."""
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) if places else None


def of(module: str) -> Plugin | None:
    """The plug-in that a module belongs to, by its import name."""
    return next((each for each in plugins() if f"{module}.".startswith(f"{each.root}.")), None)


def inner_name(importer: str, module: str) -> str:
    """The name of `module` in the included plug-in of `importer`; unchanged if it is not a file of it.

    A plug-in's modules import each other relatively. If its folder is also on Python's path, they may use
    absolute imports too. Both must give the same name, because the file is the same.
    """
    owner = of(importer)
    if owner is None or not owner.is_included or owner.path.is_file():
        return module
    top, _, rest = module.partition(".")
    if top == owner.path.name:
        return f"{owner.package}.{rest}".rstrip(".")
    base = owner.path / top
    return f"{owner.package}.{module}" if base.is_dir() or base.with_suffix(".py").is_file() else module


class _Finder:
    """Imports `mimbench.plugin.NAME` from the folder or file that was included under this name."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if not name.startswith(f"{__name__}."):
            return None
        owner = next((each for each in plugins() if each.package == name), None)
        if owner is None:
            return None
        if owner.path.is_file():
            return importlib.util.spec_from_file_location(name, owner.path)
        init, places = owner.path / "__init__.py", [str(owner.path)]
        if init.is_file():
            return importlib.util.spec_from_file_location(name, init, submodule_search_locations=places)
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = places
        return spec


sys.meta_path.append(_Finder)


# -- what is wrong with them ---------------------------------------------------------------------------------


@contextlib.contextmanager
def blame(module: str) -> Iterator[None]:
    """Turn an exception of a plug-in's code into a UserError with file and line."""
    try:
        yield
    except (UserError, Unavailable, RunFailed):
        raise
    except Exception as error:  # a plug-in's code may raise anything
        owner = of(module)
        if owner is None:
            raise
        file, line = _place(owner, error)
        remedy = f"{type(error).__name__}: {error}.{_hint(owner, file, error)}"
        raise UserError(f"{file}, line {line}" if line else str(file), remedy=remedy) from error


def _place(owner: Plugin, error: Exception) -> tuple[Path, int | None]:
    """The file and line of the plug-in's innermost frame in the traceback; without one, its path and None."""
    if isinstance(error, SyntaxError) and error.filename:
        return Path(error.filename), error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename).is_relative_to(owner.path)]
    return (Path(inside[-1].filename), inside[-1].lineno) if inside else (owner.path, None)


def _hint(owner: Plugin, file: Path, error: Exception) -> str:
    """How to import a module of the plug-in, if such an import failed; else empty."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return ""
    if owner.path.is_file():
        beside = owner.path.with_name(error.name.removeprefix(f"{__name__}.").partition(".")[0])
        is_there = beside.is_dir() or beside.with_suffix(".py").is_file()
        return f" A plug-in of several files is a folder that holds {HOLDS[0]}." if is_there else ""
    inner = inner_name(owner.package, error.name)
    if inner == error.name:
        return ""
    dots = "." * len(file.relative_to(owner.path).parts)
    own = inner.removeprefix(f"{owner.package}.")
    return f" A plug-in's modules import each other relatively: from {dots}{own} import ..."


def leave_out(owner: Plugin | None, error: UserError) -> None:
    """Warn that an installed plug-in is left out because of an error; the command goes on without it.

    Raises:
        UserError: `error` itself, if the plug-in is included, or if the error is not a plug-in's.
    """
    if owner is None or owner.is_included:
        raise error
    warn(f"the plug-in {owner} is left out: {error}")


@functools.cache
def warn(text: str) -> None:
    """Print a warning, once a process; standard output is for results."""
    print(f"mimbench: warning: {visible(text, lines=True)}", file=sys.stderr)


def forget() -> None:
    """Forget what was found: the next call looks again."""
    plugins.cache_clear()
    warn.cache_clear()
    for name in [name for name in sys.modules if name.startswith(f"{__name__}.")]:
        del sys.modules[name]


_OWN_NAMES = frozenset(globals())  # a plug-in's package with one of these names would hide that attribute
