"""What there is to run: methods, teachers and tasks, found by their files, described without torch."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mimbench.atomic import write_json
from mimbench.errors import UserError
from mimbench.fingerprint import package_folder, source_fingerprint
from mimbench.override import override, place
from mimbench.spec import canonical_json
from mimbench.store import read_json

if TYPE_CHECKING:
    from mimbench.contract import MethodCard, TaskCard

Kind = Literal["method", "teacher", "task"]
PACKAGES: dict[str, tuple[str, str]] = {
    "method": ("pretrain.methods", "METHOD"),
    "teacher": ("pretrain.teachers", "METHOD"),
    "task": ("downstream", "TASK"),
}
CONTRACTS = ("mimbench.catalog", "mimbench.contract", "mimbench.spec")
Changes = Sequence[tuple[str, Mapping[str, Any]]]
"""Overrides in the order in which they apply: (what the user knows their place as, {field: value})."""


class Unavailable(Exception):
    """Something that cannot be run at this scale; the message is the reason that the table shows."""


# -- discovery -----------------------------------------------------------------------------------------------


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


def method(name: str) -> MethodCard:
    return importlib.import_module(module_of("method", name)).METHOD


def teacher(name: str) -> MethodCard:
    return importlib.import_module(module_of("teacher", name)).METHOD


def task(name: str) -> TaskCard:
    return importlib.import_module(module_of("task", name)).TASK


def kind_of(name: str) -> Literal["method", "teacher"]:
    """What a pretraining's name is. Raises UserError for a name of neither."""
    if name in _found("teacher"):
        return "teacher"
    module_of("method", name)
    return "method"


def card(kind: str, name: str) -> Any:
    """The card itself; its module, and with it torch, is imported."""
    return {"method": method, "teacher": teacher, "task": task}[kind](name)


# -- descriptions that need no torch once they are cached ----------------------------------------------------


@dataclass(frozen=True)
class Description:
    """A card's facts as plain data. Task-only and method-only facts are empty on the other kind."""

    kind: str
    name: str
    title: str
    data: str
    scales: tuple[str, ...]
    paper: str = ""
    code: str | None = None
    reconstruction: bool = False
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    trains: bool = True
    golden: tuple[str, ...] = ()
    points: int = 0
    protocol: str = ""
    takes: str = "encoder"
    metrics: tuple[Mapping[str, Any], ...] = ()
    transfer: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Resolved:
    """A card's recipe at one scale, overrides applied, with what the plan must know of it.

    Attributes:
        values, sources: the recipe's fields, and where each value comes from.
        images: pictures seen in training. flops: of the whole run.
        needs: role to the teacher or method that must be trained before.
        reconstruction: whether the recipe is rebuilt without the authors' code.
    """

    about: Description
    values: Mapping[str, Any]
    sources: Mapping[str, str]
    images: int
    flops: float
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reconstruction: bool = False


class Catalog:
    """Descriptions and resolved recipes, cached as JSON under the fingerprint of the code they come from.

    Args:
        cache: the cache's folder; None for no cache.
        on_miss: called once before the first card is imported (which takes seconds), so that workers can be
            started meanwhile.
    """

    def __init__(self, cache: Path | None, on_miss: Callable[[], None] | None = None) -> None:
        self.cache, self.on_miss = cache, on_miss
        self._described: dict[tuple[str, str], Description] = {}

    def describe(self, kind: Kind, name: str) -> Description:
        """A card's facts. Raises UserError for an unknown name."""
        if (kind, name) not in self._described:
            values = self._cached(kind, name, {}, lambda: asdict(_describe(kind, card(kind, name))))
            self._described[kind, name] = _description(values)
        return self._described[kind, name]

    def all(self, kind: Kind) -> list[Description]:
        return [self.describe(kind, name) for name in names(kind)]

    def resolve(
        self,
        kind: Kind,
        name: str,
        scale: str,
        changes: Changes = (),
        *,
        data_size: int,
        encoder: tuple[str, int] | None = None,
        cited: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Resolved:
        """A recipe with overrides applied.

        Args:
            kind, name, scale: which recipe.
            changes: overrides of a table row and of the user.
            data_size: training pictures.
            encoder: tasks only: the encoder's (arch, patch_size).
            cited: tasks only: the method's own {source: {field: value}}, applied before `changes`.

        Raises:
            UserError: an unknown name or field, or a value that the recipe does not accept.
            Unavailable: there is no recipe for this scale.
        """
        about = self.describe(kind, name)
        if scale not in about.scales:
            raise Unavailable(f"{about.title} has no recipe for the scale {scale!r}")
        for where, change in changes:
            for field, value in change.items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise UserError(place(where, field), value, remedy="Give a finite number.")
        arguments = {
            "scale": scale,
            "changes": [[where, dict(change)] for where, change in changes],
            "data_size": data_size,
            "encoder": list(encoder or ()),
            "cited": {source: dict(change) for source, change in (cited or {}).items()},
        }
        found = self._cached(kind, name, arguments, lambda: _resolve(kind, name, arguments))
        return Resolved(about=about, **found)

    def _cached(self, kind: str, name: str, arguments: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        if self.cache is None:
            return make()
        source = source_fingerprint((module_of(kind, name), *CONTRACTS))
        digest = hashlib.sha256(canonical_json([source, arguments]).encode()).hexdigest()[:16]
        path = self.cache / f"{kind}-{name}-{digest}.json"
        value = read_json(path)
        if value is None:
            if self.on_miss:
                self.on_miss()
                self.on_miss = None
            value = make()
            write_json(path, value)
            value = read_json(path)  # what a later, cached call sees: lists where there were tuples
        return value


def _describe(kind: str, card: Any) -> Description:
    common = {
        "kind": kind,
        "name": card.name,
        "title": card.title,
        "data": card.data,
        "scales": tuple(card.recipes()),
    }
    if kind == "task":
        metrics = tuple(asdict(metric) for metric in card.metrics)
        return Description(**common, protocol=card.protocol, metrics=metrics, takes=card.takes)
    released = next(iter(card.recipes().values()))
    return Description(
        **common,
        paper=card.paper,
        code=card.code,
        reconstruction=card.rebuilt(released),
        needs=dict(card.needed(released)),
        trains=card.trains,
        golden=card.golden,
        points=card.points,
        transfer={task: dict(scales) for task, scales in card.transfer().items()},
    )


def _description(values: Mapping[str, Any]) -> Description:
    tuples = {name: tuple(values[name]) for name in ("scales", "metrics", "golden")}
    return Description(**{**values, **tuples})


def _resolve(kind: str, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    found = card(kind, name)
    recipe = found.recipes()[arguments["scale"]]
    values, sources = recipe.values(), dict(recipe.sources)
    for source, change in arguments["cited"].items():
        change = {
            field: list(value) if isinstance(value, tuple) else value for field, value in change.items()
        }
        values = override(values, change, where=f"{source}:")
        sources.update(dict.fromkeys(change, source))
    for where, change in arguments["changes"]:
        values = override(values, change, where=where)
        sources.update(dict.fromkeys(change, where))
    changed = {field: where for where, change in arguments["changes"] for field in change}
    try:
        recipe = type(recipe).from_values(values, sources)
    except UserError as error:
        if error.field not in changed:
            raise
        name = place(changed[error.field], error.field)
        raise UserError(name, error.value, allowed=error.allowed, remedy=error.remedy) from None
    size, needs, rebuilt = arguments["data_size"], {}, False
    if kind == "task":
        arch, patch_size = arguments["encoder"]
        images = int(found.images(values, size))
        flops = images * float(found.flops(values, arch, patch_size))
    else:
        needs, rebuilt = dict(found.needed(recipe)), found.rebuilt(recipe)
        images = round(recipe.epochs * size) if found.trains else 0
        flops = images * float(recipe.step_flops()) if images else 0.0
    return {
        "values": recipe.values(),
        "sources": sources,
        "images": images,
        "flops": flops,
        "needs": needs,
        "reconstruction": rebuilt,
    }
