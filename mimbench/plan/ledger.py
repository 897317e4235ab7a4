"""The overrides of a plan: which recipe each one changes, and which of them change nothing.

In a table's row, `field` changes the row's own pretraining, and `name.field` the recipe of any of its parts.
The user's --set does the same for every row of the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mimbench import discovery
from mimbench.catalog import Changes
from mimbench.discovery import Kind
from mimbench.errors import Unavailable, UserError
from mimbench.plan.graph import Plan
from mimbench.plan.recipes import Recipes
from mimbench.plan.request import Request
from mimbench.recipe import Scale
from mimbench.table.spec import Row

SHAPE = {"arch", "img_size", "patch_size"}
"""The fields of a pretraining that set its encoder's shape, not its training."""


class Overrides:
    """The overrides of one row at one scale.

    Attributes:
        where: the place of the row, for messages (`tables/dtm/main.toml: rows.dtm.set`).
        values: `field` or `name.field` to its value; values for this scale replace those for all scales.
        parts: the names of the row's method, of the teachers and methods that it needs, and of the tasks, as
            far as they have been planned.
    """

    def __init__(self, row: Row, scale: Scale, where: str) -> None:
        self.row, self.where = row, f"{where}: rows.{row.id}.set"
        self.values: Mapping[str, Any] = {**row.set, **row.at.get(scale, {})}
        self.parts: set[str] = set()

    def of(self, name: str, *, own: bool) -> Changes:
        """The row's changes to a recipe; `own`: it is the row's own pretraining, which `field` changes."""
        self.parts.add(name)
        split = [(*field.rpartition("."), value) for field, value in self.values.items()]
        bare = {field: value for prefix, _, field, value in split if own and not prefix}
        prefixed = {field: value for prefix, _, field, value in split if prefix == name}
        return [(self.where, bare), (f"{self.where} {name}.", prefixed)]

    @property
    def own_fields(self) -> set[str]:
        """The fields of its pretraining that the row changes, without those in SHAPE."""
        split = (name.rpartition(".") for name in self.values)
        return {field for prefix, _, field in split if prefix in ("", self.row.method)} - SHAPE

    def refuse_strangers(self) -> None:
        """Raises UserError for an override of a name that is not a part of the row."""
        for name in self.values:
            prefix, dot, _ = name.rpartition(".")
            if dot and prefix not in self.parts:
                place, parts = f"{self.where} {name}", sorted(self.parts)
                raise UserError(place, prefix, allowed=parts, remedy="The row has no other part.")


class Ledger:
    """Keeps the request's --set and --weights entries, and notes which of them the plan's runs use."""

    def __init__(self, request: Request, recipes: Recipes) -> None:
        self.request, self.recipes = request, recipes
        self._rows: list[Row] = []
        self._used: set[str] = set()  # names of --set
        self._loaded: set[str] = set()  # names of checkpoints

    def note_row(self, row: Row) -> None:
        """Note that a row is planned, even if it turns out that it cannot be run."""
        self._rows.append(row)

    def note_checkpoint(self, name: str) -> None:
        """Note that some run loads the checkpoint of that name."""
        self._loaded.add(name)

    def changes(self, name: str, overrides: Overrides, *, own: bool) -> Changes:
        """All changes to a recipe, in the order in which they apply: the row's, then the user's.

        Args:
            name: the method, teacher or task.
            overrides: those of the row that is planned.
            own: whether it is the row's own pretraining, which fields without a name before them change.
        """
        found = list(overrides.of(name, own=own))
        for change, value in self.request.changes.items():
            prefix, _, field = change.rpartition(".")
            if prefix == name and not self.is_idle(name, field):
                self._used.add(change)
                found.append((f"--set {name}.", {field: value}))
            elif own and not prefix and self._is_settable(name, field):
                self._used.add(change)
                found.append(("--set", {field: value}))
        return [(place, values) for place, values in found if values]

    def _is_settable(self, pretraining: str, field: str) -> bool:
        """Whether --set FIELD changes a pretraining."""
        fields = self.recipes.fields(discovery.kind_of(pretraining), pretraining)
        return field in fields and not self.is_idle(pretraining, field)

    def is_idle(self, name: str, field: str) -> bool:
        """Whether a field of a recipe changes nothing: all but those in SHAPE, where nothing is trained."""
        if field in SHAPE or self.recipes.trains(name):
            return False
        return field in self.recipes.fields(discovery.kind_of(name), name)

    def unused(self, plan: Plan) -> dict[tuple[str, str], set[str]]:
        """The --set and --weights entries that no run of the plan uses.

        For a row that cannot be run here, all fields of its recipes count as used, and the checkpoints of its
        method and its teachers.

        Returns:
            (option, name) to the names that the plan's runs would use.
        """
        blocked = {row for row, _ in plan.blocked}
        found = {}
        for change in sorted(set(self.request.changes) - self._used):
            if not any(self._is_field_of(row, change) for row in self._rows if row.id in blocked):
                found["--set", change] = self._settable(plan, change)
        if self.request.weights:
            loadable = {row.id: self._loadable(row) for row in {row.id: row for row in self._rows}.values()}
            used = self._loaded.union(*(names for row, names in loadable.items() if row in blocked))
            for name in sorted(set(self.request.weights) - used):
                found["--weights", name] = set().union(*loadable.values())
        return found

    def _is_field_of(self, row: Row, change: str) -> bool:
        """Whether a --set names a field of a row's pretraining, of a teacher or of a task."""
        prefix, _, field = change.rpartition(".")
        cards: list[tuple[Kind, str]] = []
        if prefix:
            cards += [(kind, name) for kind in ("task", "teacher") for name in discovery.names(kind)]
        if row.method:
            cards.append((discovery.kind_of(row.method), row.method))
        return any(
            prefix in ("", name)
            and field in self.recipes.fields(kind, name)
            and not self.is_idle(name, field)
            for kind, name in cards
        )

    def _loadable(self, row: Row) -> set[str]:
        """The names of the checkpoints that a row would load: its method's, and those that recipes name."""
        overrides = Overrides(row, self.request.scale, "")
        pending: list[str | None] = [row.method]
        seen: set[str] = set()
        found: set[str] = set()
        while pending:
            name = pending.pop()
            if name is None or name in seen:
                continue
            seen.add(name)
            kind, own = discovery.kind_of(name), name == row.method
            if own and kind == "method":
                found.add(name)
            try:
                recipe = self.recipes.resolve(kind, name, self.changes(name, overrides, own=own))
            except (UserError, Unavailable):  # the row is left out because its recipe is impossible here
                pending += self.recipes.catalog.describe(kind, name).needs.values()
            else:
                pending += recipe.needs.values()
                if weights := recipe.values.get("weights"):
                    found.add(weights)
        return found

    def _settable(self, plan: Plan, change: str) -> set[str]:
        """What --set accepts instead: fields of the pretrainings, or names that may come before the dot."""
        if "." in change:
            return {node.spec.name for node in plan.nodes.values()}
        found = set()
        for node in plan.nodes.values():
            if node.spec.stage == "pretrain":
                trains = plan.recipes[node.key].about.trains
                found |= {field for field in node.spec.recipe if trains or field in SHAPE}
        return found
