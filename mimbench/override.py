"""Applies overrides (of a table's row or of --set) to a recipe's plain values, and words errors about them.

This is not in recipe.py, because changing a message there makes stored results stale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mimbench.errors import UserError
from mimbench.recipe import Recipe


def override(
    kind: type[Recipe], values: Mapping[str, Any], changes: Mapping[str, Any], *, where: str, of: str = ""
) -> dict[str, Any]:
    """Apply a table row's or the user's overrides to a recipe's plain values.

    The text "none" means None, for which TOML has no word, except in a field of texts.

    Args:
        kind: the recipe's class, which says what each field takes.
        values: a recipe's `values()`.
        changes: field name to new value.
        where: where the user wrote the override (`--set`, `tables/dtm/main.toml: rows.dtm.set`). If it ends
            in a dot (`--set clip.`), messages join it to the field's name.
        of: the recipe's title, for messages; empty for none.

    Raises:
        UserError: an unknown field, or a value of another kind than the field's.
    """
    result = dict(values)
    for name, value in changes.items():
        if name not in values:
            option, prefix = place(where, "", of), ""
            if where.endswith("."):
                option, _, prefix = where.rpartition(" ")
            raise UserError(option, prefix + name, allowed=[prefix + field for field in sorted(values)])
        missing = value == "none" and not isinstance(values[name], str)
        try:
            result[name] = kind.plain(name, None if missing else value)
        except UserError as error:
            raise UserError(
                place(where, name, of), value, allowed=error.allowed, remedy=error.remedy
            ) from None
    return result


def place(where: str, name: str, of: str = "") -> str:
    """A field's name in messages: where it was changed, its name, and the title of its recipe."""
    if where.endswith("."):
        return where + name
    return " ".join(part for part in (where, name, f"({of})" if of else "") if part)


SIZES = ("img_size", "patch_size")
"""The fields of a recipe that other fields and other recipes must fit."""


class Misfit(UserError):
    """A value that does not go together with sizes that the user set.

    Attributes:
        why: what does not go together.
        fixes: settings, by their --set names, each of which may mend it; the best first.
    """

    def __init__(
        self, field: str, value: object, *, why: str, remedy: str, fixes: Sequence[Mapping[str, Any]]
    ) -> None:
        super().__init__(field, value, remedy=f"{why} {remedy}".strip())
        self.why, self.fixes = why, [fix for fix in fixes if fix]


@dataclass(frozen=True)
class Changed:
    """Which fields of a recipe were changed, for the messages about its values.

    Attributes:
        title: of the recipe's method or task.
        places: field to where it was changed last.
        default: where the user can change a field that was not changed.
    """

    title: str
    places: Mapping[str, str]
    default: str = "--set"

    def name(self, field: str) -> str:
        """A field's name in messages."""
        return place(self.places.get(field, ""), field, self.title)

    def settings(self, **values: Any) -> str:
        """These values in the form in which the user would write them."""
        where = next(iter(self.places.values()), self.default)
        if not where.startswith("--set"):
            return ", ".join(f"{field}={value}" for field, value in values.items())
        return " ".join(f"{place(where, field)}={value}" for field, value in values.items())

    def setting(self, field: str, value: Any) -> dict[str, Any]:
        """A value by the --set name of its field; empty if only a table's row changes this recipe."""
        options = [where for where in self.places.values() if where.startswith("--set")]
        where = options[0] if options else "" if self.places else self.default
        return {place(where, field).removeprefix("--set "): value} if where else {}

    def named(self, error: UserError, values: Mapping[str, Any]) -> UserError:
        """The error with the field named as the user wrote it.

        If that field was not changed, the message lists the fields that were. If a size was, the error is a
        Misfit, whose fixes are other sizes.

        Args:
            values: the recipe's plain values.
        """
        if not self.places or error.field in self.places:
            return UserError(self.name(error.field), error.value, allowed=error.allowed, remedy=error.remedy)
        given = ", ".join(place(where, field) for field, where in self.places.items())
        field, changed = self.name(error.field), f"Changed: {given}."
        img_size, patch_size = (values.get(name) for name in SIZES)
        if not set(SIZES) & self.places.keys() or type(img_size) is not int or type(patch_size) is not int:
            remedy = f"{error.remedy} {changed}".strip()
            return UserError(field, error.value, allowed=error.allowed, remedy=remedy)
        fixes = [self.setting("img_size", img_size + more * patch_size) for more in (1, 2)]
        if "patch_size" in self.places:
            fixes = [self.setting("patch_size", n) for n in divisors(img_size, patch_size)[:2]] + fixes
        return Misfit(field, error.value, why=f"{error.remedy} {changed}".strip(), remedy="", fixes=fixes)


def check_epochs(values: Mapping[str, Any], changed: Changed, *, trains: bool) -> None:
    """Raises UserError if `epochs` was changed to 0 or less, or if the warm-up is longer than the training.

    Args:
        values: a recipe's plain values.
        trains: whether it trains; a recipe that loads its weights may have 0 epochs.
    """
    epochs, warmup = values.get("epochs"), values.get("warmup_epochs")
    if not isinstance(epochs, float):
        return
    if trains and epochs <= 0 and "epochs" in changed.places:
        raise UserError(changed.name("epochs"), epochs, remedy="Give a number above 0.")
    if not isinstance(warmup, float) or warmup <= epochs:
        return
    why = f"{changed.title}'s warmup_epochs={warmup} exceeds epochs={epochs}."
    if "epochs" not in changed.places:
        remedy = f"{why} Give {epochs} at most, or more epochs too."
        raise UserError(changed.name("warmup_epochs"), warmup, remedy=remedy)
    fix = changed.settings(epochs=epochs, warmup_epochs=float(f"{epochs / 10:.2g}"))
    raise UserError(changed.name("epochs"), epochs, remedy=f"{why} Give both: {fix}")


def check_patches(img_size: Any, patch_size: Any, changed: Changed, *, of_encoder: bool) -> None:
    """Raises UserError, with sizes that work, if images cannot be cut into whole patches.

    Args:
        img_size, patch_size: in pixels; the recipe itself refuses anything but positive whole numbers.
        of_encoder: whether `patch_size` belongs to the encoder that a task takes, not to the recipe.
    """
    if type(img_size) is not int or type(patch_size) is not int or min(img_size, patch_size) < 1:
        return
    if img_size % patch_size == 0:
        return
    size = max(round(img_size / patch_size), 1) * patch_size
    if of_encoder:
        why = f"{changed.title} takes img_size={img_size}, its encoder has patch_size={patch_size}"
    else:
        why = f"{changed.title} has img_size={img_size} and patch_size={patch_size}"
    why += ": img_size must be a multiple of patch_size."
    images, fix = changed.settings(img_size=size), changed.setting("img_size", size)
    if "patch_size" not in changed.places:
        name = changed.name("img_size")
        raise Misfit(name, img_size, why=why, remedy=f"Give {images}", fixes=[fix])
    near = sorted(divisors(img_size, patch_size)[:2])
    patches = " or ".join(changed.settings(patch_size=n) for n in near)
    remedy = f"Give {patches}; or {images} too" if patches else f"Give {images} too"
    fixes = [*(changed.setting("patch_size", n) for n in near), fix]
    raise Misfit(changed.name("patch_size"), patch_size, why=why, remedy=remedy, fixes=fixes)


def divisors(number: int, near: int) -> list[int]:
    """The divisors of a number, without 1, the number and `near`; those next to `near` first."""
    found = [n for n in range(2, number) if number % n == 0 and n != near]
    return sorted(found, key=lambda n: (abs(n - near), -n))
