"""Fingerprints of the source that determines a run's numbers."""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from mimbench import discovery
from mimbench.atomic import digest
from mimbench.discovery import module_file

PROJECT_PACKAGES = ("mimbench", "pretrain", "downstream")

NUMERICS = ("arch", "contract", "data", "encoder", "foreign", "ops", "recipe", "train", "vit")
"""What of `mimbench` computes numbers. The rest plans, starts, stores and shows runs."""

PLAIN_DATA = ("recipes", "transfer")
"""A card's functions whose result is in the run's key already: a new scale there makes no older run stale."""


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
    """Whether a module of ours computes no number."""
    top, _, rest = module.partition(".")
    return top == "mimbench" and rest.split(".")[0] not in NUMERICS


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
    discovery.forget()
    for function in (_parsed, source_fingerprint):
        function.cache_clear()


PRETRAINING, ADOPTION = "mimbench.train.pretraining", "mimbench.train.adopt"


def run_fingerprint(stage: str, name: str, *, adopted: bool = False) -> str:
    """The fingerprint of the code that computes the runs of a stage of `name`.

    Args:
        adopted: the run converts a checkpoint in the place of training.
    """
    kind = {"pretrain": "method", "downstream": "task"}.get(stage, stage)
    training = () if kind == "task" else (ADOPTION,) if adopted else (PRETRAINING,)
    return source_fingerprint((discovery.module_of(kind, name), *training), plain_data=False)
