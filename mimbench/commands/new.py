"""`mimbench new`: writes a method or a task that runs as it is, and a table for it."""

from __future__ import annotations

import ast
import keyword
import re
import shlex
from pathlib import Path
from string import Template
from typing import Literal

from rich.console import Console

from mimbench import discovery, paths
from mimbench.atomic import write_text
from mimbench.errors import UserError
from mimbench.table.spec import list_tables

NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
MAX_NAME = 24  # characters: the generated lines stay within 110
TEMPLATES = Path(__file__).resolve().parent / "templates"
FOLDERS = {"method": "pretrain/methods", "task": "downstream"}  # of the checkout


def new(kind: Literal["method", "task"], name: str, folder: Path | None, console: Console) -> int:
    """Write a method or a task, and its table; say what to run next.

    Args:
        folder: where; default: the checkout that mimbench runs from, if that is the current folder or one
            above it, else NAME-plugin in the current folder.

    Raises:
        UserError: the name is not valid or is taken, or a file exists already.
    """
    check_name(kind, name)
    checkout = paths.checkout()
    if folder is None:
        inside = checkout is not None and Path.cwd().resolve().is_relative_to(checkout)
        folder = checkout if checkout and inside else Path(f"{name}-plugin")
    in_checkout = checkout is not None and folder.resolve() == checkout
    module = name.replace("-", "_")
    source = folder / (FOLDERS[kind] if in_checkout else f"{kind}s") / f"{module}.py"
    table = folder / "tables" / name / "main.toml"
    texts = {source: rendered(f"{kind}.py", name), table: rendered(f"{kind}.toml", name)}
    check_class(name, texts[source])
    for file in texts:
        if file.exists():
            raise UserError("NAME", name, remedy=f"{file} is there already; it stays as it is.")
    for file, text in texts.items():
        write_text(file, text)
    lines = [*map(str, texts), "", *next_steps(kind, name, None if in_checkout else folder)]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    return 0


def check_name(kind: str, name: str) -> None:
    """Raises UserError for a name that is not valid or is taken."""
    if not NAME.fullmatch(name) or len(name) > MAX_NAME:
        remedy = (
            f"Use small letters and digits, with - or _ between them, a letter first; at most {MAX_NAME}."
        )
        suggested = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")[:MAX_NAME].rstrip("-")
        raise UserError("NAME", name, remedy=f"{remedy} For instance: {suggested or f'my-{kind}'}.")
    if keyword.iskeyword(name):
        raise UserError("NAME", name, remedy="It is a keyword of Python.")
    module = name.replace("-", "_")
    kinds: tuple[discovery.Kind, ...] = ("method", "teacher", "task")
    for known_kind in kinds:
        for known in discovery.names(known_kind):
            if known.replace("-", "_") == module:
                raise UserError("NAME", name, remedy=f"There is a {known_kind} {known} already.")
    if (name, "main") in list_tables():
        raise UserError("NAME", name, remedy=f"There is a table {name} already.")


def check_class(name: str, source: str) -> None:
    """Raises UserError if the class of that name would hide an import of the file."""
    tree = ast.parse(source)
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    imported = {alias.asname or alias.name for node in imports for alias in node.names}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in imported:
            raise UserError("NAME", name, remedy=f"Its class would be {node.name}, which the file imports.")


def rendered(template: str, name: str) -> str:
    """The text of a template, filled in for a name."""
    words = re.split("[-_]", name)
    values = {
        "name": name,
        "module": "_".join(words),
        "title": name,
        "cls": "".join(word.capitalize() for word in words),
    }
    return Template((TEMPLATES / f"{template}.template").read_text(encoding="utf-8")).substitute(values)


def next_steps(kind: str, name: str, plugin: Path | None) -> list[str]:
    """The commands that come next; `plugin` is the folder to include, None in the checkout."""
    if plugin is None:
        commands = {
            f'make test ARGS="tests/conformance -k {name}"': "what every method and task must do",
            f"mimbench reproduce-table {name} --scale smoke": "the table, in seconds",
            f"python tests/golden/make_curves.py {name}": "its golden curve, for later changes",
        }
    else:
        option = f"--include {shlex.quote(str(plugin))}"
        commands = {
            f"mimbench plan {name} --scale smoke {option}": "which runs the table needs",
            f"mimbench reproduce-table {name} --scale smoke {option}": "the table, in seconds",
            f"mimbench reproduce-table {name} {option}": "the table at scale toy, in minutes",
        }
    width = max(map(len, commands))
    return ["Next:", *(f"  {command:{width}}  # {what}" for command, what in commands.items())]
