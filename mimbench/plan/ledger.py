"""The overrides behind a plan: which recipe each one changes, and which of them change none.

A table's row changes the recipe of its own pretraining by `field`, and any recipe that it is made of by
`name.field`. The user's --set does the same for every row of the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mimbench import discovery
from mimbench.catalog import Changes
from mimbench.discovery import Kind
from mimbench.errors import UserError
from mimbench.plan.graph import Plan
from mimbench.plan.recipes import Recipes, checkpoints
from mimbench.plan.request import Request
from mimbench.recipe import Scale
from mimbench.table.spec import Row

SHAPE = {"arch", "img_size", "patch_size"}
"""The fields of a pretraining that say what its encoder is, not how it learns."""


class Overrides:
    """The overrides of one row at one scale.

    Attributes:
        where: the place of the row, for messages (`tables/dtm/main.toml: rows.dtm.set`).
        values: `field` or `name.field` to its value; those of the scale over those of every scale.
        parts: the names that the row is made of, as far as it is planned: its method, what that learns from,
            and the tasks.
    """

    def __init__(self, row: Row, scale: Scale, where: str) -> None:
        self.row, self.where = row, f"{where}: rows.{row.id}.set"
        self.values: Mapping[str, Any] = {**row.set, **row.at.get(scale, {})}
        self.parts: set[str] = set()

    def of(self, name: str, *, own: bool) -> Changes:
        """What the row changes of a recipe; `own`: of its own pretraining, which bare fields are about."""
        self.parts.add(name)
        split = [(*field.rpartition("."), value) for field, value in self.values.items()]
        bare = {field: value for prefix, _, field, value in split if own and not prefix}
        prefixed = {field: value for prefix, _, field, value in split if prefix == name}
        return [(self.where, bare), (f"{self.where} {name}.", prefixed)]

    @property
    def own_fields(self) -> set[str]:
        """The fields of its pretraining that the row changes, its shape aside."""
        split = (name.rpartition(".") for name in self.values)
        return {field for prefix, _, field in split if prefix in ("", self.row.method)} - SHAPE

    def refuse_strangers(self) -> None:
        """Raises UserError for an override of something that the row is not made of."""
        for name in self.values:
            prefix, dot, _ = name.rpartition(".")
            if dot and prefix not in self.parts:
                place, parts = f"{self.where} {name}", sorted(self.parts)
                raise UserError(place, prefix, allowed=parts, remedy="The row has no other part.")


class Ledger:
    """The request's --set and --weights entries, and which of them some run of the plan uses."""

    def __init__(self, request: Request, recipes: Recipes) -> None:
        self.request, self.recipes = request, recipes
        self._rows: list[Row] = []
        self._used: set[str] = set()  # names of --set
        self._loaded: set[str] = set()  # names of checkpoints

    def note_row(self, row: Row) -> None:
        """A row is planned, whatever becomes of it."""
        self._rows.append(row)

    def note_checkpoint(self, name: str) -> None:
        """Some run loads the checkpoint of that name."""
        self._loaded.add(name)

    def changes(self, name: str, overrides: Overrides, *, own: bool) -> Changes:
        """Everything that changes a recipe, in the order in which it applies: the row's, then the user's.

        Args:
            name: the method, teacher or task.
            overrides: of the row that is planned.
            own: whether it is the row's own pretraining, which bare fields are about.
        """
        found = list(overrides.of(name, own=own))
        for change, value in self.request.changes.items():
            prefix, _, field = change.rpartition(".")
            if prefix == name:
                self._used.add(change)
                found.append((f"--set {name}.", {field: value}))
            elif own and not prefix and self._is_settable(name, field):
                self._used.add(change)
                found.append(("--set", {field: value}))
        return [(place, values) for place, values in found if values]

    def _is_settable(self, pretraining: str, field: str) -> bool:
        """Whether a bare --set changes a pretraining; of one that trains nothing, only its shape."""
        kind = discovery.kind_of(pretraining)
        if field not in SHAPE and not self.recipes.trains(pretraining):
            return False
        return field in self.recipes.fields(kind, pretraining)

    def unused(self, plan: Plan) -> dict[tuple[str, str], set[str]]:
        """The --set and --weights entries that no run of the plan uses.

        Of a row that cannot be run here it is not known what it would use, so whatever its recipes have a
        field for, and every checkpoint that there is, counts as used where there is such a row.

        Returns:
            (option, name) to the names that the plan's runs would use.
        """
        blocked = {row for row, _ in plan.blocked}
        found = {}
        for change in sorted(set(self.request.changes) - self._used):
            if not any(self._is_field_of(row, change) for row in self._rows if row.id in blocked):
                found["--set", change] = self._settable(plan, change)
        known = checkpoints(self.recipes.catalog) if blocked and self.request.weights else set()
        for name in sorted(set(self.request.weights) - self._loaded - known):
            found["--weights", name] = self._loaded | known
        return found

    def _is_field_of(self, row: Row, change: str) -> bool:
        """Whether a --set names a field of a row's pretraining, of a teacher or of a task."""
        prefix, _, field = change.rpartition(".")
        cards: list[tuple[Kind, str]] = []
        if prefix:
            cards += [(kind, name) for kind in ("task", "teacher") for name in discovery.names(kind)]
        if row.method:
            cards.append((discovery.kind_of(row.method), row.method))
        return any(prefix in ("", name) and field in self.recipes.fields(kind, name) for kind, name in cards)

    def _settable(self, plan: Plan, change: str) -> set[str]:
        """What --set accepts instead: fields of the pretrainings, or the names before the dot."""
        if "." in change:
            return {node.spec.name for node in plan.nodes.values()}
        found = set()
        for node in plan.nodes.values():
            if node.spec.stage == "pretrain":
                trains = plan.recipes[node.key].about.trains
                found |= {field for field in node.spec.recipe if trains or field in SHAPE}
        return found
