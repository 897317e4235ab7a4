"""Builds the graph of runs from a table's rows, columns and the user's request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mimbench import discovery
from mimbench.catalog import Catalog, Resolved
from mimbench.discovery import Kind
from mimbench.errors import Unavailable, UserError
from mimbench.override import place
from mimbench.plan.datasets import Source
from mimbench.plan.graph import Node, Plan
from mimbench.plan.ledger import Ledger, Overrides
from mimbench.plan.recipes import Recipes
from mimbench.plan.request import Request
from mimbench.store.folder import Inputs
from mimbench.store.runs import RunStore
from mimbench.store.spec import RunSpec, Stage
from mimbench.table.spec import Column, Row


class Planner:
    """Builds the plan of a table.

    Args:
        data: where the runs' data and checkpoints are; `Everything` plans as if all of them were given.
        recipes: those of other planners with the same catalog, data and scale, so that all share them.
    """

    def __init__(
        self,
        catalog: Catalog,
        store: RunStore,
        data: Source,
        request: Request,
        recipes: Recipes | None = None,
    ) -> None:
        self.catalog, self.store, self.data, self.request = catalog, store, data, request
        self.plan = Plan()
        self.recipes = recipes or Recipes(catalog, data, request.scale)
        self.ledger = Ledger(request, self.recipes)

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
            if row.method is not None:
                self._row(row, columns, where)
        self.plan.drop_unused()
        for (row_id, _), keys in self.plan.cells.items():
            for run in {run for key in keys.values() for run in self.plan.lineage(key)}:
                self.plan.nodes[run].users.add(f"{where}: {row_id}")
        return self.plan

    def _row(self, row: Row, columns: Sequence[Column], where: str) -> None:
        """Plan a row's cells; one that cannot be run here is blocked, with the reason."""
        self.plan.provenance[row.id] = self._provenance(row, where)
        overrides = Overrides(row, self.request.scale, where)
        is_blocked = False
        for task in dict.fromkeys(column.task for column in columns):  # its columns share one run
            cells = [(row.id, index) for index, column in enumerate(columns) if column.task == task]
            try:
                keys = {seed: self._cell(overrides, task, seed) for seed in range(self.request.seeds)}
            except Unavailable as reason:
                is_blocked = True
                self.plan.blocked.update(dict.fromkeys(cells, reason))
            else:
                self.plan.cells.update(dict.fromkeys(cells, keys))
        if not is_blocked:
            overrides.refuse_strangers()

    def _provenance(self, row: Row, where: str) -> str:
        """Where a row's code comes from, by its recipe; by its card if it has no recipe at this scale."""
        assert row.method is not None
        kind = discovery.kind_of(row.method)
        try:
            changes = self.ledger.changes(row.method, Overrides(row, self.request.scale, where), own=True)
            return self.recipes.resolve(kind, row.method, changes).provenance
        except (UserError, Unavailable):  # planning the row's cells reports the error
            return self.catalog.describe(kind, row.method).provenance

    def cell(self, row: Row, task: str | None, seed: int, where: str) -> str:
        """Plan the run behind one cell and seed (without a task: only the pretraining); returns its key.

        Raises:
            UserError: an unknown name or field, or an unusable value.
            Unavailable: it cannot be run at this scale, or with the data given.
        """
        return self._cell(Overrides(row, self.request.scale, where), task, seed)

    def _cell(self, overrides: Overrides, task: str | None, seed: int) -> str:
        row = overrides.row
        self.ledger.note_row(row)
        left_out = row.not_at.get(self.request.scale)
        if left_out is None:
            return self._target(overrides, task, seed)
        if not self.data.everything_given:
            raise Unavailable(left_out)
        try:
            return self._target(overrides, task, seed)
        except UserError as error:  # left out because its recipe is impossible at this scale
            raise Unavailable(str(error)) from error

    def _target(self, overrides: Overrides, task: str | None, seed: int) -> str:
        if task is None:
            key = self._pretrain(overrides, seed)
        else:
            key = self._downstream(overrides, task, seed)
        self.plan.targets.add(key)
        return key

    def _downstream(self, overrides: Overrides, task: str, seed: int) -> str:
        """Plan the row's run of a task and what it needs; returns its key."""
        row, about = overrides.row, self.catalog.describe("task", task)
        assert row.method is not None
        if about.takes != ("teacher" if discovery.kind_of(row.method) == "teacher" else "encoder"):
            a = {"encoder": "an encoder: name a method", "teacher": "a teacher: name one"}[about.takes]
            field = f"{overrides.where.removesuffix('.set')}.method"
            raise UserError(field, row.method, remedy=f"The task {task} takes {a}.")
        self.data.path(about.data)  # raises first: nothing is pretrained for a cell without data
        encoder = self._pretrain(overrides, seed)
        values, method = self.plan.nodes[encoder].spec.recipe, self.plan.recipes[encoder].about
        resolved = self.recipes.resolve(
            "task",
            task,
            self.ledger.changes(task, overrides, own=False),
            encoder=(values["arch"], values["patch_size"]),
            cited=method.transfer.get(task, {}).get(self.request.scale, ()),
        )
        label = f"{row.label} · {task}"
        return self._add("downstream", resolved, seed, label, {"encoder": encoder}, arch=values["arch"])

    def _pretrain(self, overrides: Overrides, seed: int) -> str:
        """Plan the row's own pretraining (or its teacher, if the row names one) and what it needs.

        Returns its key. It has the row's seed, or seed 0 if it is loaded; what it needs always has seed 0.
        """
        row = overrides.row
        assert row.method is not None
        kind = discovery.kind_of(row.method)
        changes = self.ledger.changes(row.method, overrides, own=True)
        resolved = self.recipes.resolve(kind, row.method, changes)
        if kind == "method" and row.method in self.request.weights:  # its checkpoint is the encoder
            if overrides.own_fields:
                fields = ", ".join(sorted(overrides.own_fields))
                raise Unavailable(f"--weights {row.method} does not fit this row's recipe: {fields} differ")
            return self._add("pretrain", resolved, 0, f"{row.label} · loaded", {}, checkpoint=row.method)
        if resolved.values.get("weights"):
            seed = 0  # a checkpoint is the same for every seed
        return self._with_parents(kind, resolved, seed, row.label, overrides)

    def _parent(self, name: str, overrides: Overrides) -> str:
        """Plan a run that the row's pretraining needs: with seed 0, changed only by `name.field`."""
        kind = discovery.kind_of(name)
        resolved = self.recipes.resolve(kind, name, self.ledger.changes(name, overrides, own=False))
        return self._with_parents(kind, resolved, 0, resolved.about.title, overrides)

    def _with_parents(
        self, kind: Kind, resolved: Resolved, seed: int, label: str, overrides: Overrides
    ) -> str:
        parents = {role: self._parent(name, overrides) for role, name in resolved.needs.items()}
        return self._add("teacher" if kind == "teacher" else "pretrain", resolved, seed, label, parents)

    def _add(
        self,
        stage: Stage,
        resolved: Resolved,
        seed: int,
        label: str,
        parents: Mapping[str, str],
        *,
        arch: str = "",
        checkpoint: str = "",
    ) -> str:
        """Add a run to the plan unless it is there; returns its key.

        Args:
            arch: the encoder's, for a task. checkpoint: its name, if --weights replaces the training.
        """
        about = resolved.about
        loaded = checkpoint or resolved.values.get("weights")
        if loaded:
            self.ledger.note_checkpoint(loaded)
        weights = self.data.checkpoint(about.title, loaded) if loaded else {}
        reads = not weights and (stage == "downstream" or about.trains)
        role = {about.data: self.data.path(about.data)} if reads else {}
        if stage != "downstream" and about.trains and not loaded:
            _require_step(resolved)
        read = {name: self.data.identity(name, labels=stage == "downstream") for name in role}
        data = {name: found.digest for name, found in read.items()}
        data |= {f"weights {n}": self.data.weights_fingerprint(n, path) for n, path in weights.items()}
        spec = RunSpec(
            stage=stage,
            name=about.name,
            arch=arch or resolved.values["arch"],
            recipe=resolved.values,
            data=data,
            seed=seed,
            parents=dict(parents),
            skip_corrupt=any(found.left_out for found in read.values()),
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


def _require_step(resolved: Resolved) -> None:
    """Raises UserError for a pretraining that ends before its first step."""
    about, batch, epochs = resolved.about, resolved.values["global_batch_size"], resolved.values["epochs"]
    if round(resolved.images / batch) < 1:
        sees = f"{about.title} sees {resolved.images} images in all its epochs ({epochs})"
        where = resolved.sources["global_batch_size"]
        field = place(where if where.startswith("--set") else "", "global_batch_size", of=about.title)
        raise UserError(field, batch, remedy=f"{sees}: less than a batch.")
