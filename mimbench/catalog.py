"""Facts about methods, teachers and tasks, and their resolved recipes; cached, so that most need no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimbench import plugin
from mimbench.arch import size_of
from mimbench.atomic import abandoned, digest, read_json, write_json
from mimbench.discovery import Kind, kind_of, module_of, names, plugin_of
from mimbench.errors import Unavailable, UserError
from mimbench.override import Changed, check_epochs, check_patches, override, place
from mimbench.store.fingerprint import source_fingerprint
from mimbench.store.spec import canonical_json

if TYPE_CHECKING:
    from mimbench.contract import MethodCard, TaskCard
    from mimbench.recipe import Cited, PretrainRecipe

CONTRACTS = ("mimbench.catalog", "mimbench.contract", "mimbench.store.spec")
Changes = Sequence[tuple[str, Mapping[str, Any]]]
"""Overrides in the order in which they apply: (where the user wrote them, {field: value})."""


def method(name: str) -> MethodCard:
    return importlib.import_module(module_of("method", name)).METHOD


def teacher(name: str) -> MethodCard:
    return importlib.import_module(module_of("teacher", name)).METHOD


def task(name: str) -> TaskCard:
    return importlib.import_module(module_of("task", name)).TASK


def card(kind: str, name: str) -> Any:
    """The card itself. Imports its module, and with it torch."""
    return {"method": method, "teacher": teacher, "task": task}[kind](name)


def checked_card(kind: str, name: str) -> Any:
    """The card. Raises UserError if it is no card, or if its name is not the one that discovery read."""
    from mimbench.contract import MethodCard, TaskCard

    found, wanted = card(kind, name), TaskCard if kind == "task" else MethodCard
    if not isinstance(found, wanted):
        variable = "TASK" if kind == "task" else "METHOD"
        raise UserError(
            f"{module_of(kind, name)}.{variable}", found, remedy=f"It must be a {wanted.__name__}."
        )
    if found.name != name:
        remedy = f"Write the name as a literal text: {name!r} was read instead."
        raise UserError(f"{module_of(kind, name)}: name", found.name, remedy=remedy)
    return found


@dataclass(frozen=True)
class Description:
    """A card's facts as plain data. Task-only and method-only facts are empty on the other kind.

    Attributes:
        recipes: scale to the fields of the card's own recipe, before a table or a user changes any.
    """

    kind: str
    name: str
    title: str
    data: str
    scales: tuple[str, ...]
    paper: str = ""
    code: str | None = None
    provenance: str = ""
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    trains: bool = True
    golden: tuple[str, ...] = ()
    points: int = 0
    protocol: str = ""
    takes: str = "encoder"
    metrics: tuple[Mapping[str, Any], ...] = ()
    transfer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    recipes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def percentages(self) -> list[str]:
        """The names of a task's metrics that lie between 0 and 100."""
        return [metric["name"] for metric in self.metrics if metric["unit"] == "%"]

    def in_order(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """A run's metrics in the order of the task's card, the headline first; others after them."""
        names = [metric["name"] for metric in self.metrics if metric["name"] in numbers]
        return {name: numbers[name] for name in dict.fromkeys((*names, *numbers))}


@dataclass(frozen=True)
class Resolved:
    """A card's recipe at one scale with overrides applied, and what the planner must know about it.

    Attributes:
        values, sources: the recipe's fields, and where each value comes from.
        images: seen in training. flops: of the whole run.
        needs: role to the teacher or method that must be trained first.
        provenance: where a method's code comes from, see `MethodCard`; empty for a task.
    """

    about: Description
    values: Mapping[str, Any]
    sources: Mapping[str, str]
    images: int
    flops: float
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    provenance: str = ""


class Catalog:
    """Descriptions and resolved recipes, cached as JSON under the fingerprint of the code they come from.

    Args:
        cache: the cache's folder; None for no cache.
        on_miss: called once before the first card is imported, which takes seconds.
    """

    def __init__(self, cache: Path | None, on_miss: Callable[[], None] | None = None) -> None:
        self.cache, self.on_miss = cache, on_miss
        self._described: dict[tuple[str, str], Description] = {}

    def describe(self, kind: Kind, name: str) -> Description:
        """A card's facts. Raises UserError for an unknown name."""
        if (kind, name) not in self._described:
            values = self._cached(kind, name, {}, lambda: asdict(_describe(kind, checked_card(kind, name))))
            self._described[kind, name] = _description(values)
        return self._described[kind, name]

    def all(self, kind: Kind) -> list[Description]:
        """Every card's facts. Leaves out, with a warning, cards of installed plug-ins that do not import."""
        found = []
        for name in names(kind):
            try:
                found.append(self.describe(kind, name))
            except UserError as error:
                plugin.leave_out(plugin_of(kind, name), error)
        return found

    def resolve(
        self,
        kind: Kind,
        name: str,
        scale: str,
        changes: Changes = (),
        *,
        data_size: int,
        encoder: tuple[str, int] | None = None,
        cited: Sequence[Cited] = (),
    ) -> Resolved:
        """A recipe with overrides applied.

        Args:
            kind, name, scale: which recipe.
            changes: overrides of a table row and of the user.
            data_size: training images.
            encoder: tasks only: the encoder's (arch, patch_size).
            cited: tasks only: the method's own values, applied before `changes`.

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
                    name = place(where, field, about.title)
                    raise UserError(name, value, remedy="Give a finite number.")
        arguments = {
            "scale": scale,
            "changes": [[where, dict(change)] for where, change in changes],
            "data_size": data_size,
            "encoder": list(encoder or ()),
            "cited": [[source, dict(change)] for source, change in cited],
        }
        needs = [] if kind == "task" else [*names("teacher"), *about.needs.values()]
        found = self._cached(kind, name, arguments, lambda: _resolve(kind, name, arguments), needs)
        return Resolved(about=about, **found)

    def _cached(
        self,
        kind: str,
        name: str,
        arguments: Mapping[str, Any],
        make: Callable[[], Any],
        needs: Sequence[str] = (),
    ) -> Any:
        """The result of `make`, cached until the code of the card or of the teachers in `needs` changes."""
        make = plugin.blame(module_of(kind, name))(make)
        if self.cache is None:
            return make()
        module = module_of(kind, name)
        teachers = sorted(module_of(kind_of(need), need) for need in {*needs})
        key = digest(canonical_json([source_fingerprint((module, *teachers, *CONTRACTS)), arguments]))
        path = self.cache / f"{kind}-{name}-{key}.json"
        with contextlib.suppress(OSError):  # an unreadable entry is made again
            found = read_json(path)
            if isinstance(found, dict) and found.get("digest") == _digest(path, found.get("value")):
                return found["value"]
        if self.on_miss and module not in sys.modules:
            self.on_miss()
            self.on_miss = None
        # The same value as a later, cached call returns: lists instead of tuples, names sorted.
        value = json.loads(json.dumps(make(), sort_keys=True))
        with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
            for file in abandoned(self.cache):
                file.unlink(missing_ok=True)
            write_json(path, {"value": value, "digest": _digest(path, value)})
        return value


def _digest(entry: Path, value: Any) -> str:
    """The digest of a cache entry; it holds the entry's name, so that no entry passes for another."""
    return digest(canonical_json([entry.name, value]))


def _describe(kind: str, card: Any) -> Description:
    common = {
        "kind": kind,
        "name": card.name,
        "title": card.title,
        "data": card.data,
        "scales": tuple(card.recipes()),
        "recipes": {scale: recipe.values() for scale, recipe in card.recipes().items()},
    }
    if kind == "task":
        metrics = tuple(asdict(metric) for metric in card.metrics)
        return Description(**common, protocol=card.protocol, metrics=metrics, takes=card.takes)
    released = next(iter(card.recipes().values()))
    return Description(
        **common,
        paper=card.paper,
        code=card.code,
        provenance=card.provenance_of(released),
        needs=dict(card.needed(released)),
        trains=card.trains,
        golden=card.golden,
        points=card.points,
        transfer={task: dict(scales) for task, scales in card.transfer().items()},
    )


def step_flops(found: MethodCard, recipe: PretrainRecipe, scale: str) -> float:
    """FLOPs of one image's pretraining step, by the recipe and its teachers' recipes at the same scale.

    Raises:
        Unavailable: a teacher has no recipe for this scale.
    """
    teachers = {}
    for role, name in found.needed(recipe).items():
        teacher = card(kind_of(name), name)
        if scale not in teacher.recipes():
            raise Unavailable(f"{teacher.title} has no recipe for the scale {scale!r}")
        teachers[role] = teacher.recipes()[scale]
    return float(recipe.step_flops(**teachers))


def _description(values: Mapping[str, Any]) -> Description:
    tuples = {name: tuple(values[name]) for name in ("scales", "metrics", "golden")}
    return Description(**{**values, **tuples})


def _resolve(kind: str, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    found = card(kind, name)
    title = found.name if kind == "task" else found.title
    recipe = found.recipes()[arguments["scale"]]
    values, sources = recipe.values(), dict(recipe.sources)
    for source, change in arguments["cited"]:
        values = override(type(recipe), values, change, where=f"{source}:", of=title)
        sources.update(dict.fromkeys(change, source))
    for where, change in arguments["changes"]:
        values = override(type(recipe), values, change, where=where, of=title)
        sources.update(dict.fromkeys(change, where))
    places = {field: where for where, change in arguments["changes"] for field in change}
    changed = Changed(title, places, f"--set {name}." if kind == "task" else "--set")
    check_epochs(values, changed, trains=kind == "task" or found.trains)
    if kind != "task":
        check_patches(values["img_size"], values["patch_size"], changed, of_encoder=False)
    try:
        recipe = type(recipe).from_values(values, sources)
        facts = (_task_facts if kind == "task" else _pretraining_facts)(found, recipe, arguments)
    except UserError as error:
        raise changed.named(error, values) from None
    if kind == "task" and not getattr(recipe, "pads_images", False):  # padding gives whole patches
        check_patches(recipe.img_size, arguments["encoder"][1], changed, of_encoder=True)
    return {"values": recipe.values(), "sources": sources, **facts}


def _task_facts(found: Any, recipe: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    arch, patch_size = arguments["encoder"]
    values = recipe.values()
    images = int(found.images(values, arguments["data_size"]))
    return {"images": images, "flops": images * float(found.flops(values, arch, patch_size))}


def _pretraining_facts(found: Any, recipe: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    size_of(recipe.arch)  # raises for an unknown size now, not when the run starts
    images = round(recipe.epochs * arguments["data_size"]) if found.trains else 0
    return {
        "images": images,
        "flops": images * step_flops(found, recipe, arguments["scale"]) if images else 0.0,
        "needs": dict(found.needed(recipe)),
        "provenance": found.provenance_of(recipe),
    }
