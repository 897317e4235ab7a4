"""From a table to the graph of runs behind it: every run once, parents first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mimbench import catalog as cards
from mimbench.arch import size_of
from mimbench.catalog import Catalog, Changes, Resolved, Unavailable
from mimbench.data.roles import Data
from mimbench.errors import UserError
from mimbench.request import Request
from mimbench.spec import RunSpec
from mimbench.store import Inputs, Outcome, RunStore

if TYPE_CHECKING:
    from rich.console import Console


SHAPE = {"arch", "img_size", "patch_size"}
"""The fields of a pretraining that say what its encoder is, not how it learns."""


class Row(Protocol):
    """What the plan needs of a table's row."""

    @property
    def id(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def method(self) -> str | None: ...
    @property
    def set(self) -> Mapping[str, Any]: ...
    @property
    def at(self) -> Mapping[Any, Mapping[str, Any]]: ...
    @property
    def not_at(self) -> Mapping[Any, str]: ...


class Column(Protocol):
    @property
    def task(self) -> str: ...
    @property
    def metric(self) -> str: ...


@dataclass
class Node:
    """One run of the graph."""

    spec: RunSpec
    inputs: Inputs
    label: str
    images: int
    flops: float
    outcome: Outcome
    users: set[str] = field(default_factory=set)  # the rows that would each have computed it by itself

    @property
    def key(self) -> str:
        return self.spec.key


@dataclass
class Plan:
    """The graph of runs, and which run fills which cell.

    Attributes:
        nodes: key to run, parents before children.
        cells: (row id, column index) to {seed: key of the run with the cell's number}.
        blocked: (row id, column index) to the reason why it cannot be run here.
        recipes: key to the resolved recipe with its sources.
        targets: the runs that were asked for; the others only lead to them.
        rebuilt: the rows that are reconstructions, without their authors' code.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    cells: dict[tuple[str, int], dict[int, str]] = field(default_factory=dict)
    blocked: dict[tuple[str, int], str] = field(default_factory=dict)
    recipes: dict[str, Resolved] = field(default_factory=dict)
    targets: set[str] = field(default_factory=set)
    rebuilt: set[str] = field(default_factory=set)

    @classmethod
    def union(cls, plans: Mapping[str, Plan]) -> Plan:
        """Every run of several tables, given by their names, once; cells stay with their tables.

        A main table's rows are methods. Of an ablation's (`4 branches`), the run's label says which table's.
        """
        whole = cls()
        for table, plan in plans.items():
            for key, node in plan.nodes.items():
                label = node.label if table.endswith("/main") else f"{table}: {node.label}"
                known = whole.nodes.setdefault(key, replace(node, label=label, users=set()))
                known.users.update(node.users)
            whole.recipes.update(plan.recipes)
            whole.targets.update(plan.targets)
        return whole

    def drop_unused(self) -> None:
        """Forget the runs that lead to no target, as those of a row that turned out not to be runnable."""
        needed = set(self.targets)
        for key, node in reversed(self.nodes.items()):
            if key in needed:
                needed.update(node.spec.parents.values())
        self.nodes = {key: node for key, node in self.nodes.items() if key in needed}

    def lineage(self, key: str) -> list[str]:
        """A run, what it needs, what these need, and so on."""
        parents = self.nodes[key].spec.parents.values()
        return [key, *(run for parent in parents for run in self.lineage(parent))]

    def pretraining_flops(self) -> dict[str, float]:
        """Row id to the FLOPs of its own pretraining; not where it is loaded.

        A teacher's forward passes are in it, its own training is not.
        """
        found = {}
        for (row, _), keys in self.cells.items():
            parents = self.nodes[next(iter(keys.values()))].spec.parents
            if "encoder" in parents and (flops := self.nodes[parents["encoder"]].flops):
                found[row] = flops
        return found

    def loaded(self) -> dict[str, str]:
        """Row id to the name of the checkpoint that takes the place of its pretraining, where one does."""
        found = {}
        for (row, _), keys in self.cells.items():
            parents = self.nodes[next(iter(keys.values()))].spec.parents
            if "encoder" in parents and (node := self.nodes[parents["encoder"]]).spec.adopted:
                found[row] = ", ".join(Path(path).name for path in node.inputs.weights.values())
        return found

    def todo(self, *, rerun_stale: bool = False) -> list[Node]:
        """The runs to do, parents first: targets that are not done, and what these still need."""
        settled = {"done"} if rerun_stale else {"done", "stale"}
        needed = set(self.targets)
        for key, node in reversed(self.nodes.items()):
            if key in needed and node.outcome not in settled:
                needed.update(node.spec.parents.values())
        return [n for key, n in self.nodes.items() if key in needed and n.outcome not in settled]


class Planner:
    """Builds the plan of a table."""

    def __init__(self, catalog: Catalog, store: RunStore, data: Data, request: Request) -> None:
        self.catalog, self.store, self.data, self.request = catalog, store, data, request
        self.plan = Plan()
        self._rows: list[Row] = []
        self._used: set[str] = set()  # of the request's changes
        self._loaded: set[str] = set()  # names of the checkpoints that some run wants
        self._named: set[str] = set()  # what the row that is being planned has: its method, parents and tasks

    def table(self, rows: Iterable[Row], columns: Iterable[Column], where: str) -> Plan:
        """The plan of a whole table.

        Args:
            where: the table's file, for messages about a row's overrides.

        Raises:
            UserError: an unknown method, task, metric or recipe field, or an unusable value.
        """
        columns = list(columns)
        for column in columns:
            known = [metric["name"] for metric in self.catalog.describe("task", column.task).metrics]
            if column.metric not in known:
                raise UserError(f"{where}: metric of {column.task}", column.metric, allowed=known)
        for row in rows:
            if row.method is None:
                continue
            if self._is_rebuilt(row, where):
                self.plan.rebuilt.add(row.id)
            self._named = set()
            for task in dict.fromkeys(column.task for column in columns):  # its columns share one run
                indices = [index for index, column in enumerate(columns) if column.task == task]
                try:
                    keys = {seed: self.cell(row, task, seed, where) for seed in range(self.request.seeds)}
                except Unavailable as reason:
                    self.plan.blocked.update({(row.id, index): str(reason) for index in indices})
                else:
                    self.plan.cells.update({(row.id, index): keys for index in indices})
            if not any((row.id, index) in self.plan.blocked for index in range(len(columns))):
                self._refuse_strangers(row, where)
        self.plan.drop_unused()
        for (row_id, _), keys in self.plan.cells.items():
            for run in {run for key in keys.values() for run in self.plan.lineage(key)}:
                self.plan.nodes[run].users.add(f"{where}: {row_id}")
        return self.plan

    def _is_rebuilt(self, row: Row, where: str) -> bool:
        """Whether a row is a reconstruction; as its card says where its recipe is none at this scale."""
        assert row.method is not None
        kind = cards.kind_of(row.method)
        try:
            changes = self._changes(row.method, self._overrides(row), f"{where}: rows.{row.id}.set")
            return self._resolve(kind, row.method, changes).reconstruction
        except (UserError, Unavailable):  # which `cell` will say where it matters
            return self.catalog.describe(kind, row.method).reconstruction

    def _refuse_strangers(self, row: Row, where: str) -> None:
        """Raises UserError for a row's override of something that it neither trains nor is evaluated on."""
        for name in self._overrides(row):
            prefix, dot, _ = name.rpartition(".")
            if dot and prefix not in self._named:
                place = f"{where}: rows.{row.id}.set {name}"
                raise UserError(
                    place, prefix, allowed=sorted(self._named), remedy="The row has no other part."
                )

    def unknown(self) -> dict[tuple[str, str], set[str]]:
        """What the user gave with --set and --weights and no run of the plan takes notice of.

        Returns:
            (option, name) to the names that would have been known.
        """
        blocked = {row for row, _ in self.plan.blocked}
        found = {}
        for change in sorted(set(self.request.changes) - self._used):
            if not any(self._is_field_of(row, change) for row in self._rows if row.id in blocked):
                found["--set", change] = self._settable(change)
        known = self._checkpoints() if blocked else set()  # of a blocked row it cannot be told what it loads
        for name in sorted(set(self.request.weights) - self._loaded - known):
            found["--weights", name] = self._loaded | known
        return found

    def _checkpoints(self) -> set[str]:
        """Every name that --weights has a meaning for: a method's, or one that a teacher's recipe loads."""
        names = set(cards.names("method"))
        for teacher in cards.names("teacher"):
            if "paper" in self.catalog.describe("teacher", teacher).scales:
                recipe = self.catalog.resolve("teacher", teacher, "paper", data_size=0)
                names.add(recipe.values.get("weights") or teacher)
        return names

    def _is_field_of(self, row: Row, change: str) -> bool:
        """Whether a change names a field of a blocked row's pretraining or of a task."""
        prefix, _, name = change.rpartition(".")
        names: list[tuple[cards.Kind, str]] = (
            [(kind, name) for kind in ("task", "teacher") for name in cards.names(kind)] if prefix else []
        )
        if row.method:
            names.append((cards.kind_of(row.method), row.method))
        for kind, card in names:
            about = self.catalog.describe(kind, card)
            encoder = ("vit_smoke", 8) if kind == "task" else None
            if prefix in ("", card) and self.request.scale in about.scales:
                found = self._resolve(kind, card, (), **({"encoder": encoder} if encoder else {}))
                if name in found.values:
                    return True
        return False

    def cell(self, row: Row, task: str | None, seed: int, where: str) -> str:
        """Plan the run behind one cell and seed (without a task: only the pretraining); returns its key."""
        assert row.method is not None
        self._rows.append(row)
        if self.request.scale in row.not_at:
            raise Unavailable(row.not_at[self.request.scale])
        if task is None:
            where = f"{where}: rows.{row.id}.set"
            key = self._pretrain(row, seed, where)
            self.plan.targets.add(key)
            return key
        about = self.catalog.describe("task", task)
        a = {"encoder": "an encoder: name a method", "teacher": "a teacher: name one"}[about.takes]
        if about.takes != ("teacher" if cards.kind_of(row.method) == "teacher" else "encoder"):
            field = f"{where}: rows.{row.id}.method"
            raise UserError(field, row.method, remedy=f"The task {task} takes {a}.")
        where = f"{where}: rows.{row.id}.set"
        self.data.path(about.data)  # nothing is pretrained for a cell without data
        encoder = self._pretrain(row, seed, where)
        values = self.plan.nodes[encoder].spec.recipe
        method = self.plan.recipes[encoder].about
        resolved = self._resolve(
            "task",
            task,
            self._changes(task, self._overrides(row), where, prefixed_only=True),
            encoder=(values["arch"], values["patch_size"]),
            cited=method.transfer.get(task, {}).get(self.request.scale, {}),
        )
        label = f"{row.label} · {task}"
        key = self._add("downstream", resolved, values["arch"], seed, label, {"encoder": encoder})
        self.plan.targets.add(key)
        return key

    def _pretrain(self, row: Row, seed: int, where: str) -> str:
        """The row's own pretraining (or the teacher that it is about), and what that needs.

        What a row learns from is of seed 0, but a teacher that the row is about, and
        that is trained, varies with the seed.
        """
        assert row.method is not None
        kind = cards.kind_of(row.method)
        resolved = self._resolve(kind, row.method, self._changes(row.method, self._overrides(row), where))
        given = row.method in self.request.weights and kind == "method"
        own = sorted(set(self._own_fields(row)) - SHAPE)
        if given and own:
            raise Unavailable(f"--weights {row.method} is not of this row's recipe: {', '.join(own)} differ")
        if given:
            seed = 0  # the row's encoder comes with --weights METHOD=PATH
            label = f"{row.label} · loaded"
            return self._add("pretrain", resolved, resolved.values["arch"], seed, label, {}, row.method)
        if resolved.values.get("weights"):
            seed = 0  # a checkpoint is the same for every seed
        return self._with_parents(kind, resolved, seed, row.label, row, where)

    def _parent(self, name: str, row: Row, where: str) -> str:
        """What the row's pretraining learns from: of seed 0, and changed only where a field is prefixed."""
        kind = cards.kind_of(name)
        changes = self._changes(name, self._overrides(row), where, prefixed_only=True)
        resolved = self._resolve(kind, name, changes)
        return self._with_parents(kind, resolved, 0, resolved.about.title, row, where)

    def _with_parents(
        self, kind: cards.Kind, resolved: Resolved, seed: int, label: str, row: Row, where: str
    ) -> str:
        parents = {role: self._parent(name, row, where) for role, name in resolved.needs.items()}
        stage = "teacher" if kind == "teacher" else "pretrain"
        return self._add(stage, resolved, resolved.values["arch"], seed, label, parents)

    def _own_fields(self, row: Row) -> list[str]:
        """The fields of its pretraining that a row changes."""
        prefixes = ("", row.method)
        split = [name.rpartition(".") for name in self._overrides(row)]
        return [field for prefix, _, field in split if prefix in prefixes]

    def _overrides(self, row: Row) -> Mapping[str, Any]:
        return {**row.set, **row.at.get(self.request.scale, {})}

    def _changes(
        self, name: str, overrides: Mapping[str, Any], where: str, *, prefixed_only: bool = False
    ) -> Changes:
        """The overrides that concern a card: `name.field`, and a bare `field` for the row's pretraining."""
        self._named.add(name)
        found: list[tuple[str, dict[str, Any]]] = []
        bare: dict[str, Any] = {} if prefixed_only else {f: v for f, v in overrides.items() if "." not in f}
        mine = {
            f.partition(".")[2]: v for f, v in overrides.items() if f.partition(".")[0] == name and "." in f
        }
        found += [(where, bare), (f"{where} {name}.", mine)]
        for change, value in self.request.changes.items():
            prefix, _, field_name = change.rpartition(".")
            if prefix == name:
                self._used.add(change)
                found.append((f"--set {name}.", {field_name: value}))
            elif not prefix and not prefixed_only and self._has_field(name, change):
                self._used.add(change)  # a bare field goes to every row's own pretraining that has it
                found.append(("--set", {change: value}))
        return [(place, values) for place, values in found if values]

    def _settable(self, name: str) -> set[str]:
        """What --set accepts in place of a name: pretrainings' fields, or what may stand before its dot."""
        nodes = [node.spec for node in self.plan.nodes.values()]
        if "." in name:
            return {spec.name for spec in nodes}
        return {field for spec in nodes if spec.stage == "pretrain" for field in spec.recipe}

    def _has_field(self, method: str, name: str) -> bool:
        """Whether a bare --set concerns a pretraining; only its shape does where nothing is trained."""
        kind = cards.kind_of(method)
        if not self.catalog.describe(kind, method).trains and name not in SHAPE:
            return False
        return name in self._resolve(kind, method, ()).values

    def _resolve(self, kind: Any, name: str, changes: Changes, **rest: Any) -> Resolved:
        size = self.data.size(self.catalog.describe(kind, name).data, labelled=kind == "task")
        return self.catalog.resolve(kind, name, self.request.scale, changes, data_size=size, **rest)

    def _add(
        self,
        stage: Any,
        resolved: Resolved,
        arch: str,
        seed: int,
        label: str,
        parents: Mapping[str, str],
        weights_name: str = "",
    ) -> str:
        size_of(arch)  # an unknown size is the user's mistake, and must not wait for the run
        about = resolved.about
        loaded = weights_name or resolved.values.get("weights")
        weights = self._weights(about.title, loaded)
        role = {} if weights else {about.data: self.data.path(about.data)}  # what is loaded sees no picture
        batch = resolved.values["global_batch_size"]
        if stage != "downstream" and about.trains and not loaded and round(resolved.images / batch) < 1:
            remedy = f"{about.title} sees {resolved.images} pictures in all its epochs: less than a batch."
            raise UserError("global_batch_size", batch, remedy=remedy)
        data = {name: self.data.fingerprint(name) for name in role}
        data |= {f"weights {n}": self.data.weights_fingerprint(n, path) for n, path in weights.items()}
        spec = RunSpec(
            stage=stage,
            name=about.name,
            arch=arch,
            recipe=resolved.values,
            data=data,
            seed=seed,
            parents=dict(parents),
            skip_corrupt=self.request.skip_corrupt,
        )
        if spec.key not in self.plan.nodes:
            inputs = Inputs(
                data={name: str(path) for name, path in role.items()},
                weights={name: str(path.resolve()) for name, path in weights.items()},
                options=self.request.options,
            )
            if self.request.seeds > 1 and (stage != "teacher" or seed):
                label = f"{label} · seed {seed}"
            outcome = self.store.outcome(spec.key)
            cost = (0, 0.0) if weights else (resolved.images, resolved.flops)
            self.plan.nodes[spec.key] = Node(spec, inputs, label, *cost, outcome)
            self.plan.recipes[spec.key] = resolved
        return spec.key

    def _weights(self, title: str, name: str | None) -> dict[str, Path]:
        """The checkpoint of that name. Raises Unavailable where the user gave none."""
        if not name:
            return {}
        self._loaded.add(name)
        if name not in self.request.weights:
            raise Unavailable(f"{title} is not trained at this scale: give --weights {name}=PATH")
        return {name: self.request.weights[name].resolve()}


def show(plan: Plan, console: Console, *, rerun_stale: bool = False) -> None:
    """Print the graph: what is cached, what depends on what, the totals, and what sharing saves."""
    from rich.table import Table

    numbers = {key: index for index, key in enumerate(plan.nodes, start=1)}
    table = Table(title=f"{len(plan.nodes)} runs", title_justify="left")
    for name in ("#", "key", "run", "needs", "images", "FLOPs", "state"):
        table.add_column(name, justify="right" if name in ("#", "images", "FLOPs") else "left")
    for key, node in plan.nodes.items():
        needs = ", ".join(f"{role} #{numbers[parent]}" for role, parent in node.spec.parents.items())
        state = "cached" if node.outcome == "done" else "to do" if node.outcome == "missing" else node.outcome
        table.add_row(
            str(numbers[key]), key[:8], node.label, needs, f"{node.images:,}", f"{node.flops:.1e}", state
        )
    console.print(table)
    nodes, todo = plan.nodes.values(), plan.todo(rerun_stale=rerun_stale)
    alone = sum(node.flops * len(node.users) for node in nodes)
    total = sum(node.flops for node in nodes)
    console.print(
        f"to do: {len(todo)} of {len(plan.nodes)} runs, {sum(n.images for n in todo):,} images, "
        f"{sum(n.flops for n in todo):.1e} FLOPs"
    )
    runs_alone = sum(len(node.users) for node in nodes)
    if alone > total:
        console.print(
            f"sharing: {len(plan.nodes)} runs instead of {runs_alone}, "
            f"which saves {100 * (1 - total / alone):.0f} % of the FLOPs"
        )
    reasons: dict[str, list[str]] = {}
    for (row, _), reason in plan.blocked.items():
        reasons.setdefault(reason, []).append(row)
    for reason, rows in reasons.items():
        console.print(f"not runnable ({', '.join(dict.fromkeys(rows))}): {reason}")
