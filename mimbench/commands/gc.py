"""Runs that no table refers to any more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_args

from mimbench import discovery
from mimbench.atomic import digest
from mimbench.catalog import Catalog
from mimbench.errors import RunFailed
from mimbench.plan.datasets import Everything
from mimbench.plan.planner import Planner
from mimbench.plan.recipes import Recipes
from mimbench.plan.request import Request
from mimbench.recipe import Scale
from mimbench.store.folder import RunFolder, Store
from mimbench.store.runs import RunStore
from mimbench.store.spec import PerRecipe, RunSpec, canonical_json
from mimbench.table import spec as tables


def unreferenced(store: Store, catalog: Catalog) -> list[RunFolder]:
    """Runs whose recipe is in no table today, at any scale; seed and data do not matter.

    A row that a table leaves out at a scale still counts: somebody may have run it alone. A run whose plug-in
    is gone is kept, and so is one that starts, over any number of runs, from one that is gone or unreadable.
    """
    known = {folder.path for folder in referenced(store, catalog, tables.list_tables(), orphans=True)}
    return [folder for folder in store if folder.path not in known]


def referenced(
    store: Store, catalog: Catalog, names: Iterable[tuple[str, str]], *, orphans: bool = False
) -> list[RunFolder]:
    """Runs whose recipe is in one of the tables today, at any scale; seed and data do not matter.

    Args:
        names: (method, table) of each table. orphans: include those of which nobody can tell.
    """
    runs, text_of = list(store), PerRecipe(canonical_json)
    wanted = _signatures(catalog, RunStore(store.root / ".none"), names, loaded=any(map(_is_loaded, runs)))
    known: dict[Path, str | None] = {}

    def is_wanted(folder: RunFolder) -> str | None:
        """The run's signature if a table has it, else None; empty for an orphan that is included."""
        if folder.path not in known:
            known[folder.path] = signature_of(folder)
        return known[folder.path]

    def signature_of(folder: RunFolder) -> str | None:
        parents = {}
        try:
            spec = folder.spec
        except RunFailed:
            return None  # damaged
        if folder.plugin and discovery.plugin_of(discovery.STAGES[spec.stage], spec.name) is None:
            return "" if orphans else None  # the plug-in is missing, and so are its tables
        for role, key in spec.parents.items():
            parent = store.get(key)
            if parent is None or _is_unreadable(parent):
                return "" if orphans else None
            signature = is_wanted(parent)
            if signature is None:
                return None
            parents[role] = signature
        if "" in parents.values():
            return ""  # nobody knows what it would be with the runs that it starts from
        signature = _signature(spec, parents, text_of)
        return signature if signature in wanted else None

    return [folder for folder in runs if is_wanted(folder) is not None]


def _is_loaded(folder: RunFolder) -> bool:
    return not _is_unreadable(folder) and folder.spec.adopted


def _is_unreadable(folder: RunFolder) -> bool:
    """Whether nobody can tell what run it is."""
    try:
        return not folder.spec
    except RunFailed:
        return True


def _signatures(
    catalog: Catalog, empty: RunStore, names: Iterable[tuple[str, str]], *, loaded: bool
) -> set[str]:
    """The signatures of all runs behind the tables, at every scale; with `loaded`, of loaded methods too."""
    found: set[str] = set()
    weights = [{}, dict.fromkeys(discovery.names("method"), Path())]  # as by --weights METHOD=PATH
    requests = [
        Request(scale=scale, weights=each)
        for scale in get_args(Scale)
        for each in (weights if loaded else weights[:1])
    ]
    data = Everything()
    recipes = {scale: Recipes(catalog, data, scale) for scale in get_args(Scale)}
    text_of = PerRecipe(canonical_json)
    for method, table in names:
        spec = tables.load(method, table)
        for request in requests:
            planner = Planner(catalog, empty, data, request, recipes[request.scale])
            plan = planner.table(spec.rows, spec.columns, f"tables/{method}/{table}.toml")
            signatures: dict[str, str] = {}
            for key, node in plan.nodes.items():
                parents = {role: signatures[parent] for role, parent in node.spec.parents.items()}
                signatures[key] = _signature(node.spec, parents, text_of)
            found.update(signatures.values())
    return found


def _signature(spec: RunSpec, parents: Mapping[str, str], text_of: PerRecipe[str]) -> str:
    """The digest of a run without its data and seed, and of the same of the runs that it starts from.

    Args:
        text_of: the JSON of a recipe.
    """
    above = " ".join(f"{role}={signature}" for role, signature in sorted(parents.items()))
    return digest(f"{spec.stage} {spec.name} {spec.arch} {above} {text_of(spec.recipe)}")
