"""One module's source without what cannot change a number, and with its imports of ours set apart.

"Ours" are the modules of PROJECT_PACKAGES and of plug-ins.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mimbench import paths, plugin
from mimbench.atomic import digest, read_json, write_json
from mimbench.discovery import module_file
from mimbench.store.spec import canonical_json

PROJECT_PACKAGES = ("mimbench", "pretrain", "downstream")

PLAIN_DATA = ("recipes", "transfer")
"""Functions of a card that do not count: a run's key holds their result. A new scale makes no run stale."""

PLACE = re.compile(r"id='⟦(\d+)⟧'")
IMPORTS = re.compile(rf"Expr\(value=Name\({PLACE.pattern}, ctx=Load\(\)\)\)")  # as `_place` makes


@dataclass(frozen=True)
class Import:
    """One name that an import of ours binds. `name` is empty if the module itself is imported."""

    module: str
    name: str
    bound: str


@dataclass(frozen=True)
class Source:
    """A module's text without what cannot change a number, with numbered places instead of imports of ours.

    Attributes:
        text: the dump of its syntax tree; place `n` is written `⟦n⟧`.
        places: what each place replaces: a group of imports, or a use of a name bound to a module of ours
            (the module's name).
        imported: every module and package of ours that its import statements name.
        exports: names that its top-level imports of ours bind; other modules may import them from here.
        is_empty: whether it has nothing but imports of ours.
    """

    text: str
    places: tuple[tuple[Import, ...] | str, ...]
    imported: frozenset[str]
    exports: Mapping[str, Import]
    is_empty: bool

    @functools.cached_property
    def body(self) -> str:
        """The text without its imports of ours."""
        return PLACE.sub("", self.text)

    def filled(self, digests: Mapping[tuple[str, str], str]) -> str:
        """The text with the digest of each imported module at its place."""

        def fill(match: re.Match[str]) -> str:
            place = self.places[int(match[1])]
            if isinstance(place, str):
                return f"module {digests[place, '']}"
            return repr(sorted((digests[each.module, each.name], each.name, each.bound) for each in place))

        return PLACE.sub(fill, self.text)


class _Reader(ast.NodeTransformer):
    """Removes docstrings, imports for type checkers and the card's plain data; replaces imports of ours."""

    def __init__(self, package: str, plain_data: bool) -> None:
        self.package, self.plain_data = package, plain_data
        self.places: list[tuple[Import, ...] | str] = []
        self.imported: set[str] = set()
        # Whether there is a module of that name: `from a import b` may mean a.b.
        self.asked: dict[str, bool] = {}
        # Local name to the module of ours that it is bound to; None if it is bound to several.
        self.modules: dict[str, str | None] = {}

    def visit_Module(self, node: ast.Module) -> ast.AST:
        if not self.plain_data:
            node.body = [item for item in node.body if getattr(item, "name", None) not in PLAIN_DATA]
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.AST]:
        name = node.test.attr if isinstance(node.test, ast.Attribute) else getattr(node.test, "id", None)
        if name == "TYPE_CHECKING":
            return [found for item in node.orelse if (found := self.visit(item))]
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if text else self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """As the base class, but merges neighbouring imports of ours: their order does not matter."""
        super().generic_visit(node)
        for name, value in ast.iter_fields(node):
            if isinstance(value, list) and any(
                isinstance(item, (ast.Import, ast.ImportFrom)) for item in value
            ):
                setattr(node, name, self._grouped(value))
        return node

    def _grouped(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        result: list[ast.stmt] = []
        group: list[Import] = []

        def close() -> None:
            if group:
                result.append(self._place(tuple(group)))
                group.clear()

        for statement in statements:
            if not isinstance(statement, (ast.Import, ast.ImportFrom)):
                close()
                result.append(statement)
            elif ours := self._ours(statement):
                group += ours
            else:
                result.append(statement)
        close()
        return result

    def _ours(self, node: ast.Import | ast.ImportFrom) -> list[Import]:
        """The names of ours that an import statement binds; none for another project's module."""
        found: list[Import] = []
        if isinstance(node, ast.Import):
            for alias in node.names:
                module = self._named(alias.name)
                if is_ours(module):
                    self.imported.add(module)
                    found.append(Import(module, "", alias.asname or alias.name))
            return found
        parts = self.package.split(".")
        above = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
        base = ".".join(filter(None, (above, node.module)))
        base = base if node.level else self._named(base)
        if not is_ours(base):
            return []
        self.imported.add(base)
        for alias in node.names:
            bound, submodule = alias.asname or alias.name, f"{base}.{alias.name}"
            self.asked[submodule] = module_file(submodule) is not None
            if self.asked[submodule]:
                self.imported.add(submodule)
                self.modules[bound] = submodule if self.modules.get(bound, submodule) == submodule else None
                found.append(Import(submodule, "", bound))
            else:
                found.append(Import(base, alias.name, bound))
        return found

    def _named(self, module: str) -> str:
        """The module name of an absolute import; a plug-in's own file has its name in the plug-in."""
        return module if is_ours(module) else plugin.inner_name(self.package, module)

    def _place(self, what: tuple[Import, ...] | str) -> ast.stmt:
        self.places.append(what)
        return ast.Expr(ast.Name(f"⟦{len(self.places) - 1}⟧", ast.Load()))

    def name_modules(self, tree: ast.Module) -> None:
        """Replace names bound to modules of ours by places: the local name of a module does not matter."""
        plain = {name: module for name, module in self.modules.items() if module is not None}

        def nameless(each: Import) -> Import:
            return replace(each, bound="") if not each.name and each.bound in plain else each

        groups = [place if isinstance(place, str) else tuple(map(nameless, place)) for place in self.places]
        self.places = [*groups]
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id in plain:
                self.places.append(plain[node.id])
                node.id = f"⟦{len(self.places) - 1}⟧"


def is_ours(module: str) -> bool:
    return module.split(".")[0] in PROJECT_PACKAGES or plugin.of(module) is not None


@functools.cache
def read(module: str, plain_data: bool) -> Source | None:
    """A module's source, read once per process; None if there is no such file."""
    path = module_file(module)
    if path is None:
        return None
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    text = path.read_text(encoding="utf-8")
    cache = paths.cache() if plugin.of(module) is None else None
    place = (
        cache / "sources" / f"{digest(repr((_own_text(), package, text, plain_data)))}.json"
        if cache
        else None
    )
    if place and (known := _recalled(place)):
        return known
    source, asked = _parsed(text, path, package, plain_data)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, no more
        if place:
            value = [asdict(source) | {"imported": sorted(source.imported)}, asked]
            write_json(place, {"value": value, "digest": digest(canonical_json([place.name, value]))})
    return source


def _recalled(place: Path) -> Source | None:
    """What an earlier process read from the same text, if the same modules exist today."""
    with contextlib.suppress(OSError):
        found = read_json(place)
        value = found.get("value") if isinstance(found, dict) else None
        if value and found.get("digest") == digest(canonical_json([place.name, value])):
            values, asked = found["value"]
            if all((module_file(name) is not None) == there for name, there in asked.items()):
                places = (
                    each if isinstance(each, str) else tuple(Import(**one) for one in each)
                    for each in values["places"]
                )
                exports = {name: Import(**one) for name, one in values["exports"].items()}
                imported = frozenset(values["imported"])
                return Source(values["text"], tuple(places), imported, exports, values["is_empty"])
    return None


@functools.cache
def _own_text() -> str:
    """The text of this file. It is a part of the cache's key: an edit of this file drops cached sources."""
    return Path(__file__).read_text(encoding="utf-8")


def _parsed(text: str, path: Path, package: str, plain_data: bool) -> tuple[Source, dict[str, bool]]:
    """A file's source, and for each name that it imports from a package, whether that is a module."""
    reader = _Reader(package, plain_data)
    tree = reader.visit(ast.parse(text, filename=str(path)))
    statements = (IMPORTS.fullmatch(ast.dump(item)) for item in tree.body if isinstance(item, ast.Expr))
    groups = [reader.places[int(found[1])] for found in statements if found]
    exports = {
        each.bound: each for place in groups for each in place if isinstance(each, Import) and each.name
    }
    reader.name_modules(tree)
    is_empty = len(groups) == len(tree.body)
    source = Source(dump(tree), tuple(reader.places), frozenset(reader.imported), exports, is_empty)
    return source, reader.asked


def dump(tree: ast.Module) -> str:
    """`ast.dump` as Python 3.10 and 3.11 write it: 3.12 added a field, 3.13 leaves out empty lists."""
    everything = {"show_empty": True} if sys.version_info >= (3, 13) else {}
    return ast.dump(tree, **everything).replace(", type_params=[]", "")
