"""The resolved recipes of a plan, and which recipes have a given field."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from mimbench import discovery
from mimbench.catalog import Catalog, Changes, Resolved
from mimbench.discovery import Kind
from mimbench.errors import Unavailable, UserError
from mimbench.plan.datasets import Source
from mimbench.recipe import Cited

MISSPELT = 0.8
"""How similar (0 to 1) an unknown field must be to a known one to count as a misspelling of it."""

KINDS: tuple[Kind, ...] = ("method", "teacher", "task")


class Recipes:
    """The recipes at one scale; a card with the same changes is resolved once.

    Args:
        data: knows how many training images there are.
    """

    def __init__(self, catalog: Catalog, data: Source, scale: str) -> None:
        self.catalog, self.data, self.scale = catalog, data, scale
        self._resolved: dict[str, Resolved] = {}

    def resolve(
        self,
        kind: Kind,
        name: str,
        changes: Changes = (),
        *,
        encoder: tuple[str, int] | None = None,
        cited: Sequence[Cited] = (),
    ) -> Resolved:
        """A recipe with its changes; see `Catalog.resolve`.

        Raises:
            UserError: an unknown name or field, or a value that the recipe does not accept.
            Unavailable: there is no recipe for this scale.
        """
        key = repr((kind, name, changes, encoder, cited))
        if key not in self._resolved:
            size = self.data.size(self.catalog.describe(kind, name).data, labelled=kind == "task")
            try:
                self._resolved[key] = self.catalog.resolve(
                    kind, name, self.scale, changes, data_size=size, encoder=encoder, cited=cited
                )
            except UserError as error:
                raise self._with_owners(error, kind, name, changes) from None
        return self._resolved[key]

    def fields(self, kind: Kind, name: str) -> set[str]:
        """The fields of a card's recipe; none if it has no recipe at this scale."""
        encoder = ("vit_smoke", 8) if kind == "task" else None  # the fields are the same for any encoder
        try:
            return set(self.resolve(kind, name, encoder=encoder).values)
        except Unavailable:
            return set()

    def trains(self, name: str) -> bool:
        """Whether a method, teacher or task trains anything."""
        kind = next(kind for kind in KINDS if name in discovery.names(kind))
        return self.catalog.describe(kind, name).trains

    def owners(self, field: str) -> list[str]:
        """Every method, teacher and task whose recipe has a field."""
        cards = ((kind, name) for kind in KINDS for name in discovery.names(kind))
        return [name for kind, name in cards if field in self.fields(kind, name)]

    def _with_owners(self, error: UserError, kind: Kind, name: str, changes: Changes) -> UserError:
        """The same error; for an unknown field, it also names the recipes that have it."""
        field = str(error.value).rpartition(".")[2]
        if not any(field in change for _, change in changes):
            return error
        own = self.fields(kind, name)
        if field in own or difflib.get_close_matches(field, own, cutoff=MISSPELT):
            return error
        owners = self.owners(field)
        if not owners:
            return error
        remedy = f"{error.remedy} It is a field of {', '.join(owners)}.".strip()
        return UserError(error.field, error.value, allowed=error.allowed, remedy=remedy)


def checkpoints(catalog: Catalog) -> set[str]:
    """Every name that --weights accepts: a method's, or one that a teacher's recipe loads."""
    names = set(discovery.names("method"))
    for teacher in discovery.names("teacher"):
        if "paper" in catalog.describe("teacher", teacher).scales:
            recipe = catalog.resolve("teacher", teacher, "paper", data_size=0)
            names.add(recipe.values.get("weights") or teacher)
    return names
