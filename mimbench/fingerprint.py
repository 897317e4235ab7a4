"""Fingerprints: of the source that determines a run's numbers, and of the data that it sees."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mimbench.errors import UserError

PROJECT_PACKAGES = ("mimbench", "pretrain", "downstream")

INFRASTRUCTURE = (
    # They plan, start, store and show runs and compute no number, so an edit leaves every number as it was.
    "mimbench",  # the package's own __init__: holds the version
    "mimbench.atomic",
    "mimbench.catalog",
    "mimbench.cli",
    "mimbench.data.roles",
    "mimbench.doctor",
    "mimbench.errors",
    "mimbench.execute",
    "mimbench.fingerprint",
    "mimbench.frame",
    "mimbench.garbage",
    "mimbench.overview",
    "mimbench.paths",
    "mimbench.plan",
    "mimbench.progress",
    "mimbench.render",
    "mimbench.reproduce",
    "mimbench.request",
    "mimbench.spec",
    "mimbench.store",
    "mimbench.table",
    "mimbench.worker",
)

PLAIN_DATA = ("recipes", "transfer")
"""A card's functions whose result is in the run's key already: a new scale there makes no older run stale."""


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


class _Numerics(ast.NodeTransformer):
    """Removes what cannot change a number: docstrings, imports for type checkers, the card's plain data."""

    def __init__(self, plain_data: bool) -> None:
        self.plain_data = plain_data

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.AST]:
        self.generic_visit(node)
        name = node.test.attr if isinstance(node.test, ast.Attribute) else getattr(node.test, "id", None)
        return list(node.orelse) if name == "TYPE_CHECKING" else node

    def visit_Module(self, node: ast.Module) -> ast.AST:
        if not self.plain_data:
            node.body = [item for item in node.body if getattr(item, "name", None) not in PLAIN_DATA]
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if text else self.generic_visit(node)


@functools.cache
def _parsed(module: str, path: Path, plain_data: bool) -> tuple[str, frozenset[str]]:
    """A file's digest and what it imports; read once a process, as Python itself does."""
    tree = _Numerics(plain_data).visit(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))
    return hashlib.sha256(_dump(tree).encode()).hexdigest(), frozenset(_imports(module, path, tree))


def _dump(tree: ast.Module) -> str:
    """`ast.dump` as Python 3.10 and 3.11 write it: 3.12 added a field, 3.13 leaves out empty lists."""
    everything = {"show_empty": True} if sys.version_info >= (3, 13) else {}
    return ast.dump(tree, **everything).replace(", type_params=[]", "")


def _imports(module: str, path: Path, tree: ast.Module) -> Iterator[str]:
    """Names of everything imported anywhere in a file; `from a import b` gives both `a` and `a.b`."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (above, node.module)))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _infrastructure(module: str) -> bool:
    return module in INFRASTRUCTURE or module.startswith(("mimbench.table.", "mimbench.render."))


def closure(roots: Iterable[str], *, plain_data: bool = True) -> dict[str, str]:
    """Module name to digest, for `roots` and every project module that they import, directly or not.

    Infrastructure is left out unless it is itself a root, and so is whatever only infrastructure imports.
    """
    digests: dict[str, str] = {}
    todo = [(root, True) for root in roots]
    while todo:
        module, is_root = todo.pop()
        if module.split(".")[0] not in PROJECT_PACKAGES or module in digests:
            continue
        if _infrastructure(module) and not is_root:
            continue
        path = module_file(module)
        if path is None:  # `from module import function` names no module
            continue
        digests[module], imported = _parsed(module, path, plain_data)
        parts = module.split(".")  # importing a.b.c runs a/__init__ and a/b/__init__ too
        todo += [(".".join(parts[:n]), False) for n in range(1, len(parts))]
        todo += [(name, False) for name in imported]
    return digests


@functools.cache
def source_fingerprint(modules: tuple[str, ...], *, plain_data: bool = True) -> str:
    """The fingerprint of the code behind `modules`: comments, docstrings and layout do not count.

    The first answer holds for the process, whose imported code does not change either; `forget` drops it.

    Args:
        modules: the roots, by their import names.
        plain_data: whether `recipes` and `transfer` of a card count. They do for what the catalog caches;
            they do not for a run, whose key holds what they returned.
    """
    digests = closure(modules, plain_data=plain_data)
    return digest("\n".join(f"{name} {digest}" for name, digest in sorted(digests.items())))


def forget() -> None:
    """Read the source again when next asked."""
    for function in (_parsed, module_file, source_fingerprint):
        function.cache_clear()


PRETRAINING, ADOPTION = "mimbench.train.pretraining", "mimbench.train.adopt"


def run_fingerprint(stage: str, name: str, *, adopted: bool = False) -> str:
    """The fingerprint of the code that computes the runs of a stage of `name`.

    Args:
        adopted: the run converts a checkpoint in the place of training.
    """
    from mimbench import catalog

    kind = {"pretrain": "method", "downstream": "task"}.get(stage, stage)
    training = () if kind == "task" else (ADOPTION,) if adopted else (PRETRAINING,)
    return source_fingerprint((catalog.module_of(kind, name), *training), plain_data=False)


def data_fingerprint(path: Path, *, field: str = "--data") -> str:
    """The fingerprint of a dataset: its files' relative paths and sizes, or what its `toy.json` says.

    Raises:
        UserError: the folder is missing, unreadable or empty; `field` names the role.
    """
    remedy = "Give the dataset's root folder."
    if not path.is_dir():
        raise UserError(field, str(path), remedy=f"There is no such folder. {remedy}")
    toy = path / "toy.json"
    if toy.is_file():
        try:
            return str(json.loads(toy.read_text(encoding="utf-8"))["fingerprint"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                field, str(toy), remedy="The file is damaged: delete the folder, it is made again."
            ) from error
    total = hashlib.sha256()
    count = 0
    for relative, size in sorted(_files(path, field)):
        total.update(f"{relative}\0{size}\n".encode("utf-8", "surrogateescape"))
        count += 1
    if count == 0:
        raise UserError(field, str(path), remedy=f"The folder is empty. {remedy}")
    return total.hexdigest()[:16]


def file_fingerprint(path: Path, *, field: str) -> str:
    """The fingerprint of one file's content."""
    try:
        with open(path, "rb") as file:
            total = hashlib.sha256()
            while block := file.read(1 << 20):
                total.update(block)
    except OSError as error:
        raise UserError(field, str(path), remedy=f"It cannot be read ({error.strerror}).") from error
    return total.hexdigest()[:16]


def _files(root: Path, field: str) -> Iterator[tuple[str, int]]:
    def unreadable(error: OSError) -> None:
        raise UserError(
            field, error.filename, remedy=f"The folder cannot be read ({error.strerror})."
        ) from error

    onerror: Callable[[OSError], None] = unreadable
    for folder, _, names in os.walk(root, followlinks=True, onerror=onerror):
        for name in names:
            file = os.path.join(folder, name)
            try:
                size = os.stat(file).st_size
            except OSError as error:
                remedy = f"It cannot be read ({error.strerror}): restore what it links to, or remove it."
                raise UserError(field, file, remedy=remedy) from error
            yield os.path.relpath(file, root).replace(os.sep, "/"), size


def digest(text: str) -> str:
    """What a fingerprint is of a text: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
