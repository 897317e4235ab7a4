"""Which methods, teachers and tasks there are, by their files. Imports none of them."""

from __future__ import annotations

import ast
import functools
import importlib.util
import pkgutil
from pathlib import Path
from typing import Literal

from mimbench.errors import UserError

Kind = Literal["method", "teacher", "task"]
PACKAGES: dict[str, tuple[str, str]] = {
    "method": ("pretrain.methods", "METHOD"),
    "teacher": ("pretrain.teachers", "METHOD"),
    "task": ("downstream", "TASK"),
}


def package_folder(package: str) -> Path | None:
    """Where a top-level package lies, found without importing it."""
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) if places else None


@functools.cache
def module_file(module: str) -> Path | None:
    """The source file of a project module (of a package: its `__init__`), found without importing it."""
    top, *rest = module.split(".")
    folder = package_folder(top)
    if folder is None:
        return None
    base = folder.joinpath(*rest)
    for path in (base / "__init__.py", base.with_suffix(".py") if rest else base / "__init__.py"):
        if path.is_file():
            return path
    return None


def names(kind: Kind) -> list[str]:
    """Every method, teacher or task there is."""
    return sorted(_found(kind))


def module_of(kind: str, name: str) -> str:
    """The module that holds a card.

    Raises:
        UserError: no such name.
    """
    found = _found(kind)
    if name not in found:
        raise UserError(
            kind.upper(), name, allowed=sorted(found), remedy=f"`mimbench {kind}s` describes them."
        )
    return found[name]


def kind_of(name: str) -> Literal["method", "teacher"]:
    """What a pretraining's name is. Raises UserError for a name of neither."""
    if name in _found("teacher"):
        return "teacher"
    module_of("method", name)
    return "method"


@functools.cache
def _found(kind: str) -> dict[str, str]:
    """Card name to module name, read from the files' syntax trees."""
    package, variable = PACKAGES[kind]
    top, *rest = package.split(".")
    root = package_folder(top)
    folder = root.joinpath(*rest) if root else None
    if folder is None or not folder.is_dir():
        return {}
    found = {}
    for info in pkgutil.iter_modules([str(folder)]):
        path = folder / f"{info.name}.py"
        card = _card_name(path, variable) if path.is_file() else None
        if card:
            found[card] = f"{package}.{info.name}"
    return found


def _card_name(path: Path, variable: str) -> str | None:
    """The `name=` of the card that a file assigns to `variable` (the file's own name if it is no literal)."""
    for node in ast.parse(path.read_text(encoding="utf-8"), filename=str(path)).body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(target, ast.Name) and target.id == variable for target in targets):
            for keyword in node.value.keywords if isinstance(node.value, ast.Call) else ():
                if keyword.arg == "name" and isinstance(keyword.value, ast.Constant):
                    return str(keyword.value.value)
            return path.stem
    return None


def forget() -> None:
    """Look again when next asked."""
    for function in (_found, module_file):
        function.cache_clear()
