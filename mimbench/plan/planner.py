"""Builds the graph of runs from a table's rows, columns and the user's request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mimbench import discovery
from mimbench.arch import size_of
from mimbench.catalog import Catalog, Changes, Resolved
from mimbench.discovery import Kind
from mimbench.errors import Unavailable, UserError
from mimbench.plan.datasets import Data
from mimbench.plan.graph import Node, Plan
from mimbench.plan.request import Request
from mimbench.store.folder import Inputs
from mimbench.store.runs import RunStore
from mimbench.store.spec import RunSpec
from mimbench.table.spec import Column, Row

SHAPE = {"arch", "img_size", "patch_size"}
"""The fields of a pretraining that say what its encoder is, not how it learns."""


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
            self.plan.provenance[row.id] = self._provenance(row, where)
            self._named = set()
            for task in dict.fromkeys(column.task for column in columns):  # its columns share one run
                indices = [index for index, column in enumerate(columns) if column.task == task]
                try:
                    keys = {seed: self.cell(row, task, seed, where) for seed in range(self.request.seeds)}
                except Unavailable as reason:
                    self.plan.blocked.update({(row.id, index): reason for index in indices})
                else:
                    self.plan.cells.update({(row.id, index): keys for index in indices})
            if not any((row.id, index) in self.plan.blocked for index in range(len(columns))):
                self._refuse_strangers(row, where)
        self.plan.drop_unused()
        for (row_id, _), keys in self.plan.cells.items():
            for run in {run for key in keys.values() for run in self.plan.lineage(key)}:
                self.plan.nodes[run].users.add(f"{where}: {row_id}")
        return self.plan

    def _provenance(self, row: Row, where: str) -> str:
        """Where a row's code comes from; as its card says where it has no recipe at this scale."""
        assert row.method is not None
        kind = discovery.kind_of(row.method)
        try:
            changes = self._changes(row.method, self._overrides(row), f"{where}: rows.{row.id}.set")
            return self._resolve(kind, row.method, changes).provenance
        except (UserError, Unavailable):  # which `cell` will say where it matters
            return self.catalog.describe(kind, row.method).provenance

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
        names = set(discovery.names("method"))
        for teacher in discovery.names("teacher"):
            if "paper" in self.catalog.describe("teacher", teacher).scales:
                recipe = self.catalog.resolve("teacher", teacher, "paper", data_size=0)
                names.add(recipe.values.get("weights") or teacher)
        return names

    def _is_field_of(self, row: Row, change: str) -> bool:
        """Whether a change names a field of a blocked row's pretraining or of a task."""
        prefix, _, name = change.rpartition(".")
        names: list[tuple[Kind, str]] = (
            [(kind, name) for kind in ("task", "teacher") for name in discovery.names(kind)] if prefix else []
        )
        if row.method:
            names.append((discovery.kind_of(row.method), row.method))
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
        if about.takes != ("teacher" if discovery.kind_of(row.method) == "teacher" else "encoder"):
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
            cited=method.transfer.get(task, {}).get(self.request.scale, ()),
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
        kind = discovery.kind_of(row.method)
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
        kind = discovery.kind_of(name)
        changes = self._changes(name, self._overrides(row), where, prefixed_only=True)
        resolved = self._resolve(kind, name, changes)
        return self._with_parents(kind, resolved, 0, resolved.about.title, row, where)

    def _with_parents(
        self, kind: Kind, resolved: Resolved, seed: int, label: str, row: Row, where: str
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
        kind = discovery.kind_of(method)
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
            option = f"--weights {name}=PATH"
            raise Unavailable(f"{title} is not trained at this scale: give {option}", option)
        return {name: self.request.weights[name].resolve()}
