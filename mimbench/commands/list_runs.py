"""Reads and filters the stored runs for `mimbench runs list`, `show` and `export`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from mimbench import discovery
from mimbench.catalog import Catalog
from mimbench.commands.remove import dependants
from mimbench.errors import RunFailed, UserError
from mimbench.recipe import SCALES
from mimbench.store.export import STATES, method_of, state, subject
from mimbench.store.folder import UNREADABLE, RunFolder, Store
from mimbench.store.records import Result, impossible, remedy
from mimbench.store.spec import RunSpec, Stage, canonical_json

if TYPE_CHECKING:
    from mimbench.plan.names import Kind

SORTS = ("newest", "oldest", "name")
Compared = tuple[str, dict[str, Any], tuple[str, ...]]
"""Of a run: its scale, its changes, and these as `name=value`."""
PREFIX = "weights "  # of the data role that a loaded checkpoint has in a run's spec


@dataclass(frozen=True)
class Listed:
    """One run as a list shows it.

    Attributes:
        spec: None if the run is damaged. scale: empty if there is no recipe for the run today.
        changes: fields that differ from the card's own recipe at that scale, by their --set names
            (`mask_ratio` of the pretraining, `segmentation.epochs`, `clip.epochs`). A table's row or the user
            changed them, or the recipe has changed since. Includes the changes of the runs it starts from.
        settings: the changes as `name=value`.
        weights: names of the methods loaded with --weights, for this run or one that it starts from.
        updated: time of the last heartbeat, in seconds since 1970.
        damage: which of its files are damaged, and what to do about it.
    """

    folder: RunFolder
    state: str
    subject: str
    spec: RunSpec | None = None
    method: str | None = None
    scale: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    updated: float = 0.0
    seconds: float = 0.0
    step: int = 0
    total: int = 0
    message: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    damage: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def key(self) -> str:
        """The first eight digits of the key, which the folder's name ends with."""
        return self.name.rpartition("-")[2]

    def changed(self) -> list[str]:
        """The changes in the form of the options: `mask_ratio=0.5`, `weights mae`."""
        return [*(f"weights {name}" for name in self.weights), *self.settings]


@dataclass(frozen=True)
class Filters:
    """Which runs to list. A run must have one of the values of every filter that is not empty.

    Attributes:
        tables: METHOD or METHOD/TABLE. methods: of the pretraining, or of the encoder that a task evaluates.
    """

    tables: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


def list_runs(store: Store, catalog: Catalog, filters: Filters, sort: str = "newest") -> list[Listed]:
    """The runs that pass the filters, sorted; a snapshot of the store is the fast way.

    Raises:
        UserError: an unknown value of a filter, or an unknown order.
    """
    reader = Reader(store, catalog)
    check(filters, sort, reader.specs)
    members = None
    if filters.tables:
        from mimbench.commands.gc import referenced  # loads the planner, which a list without --table skips

        members = {folder.path.name for folder in referenced(store, catalog, _tables(filters.tables))}
    found = [run for run in map(reader.read, reader.folders) if _passes(run, filters, members)]
    if sort == "name":
        return sorted(found, key=lambda run: run.name)
    return sorted(found, key=lambda run: (run.updated, run.name), reverse=sort == "newest")


def check(filters: Filters, sort: str, stored: Iterable[RunSpec]) -> None:
    """Raises UserError for a value that no run could have."""
    stored = list(stored)
    for option, values, allowed in (
        ("--scale", filters.scales, SCALES),
        ("--state", filters.states, STATES),
        ("--stage", filters.stages, get_args(Stage)),
        ("--sort", (sort,), SORTS),
    ):
        for value in values:
            if value not in allowed:
                raise UserError(option, value, allowed=allowed)
    methods = {*discovery.names("method"), *discovery.names("teacher")}
    methods |= {spec.name for spec in stored if spec.stage != "downstream"}
    tasks = {*discovery.names("task"), *(spec.name for spec in stored if spec.stage == "downstream")}
    for name in filters.methods:
        if name not in methods:
            raise _wrong_name("--method", name, "method", "teacher", allowed=sorted(methods))
    for name in filters.tasks:
        if name not in tasks:
            raise _wrong_name("--task", name, "task", allowed=sorted(tasks))
    if filters.tables:
        _tables(filters.tables)


def _wrong_name(option: str, name: str, *wanted: Kind, allowed: Sequence[str]) -> UserError:
    """The error for a filter's unknown name; it names the filter that takes such a name, if there is one."""
    from mimbench.plan import names  # loads the tables, which a list without mistakes skips

    def use(name: str, kind: Kind) -> str:
        if kind == "run":
            return names.use_of(name, kind)
        filters = {"task": "--task", "paper": "--table", "table": "--table"}
        if kind == "table" and "/" not in name:
            name = f"{names.one_or(names.papers_of(name), 'METHOD')}/{name}"
        return f"`mimbench runs list {filters.get(kind, '--method')} {name}` lists its runs."

    return names.wrong_name(option, name, *wanted, allowed=allowed, use=use)


def _tables(names: Iterable[str]) -> list[tuple[str, str]]:
    """The tables that METHOD or METHOD/TABLE names. Raises UserError where there is none."""
    from mimbench.table import spec as tables

    known = tables.list_tables()
    found: list[tuple[str, str]] = []
    for name in names:
        method, slash, table = name.partition("/")
        chosen = [pair for pair in known if pair == (method, table) or (not slash and pair[0] == method)]
        if not chosen:
            of_method = ["/".join(pair) for pair in known if pair[0] == method]
            papers = list(dict.fromkeys(owner for owner, _ in known))
            raise _wrong_name("--table", name, "paper", allowed=of_method or papers)
        found += chosen
    return found


def _passes(run: Listed, filters: Filters, members: set[str] | None) -> bool:
    if members is not None and run.name not in members:
        return False
    if filters.states and run.state not in filters.states:
        return False
    if run.spec is None:  # damaged: nothing else about it is known
        return not any(vars(filters)[kind] for kind in ("scales", "methods", "tasks", "stages", "seeds"))
    task = run.spec.name if run.spec.stage == "downstream" else None
    return (
        (not filters.scales or run.scale in filters.scales)
        and (not filters.methods or run.method in filters.methods)
        and (not filters.tasks or task in filters.tasks)
        and (not filters.stages or run.spec.stage in filters.stages)
        and (not filters.seeds or run.spec.seed in filters.seeds)
    )


class Reader:
    """Reads a store's runs. A run does not record its scale: a comparison with today's recipes finds it."""

    def __init__(self, store: Store, catalog: Catalog) -> None:
        self.catalog, self.folders = catalog, list(store)
        self._by_key = {folder.spec.key: folder for folder in self.folders if _is_readable(folder)}
        self._known: dict[tuple[tuple[str, int], ...], Compared] = {}

    @property
    def specs(self) -> list[RunSpec]:
        """The specs of all undamaged runs."""
        return [folder.spec for folder in self._by_key.values()]

    def read(self, folder: RunFolder) -> Listed:
        status, became = folder.status, state(folder)
        damage = folder.damage() if became in UNREADABLE or not status.state else []
        result = folder.result if became not in UNREADABLE else None
        if result and (wrong := no_percentage(folder, result, self.catalog)):
            became, result, damage = "damaged", None, [*damage, wrong]
        known: dict[str, Any] = {
            "folder": folder,
            "state": became,
            "subject": subject(folder),
            "seconds": status.seconds,
            "updated": status.time or folder.path.stat().st_mtime,
            "step": status.step,
            "total": status.total,
            "message": status.message,
            "metrics": metrics_of(folder, result, self.catalog) if result else {},
            "damage": tuple(damage),
        }
        if not _is_readable(folder):
            return Listed(**known)
        lineage = self._lineage(folder)
        scale, changes, settings = self._compared(lineage)
        weights = dict.fromkeys(name for run in lineage for name in _given(run.spec))
        return Listed(
            **known,
            spec=folder.spec,
            method=method_of(folder),
            scale=scale,
            changes=changes,
            weights=tuple(weights),
            settings=settings,
        )

    def children(self, folder: RunFolder) -> list[RunFolder]:
        """The runs that start from this one, and those that start from them."""
        return dependants(self.folders, [folder])

    def _lineage(self, folder: RunFolder) -> list[RunFolder]:
        """A run and those that it starts from, if they are still in the store."""
        parents = [self._by_key.get(key) for key in folder.spec.parents.values()]
        return [folder, *(above for parent in parents if parent for above in self._lineage(parent))]

    def _compared(self, lineage: list[RunFolder]) -> Compared:
        """The scale of a run, and the changes at it of the run and those that it starts from.

        Runs with the same recipes, as those of several seeds, are compared once.
        """
        kind = tuple((run.name.rpartition("-")[0], id(run.spec.recipe)) for run in lineage)
        if kind not in self._known:
            differences = [self._differs(run) for run in lineage]
            scale, own = _scale(differences), _own_pretraining(lineage)
            changes: dict[str, Any] = {}
            for run, by_scale in zip(lineage, differences, strict=True):
                prefix = "" if run is own else f"{run.spec.name}."
                changes |= {f"{prefix}{name}": value for name, value in by_scale.get(scale, {}).items()}
            settings = (f"{name}={value if isinstance(value, str) else canonical_json(value)}"
                        for name, value in changes.items())  # fmt: skip
            self._known[kind] = scale, changes, tuple(settings)
        return self._known[kind]

    def _differs(self, run: RunFolder) -> dict[str, dict[str, Any]]:
        """By scale, the fields whose values differ from the card's own recipe."""
        values = run.spec.recipe.items()
        return {
            scale: {name: value for name, value in values if name in recipe and value != recipe[name]}
            for scale, recipe in self._recipes(run.spec).items()
        }

    def _recipes(self, spec: RunSpec) -> dict[str, dict[str, Any]]:
        """By scale, the run's recipe without changes; for a task, with the method's own transfer values."""
        kind: discovery.Kind = "task" if spec.stage == "downstream" else "method"
        kind = "teacher" if spec.stage == "teacher" else kind
        if spec.name not in discovery.names(kind):
            return {}
        about = self.catalog.describe(kind, spec.name)
        recipes = {scale: dict(recipe) for scale, recipe in about.recipes.items()}
        encoder = self._by_key.get(spec.parents.get("encoder", ""))
        if kind == "task" and encoder and encoder.spec.name in discovery.names("method"):
            transfer = self.catalog.describe("method", encoder.spec.name).transfer.get(spec.name, {})
            for scale, groups in transfer.items():
                for _, change in groups:
                    recipes.get(scale, {}).update(change)
        return recipes


def _scale(differences: Sequence[Mapping[str, Mapping[str, Any]]]) -> str:
    """The scale at which the recipes of a run and its parents differ least from today's recipes."""
    shared = [scale for scale in SCALES if all(scale in each for each in differences)]
    counts = {scale: sum(len(each[scale]) for each in differences) for scale in shared}
    return min(shared, default="", key=counts.__getitem__)


def no_percentage(folder: RunFolder, result: Result, catalog: Catalog) -> str:
    """What is wrong with a result that has an impossible percentage by today's card; empty if nothing is.

    A result with a seal has been checked on reading; older ones do not say which numbers are percentages.
    """
    spec = folder.spec
    if spec.stage != "downstream" or result.percent or spec.name not in discovery.names("task"):
        return ""
    with suppress(UserError):  # a plug-in's card that does not import
        if wrong := impossible(result.metrics, catalog.describe("task", spec.name).percentages):
            return f"{folder.path}/result.json is damaged ({wrong}): {remedy(folder.path)}"
    return ""


def metrics_of(folder: RunFolder, result: Result, catalog: Catalog) -> Mapping[str, float]:
    """A run's metrics, the task's headline first, if there is a card for the task today."""
    spec = folder.spec
    if spec.stage == "downstream" and spec.name in discovery.names("task"):
        with suppress(UserError):  # a plug-in's card that does not import
            return catalog.describe("task", spec.name).in_order(result.metrics)
    return result.metrics


def _given(spec: RunSpec) -> list[str]:
    """The methods that --weights METHOD=PATH loaded; empty for a run that was trained."""
    return [role[len(PREFIX) :] for role in spec.data if role.startswith(PREFIX)] if spec.adopted else []


def _own_pretraining(lineage: list[RunFolder]) -> RunFolder | None:
    """The pretraining whose fields --set names without a prefix: the nearest one."""
    return next((run for run in lineage if run.spec.stage == "pretrain"), None)


def _is_readable(folder: RunFolder) -> bool:
    try:
        return bool(folder.spec)
    except RunFailed:
        return False
