"""Finds all methods, teachers and tasks by their files, without importing them."""

from __future__ import annotations

import ast
import functools
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mimbench import plugin
from mimbench.errors import UserError
from mimbench.plugin import Plugin, package_folder, plugins

Kind = Literal["method", "teacher", "task"]
PACKAGES: dict[Kind, tuple[str, str]] = {
    "method": ("pretrain.methods", "METHOD"),
    "teacher": ("pretrain.teachers", "METHOD"),
    "task": ("downstream", "TASK"),
}
STAGES: dict[str, Kind] = {"pretrain": "method", "teacher": "teacher", "downstream": "task"}
FOLDERS: dict[Kind, str] = {"method": "methods", "teacher": "teachers", "task": "tasks"}  # of a plug-in


@dataclass(frozen=True)
class Found:
    """Where a card is: its module and file, and the plug-in that these belong to, if any."""

    module: str
    file: Path
    plugin: Plugin | None = None


def module_file(module: str) -> Path | None:
    """The source file of a module of ours or of a plug-in (a package's `__init__`); None if there is none."""
    return _module_file(module, plugin.of(module))


@functools.cache
def _module_file(module: str, owner: Plugin | None) -> Path | None:
    if owner and owner.is_included:
        folder, rest = owner.path, module.removeprefix(owner.package).split(".")[1:]
        if folder.is_file():
            return None if rest else folder
    else:
        top, *rest = module.split(".")
        found = package_folder(top)
        if found is None:
            return None
        folder = found
    base = folder.joinpath(*rest)
    files = [base / "__init__.py", *([base.with_name(f"{base.name}.py")] if rest else [])]
    return next((path for path in files if path.is_file()), None)


def names(kind: Kind) -> list[str]:
    """The sorted names of all methods, teachers or tasks."""
    return sorted(_found(kind))


def module_of(kind: str, name: str) -> str:
    """The module that holds a card.

    Raises:
        UserError: no such name.
    """
    found = _found(kind)
    if name not in found:
        remedy = f"`mimbench {kind}s` describes them; --include PATH adds your own."
        raise UserError(kind.upper(), name, allowed=sorted(found), remedy=remedy)
    return found[name].module


def kind_of(name: str) -> Literal["method", "teacher"]:
    """Whether a name is a teacher's or a method's. Raises UserError if it is neither."""
    if name in _found("teacher"):
        return "teacher"
    module_of("method", name)
    return "method"


def plugin_of(kind: str, name: str) -> Plugin | None:
    """The plug-in that a card comes from; None for one of ours."""
    return _found(kind)[name].plugin if name in _found(kind) else None


def sound_plugins() -> list[Plugin]:
    """The plug-ins whose cards could be read."""
    return [each for each in plugins() if each in _all(plugins())[1]]


def _found(kind: str) -> dict[str, Found]:
    return _all(plugins())[0][kind]


@functools.cache
def _all(places: tuple[Plugin, ...]) -> tuple[dict[str, dict[str, Found]], set[Plugin]]:
    """Kind to card name to its place, in the project and in these plug-ins; and the plug-ins without errors.

    Raises:
        UserError: an included plug-in has a file that is not Python or has no card, or a card whose name is
            taken.
    """
    found: dict[str, dict[str, Found]] = {kind: {} for kind in PACKAGES}
    for kind, (package, variable) in PACKAGES.items():
        for file, name in _cards(module_folder(package), variable):
            found[kind][name] = Found(f"{package}.{file.stem}", file)
    sound = set()
    for each in places:
        try:
            cards = list(_cards_of(each))
            known = {name: card for named in found.values() for name, card in named.items()}
            for _, name, card in cards:
                if name in known:
                    remedy = f"{known[name].file} has that name. Give the card in {card.file} another name."
                    raise UserError("name", name, remedy=remedy)
                known[name] = card
        except UserError as error:
            plugin.leave_out(each, error)
        else:
            sound.add(each)
            for kind, name, card in cards:
                found[kind][name] = card
    return found, sound


def module_folder(package: str) -> Path | None:
    """The folder of a package of ours; None if there is none."""
    top, *rest = package.split(".")
    folder = package_folder(top)
    return folder.joinpath(*rest) if folder else None


def _cards_of(each: Plugin) -> Iterator[tuple[Kind, str, Found]]:
    """(kind, name, place) of every card of a plug-in.

    Raises:
        UserError: a file has no card. A helper module's name must begin with `_`, or it must lie elsewhere.
    """
    if each.path.is_file():
        cards = _assigned(each.path)
        for variable, call in cards.items():
            kind: Kind = "task" if variable == "TASK" else _stage(call)
            yield kind, _name(call, each.path), Found(each.package, each.path, each)
        if not cards:
            remedy = "It has no card: end it with METHOD = MethodCard(...) or TASK = TaskCard(...)."
            raise UserError(str(each.path), remedy=remedy)
        return
    for kind, folder in FOLDERS.items():
        variable, carded = PACKAGES[kind][1], set()
        for file, name in _cards(each.path / folder, variable):
            carded.add(file)
            yield kind, name, Found(f"{each.package}.{folder}.{file.stem}", file, each)
        for file in set((each.path / folder).glob("[!_]*.py")) - carded:
            remedy = f"It has no card: end it with {variable} = ...; put a helper module beside {folder}/."
            raise UserError(str(file), remedy=remedy)


def _cards(folder: Path | None, variable: str) -> Iterator[tuple[Path, str]]:
    """(file, card's name) of a folder's modules that have a card."""
    if folder is None or not folder.is_dir():
        return
    for info in pkgutil.iter_modules([str(folder)]):
        path = folder / f"{info.name}.py"
        call = _assigned(path).get(variable) if path.is_file() else None
        if call is not None:
            yield path, _name(call, path)


def _assigned(path: Path) -> dict[str, ast.expr]:
    """What a file assigns to METHOD and to TASK, from its syntax tree.

    Raises:
        UserError: it is not Python source.
    """
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}", remedy=f"{error.msg}. Correct it.") from error
    except ValueError as error:  # a null byte
        raise UserError(str(path), remedy=f"It is not Python source: {error}.") from error
    found = {}
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            found.update({name: node.value for name in names if name in ("METHOD", "TASK")})
    return found


def _name(call: ast.expr, path: Path) -> str:
    """A card's `name=`; the file's name without .py if that is not a literal."""
    return _argument(call, "name") or path.stem


def _stage(call: ast.expr) -> Kind:
    """Whether the METHOD of a one-file plug-in is a teacher or a method."""
    return "teacher" if _argument(call, "stage") == "teacher" else "method"


def _argument(call: ast.expr, name: str) -> str | None:
    for keyword in call.keywords if isinstance(call, ast.Call) else ():
        if keyword.arg == name and isinstance(keyword.value, ast.Constant):
            return str(keyword.value.value)
    return None


def forget() -> None:
    """Forget what was found: the next call looks again."""
    plugin.forget()
    for function in (_all, _module_file):
        function.cache_clear()
